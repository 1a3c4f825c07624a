"""All algorithms at equal meta-training tasks, and MAML++ change by change.

python benchmarks/algorithms.py --jobs 2 data.source=npm

Every run is a separate `train.py` in logs/benchmarks/<study>/<run>; finished runs are kept, so the
command can be interrupted and repeated. Tables go to benchmarks/results/<study>.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from metadraw.command.cli import one_line_errors
from metadraw.results.compare import compare

ROOT = Path(__file__).resolve().parents[1]
LOGS, RESULTS = ROOT / "logs" / "benchmarks", ROOT / "benchmarks" / "results"

#: With so few steps, both learning rates are larger than in the report, which takes 5,000.
OUTER, INNER = "optimizer.lr=0.003", "algorithm.inner_lr=0.1"
#: Annealing that ends within the epochs of a study.
ANNEALED = ["algorithm.multi_step_epochs=2", "algorithm.first_order_epochs=1"]
ALGORITHMS = {
    "maml, the report's recipe": ["algorithm=maml"],
    "maml": ["algorithm=maml", OUTER, INNER],
    "fomaml": ["algorithm=fomaml", OUTER, INNER],
    "reptile": ["algorithm=reptile", OUTER, INNER],
    "anil": ["algorithm=anil", OUTER, INNER],
    "boil": ["algorithm=boil", OUTER, INNER],
    "lslr": ["algorithm=lslr", OUTER, INNER],
    "maml_pp": ["algorithm=maml_pp", OUTER, INNER, *ANNEALED],
    "meta_sgd": ["algorithm=meta_sgd", OUTER, INNER],
    "alpha_maml": ["algorithm=alpha_maml", OUTER, INNER],
    "proto_maml": ["algorithm=proto_maml", OUTER],
    "unicorn_maml": ["algorithm=unicorn_maml", OUTER],
    "protonet": ["algorithm=protonet", OUTER],
    "matching_net": ["algorithm=matching_net", OUTER],
    "r2d2": ["algorithm=r2d2", OUTER],
    "scratch": ["algorithm=scratch"],
    "finetune": ["algorithm=finetune", OUTER],
    "finetune, whole network": ["algorithm=finetune", OUTER, "algorithm.frozen=false"],
}
PLAIN = ["algorithm=lslr", OUTER, INNER, "algorithm.learned_rates=false"]
STATISTICS = [*PLAIN, "algorithm.per_step_statistics=true"]
RUNNING = "learner.query_statistics=running"
ABLATION = {
    "MAML": PLAIN,
    "+ multi-step loss": [*PLAIN, "algorithm.multi_step_epochs=2"],
    "+ derivative-order annealing": [*PLAIN, "algorithm.first_order_epochs=1"],
    "+ per-step statistics, running in evaluation": [*STATISTICS, RUNNING],
    "+ per-step norm": [*PLAIN, "algorithm.per_step_norm=true"],
    "+ learned rates": ["algorithm=lslr", OUTER, INNER],
    "+ cosine": [*PLAIN, "scheduler=cosine"],
    "MAML++": ALGORITHMS["maml_pp"],
    "MAML++, running statistics": [*ALGORITHMS["maml_pp"], RUNNING],
}
ONE_SHOT = ["data.train_batches=25", "data.val_batches=8", "data.test_batches=40"]
FIVE_SHOT = ["data.shots=5", "data.train_batches=10", "data.val_batches=4", "data.test_batches=20"]
#: Study: (runs by label, settings of all).
STUDIES = {
    "5-way-1-shot": (ALGORITHMS, ONE_SHOT),
    "5-way-5-shot": (ALGORITHMS, FIVE_SHOT),
    "maml_pp-ablation": (ABLATION, ONE_SHOT),
}
COMMON = ["trainer=cpu", "trainer.max_epochs=4", "callbacks.progress_bar.refresh_rate=0"]


def folder(study: str, label: str) -> Path:
    """The folder of a run of a study."""
    return LOGS / study / "".join(c if c.isalnum() else "_" for c in label)


def run(study: str, label: str, settings: list[str]) -> None:
    """One meta-training and meta-test, unless its results exist."""
    at = folder(study, label)
    if (at / "tasks.csv").exists():
        return
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir(parents=True)
    with (at / "output.txt").open("w") as output:
        done = subprocess.run(
            [sys.executable, "train.py", *settings, f"hydra.run.dir={at}"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    last = (at / "output.txt").read_text().strip().splitlines()[-2:]
    print(f"{study}: {label}: {' '.join(last) if done.returncode else last[0]}", flush=True)


def write_table(study: str, command: str) -> None:
    """The comparison of a study's finished runs with its first one."""
    runs, settings = STUDIES[study]
    finished = [folder(study, label) for label in runs]
    missing = [label for label in runs if not (folder(study, label) / "tasks.csv").exists()]
    values = dict(setting.split("=") for setting in [*COMMON, *settings])
    steps = int(values["trainer.max_epochs"]) * int(values["data.train_batches"])
    text = [
        f"# {study}",
        "",
        f"`{command}`, one thread per run, {platform.machine()} CPU, torch {torch.__version__}.",
        f"Every algorithm was meta-trained on the same {25 * steps:,} tasks, {steps} outer steps "
        "of 25; the best of 4 epochs by meta-validation accuracy was tested. One seed per run.",
        f"All have `{' '.join([COMMON[1], *settings])}`; each run's name is its other settings.",
        "",
        compare([path for path in finished if (path / "tasks.csv").exists()]),
    ]
    if missing:
        text += ["", f"Not finished: {', '.join(missing)}."]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{study}.md").write_text("\n".join(text) + "\n")


def main() -> None:
    """Finish the runs of the studies, then write their tables."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--tables", action="store_true", help="of finished runs, without running")
    parser.add_argument("overrides", nargs="*", help="for all runs, e.g. data.source=npm")
    given = parser.parse_args()
    if not given.tables:
        with ThreadPoolExecutor(given.jobs) as pool:
            for study in given.studies:
                runs, settings = STUDIES[study]
                for label, own in runs.items():
                    everything = [*COMMON, *settings, *own, *given.overrides]
                    pool.submit(run, study, label, everything)
    for study in given.studies:
        write_table(study, " ".join(["python benchmarks/algorithms.py", *given.overrides]))


if __name__ == "__main__":
    with one_line_errors():
        main()
