"""The checkpoint that comes with metadraw, made from a finished run, and its meta-test.

python train.py experiment=best data.source=npm hydra.run.dir=logs/best
python benchmarks/shipped.py logs/best/checkpoints/best.ckpt

It keeps what is needed for use: parameters and config. It is tested with all of the report's ways
and shots, though trained with one of them, with the query set normalised by the support set's
statistics (as in use) and by its own (as in the report).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import metadraw
from metadraw.results.published import published
from metadraw.training.evaluate import evaluate
from metadraw.training.factory import read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
OUT, CARD = ROOT / "checkpoints" / "best.ckpt", ROOT / "checkpoints" / "results.md"


def ship(trained: Path) -> None:
    """Write what is needed for use; the same file for the same parameters and config."""
    saved = read_checkpoint(trained)
    OUT.parent.mkdir(exist_ok=True)
    torch.save({key: saved[key] for key in ("state_dict", "metadraw_config")}, OUT)


def tested(ways: int, shots: int, statistics: str) -> str:
    """Meta-test accuracy in per cent, with half its 95 % interval."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = metadraw.compose(
            f"ckpt_path={OUT}",
            f"data.ways={ways}",
            f"data.shots={shots}",
            f"data.test_batches={100 if shots == 1 else 40}",
            f"learner.query_statistics={statistics}",
            "trainer=cpu",
            f"paths.output_dir={folder}",
            config="eval",
        )
        test = evaluate(cfg)["test"]
    return f"{100 * test['acc']:.2f} ± {100 * test['acc_ci95']:.2f}"


def main() -> None:
    """Ship, test, write the table."""
    [trained] = sys.argv[1:]
    ship(Path(trained))
    rows = []
    for ways in (5, 10):
        for shots in (1, 5, 10):
            support, query = (tested(ways, shots, kind) for kind in ("support", "query"))
            known = published(100, ways, shots)
            assert known is not None
            rows.append(
                f"| {ways}-way {shots}-shot | {support} | {query} | {100 * known['accuracy']:.1f} |"
            )
            print(rows[-1], flush=True)
    text = "\n".join(
        [
            "# Meta-test",
            "",
            "`python benchmarks/shipped.py RUN/checkpoints/best.ckpt`, RUN being that of the card,"
            f" on one CPU core with torch {torch.__version__}. Accuracy in per cent, ± half its "
            "95 % interval over tasks (2,500 for 1 shot, else 1,000), as many queries as shots.",
            "",
            "| task | one picture at a time | a query set at once | the report, trained for each |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )
    CARD.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
