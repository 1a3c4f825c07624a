"""Compare runs on identical tasks: mean differences, paired by task.

python compare.py logs/train/multiruns/SWEEP
"""

import argparse

from metadraw.command.cli import one_line_errors
from metadraw.results.compare import compare

_EXAMPLES = """\
Runs use identical tasks, which is checked, unless a key that defines tasks was changed. A
difference paired by task has a much narrower interval than the means.

examples:
  python train.py -m algorithm=maml,fomaml        # a sweep, then its runs against the first:
  python compare.py logs/train/multiruns/SWEEP
  python compare.py SWEEP --reference SWEEP/algorithm-fomaml --metric loss
  python compare.py RUN RUN RUN                   # any runs, against the first

Trained with different shots? Test both on the same tasks first, then compare:
  python eval.py ckpt_path=RUN/checkpoints/best.ckpt data.shots=5
  python compare.py logs/eval/runs/TIME logs/eval/runs/TIME"""


def main() -> None:
    """Print the table of the runs that the command line names."""
    parser = argparse.ArgumentParser(
        description="Compare runs on identical tasks, as a Markdown table.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run or of a sweep")
    parser.add_argument(
        "--reference", metavar="RUN", help="differences are from this run; default: the first"
    )
    parser.add_argument(
        "--metric",
        help="a metric of each task, such as loss or acc_before; default: the monitored one, such "
        "as acc",
    )
    given = parser.parse_args()
    with one_line_errors():
        print(compare(given.runs, given.reference, given.metric))


if __name__ == "__main__":
    main()
