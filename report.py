"""A sweep on one page: meta-test results, curves and CSV files, even while it is running.

python report.py logs/train/multiruns/SWEEP
"""

import argparse
from pathlib import Path

from metadraw.command.cli import one_line_errors
from metadraw.results.report import report

_EXAMPLES = """\
examples:
  python train.py -m experiment=report_100,report_20 data.ways=5,10 data.shots=1,5,10
  python report.py logs/train/multiruns/experiment-report_100+report_20__data.ways-5+10__...
  python report.py SWEEP --rows algorithm --column data.shots   # seeds: mean and spread"""


def main() -> None:
    """Write the report of the sweep that the command line names, and print it."""
    parser = argparse.ArgumentParser(
        description="Collect a sweep: report.md, runs.csv, curves.csv, curves as PNG and SVG.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, help="folder of a sweep, finished or not")
    parser.add_argument("--to", type=Path, help="folder to write to; default: SWEEP/report")
    parser.add_argument(
        "--rows", nargs="+", default=[], metavar="KEY", help="overridden keys, one row per value"
    )
    parser.add_argument("--column", metavar="KEY", help="overridden key, one column per value")
    given = parser.parse_args()
    with one_line_errors():
        to = given.to or given.sweep / "report"
        print(report(given.sweep, to, given.rows, given.column))
        print(f"written to {to}")


if __name__ == "__main__":
    main()
