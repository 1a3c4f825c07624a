"""Memory and open files over 2,000 training steps, with validation and checkpoints.

python benchmarks/soak.py data.source=npm

A run of train.py in its own process, observed from outside after every epoch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from metadraw.command.cli import one_line_errors

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "soak.md"
SETTINGS = [
    "trainer=cpu",
    "trainer.max_epochs=40",
    "data.train_batches=50",
    "data.tasks_per_batch=5",
    "data.val_batches=10",
    "data.test_batches=10",
    "callbacks.progress_bar.refresh_rate=0",
]
SHOWN = (1, 2, 5, 10, 20, 30, 39)  # the run may end before the last one is observed


def look(pid: int) -> tuple[float, int]:
    """Resident memory in MB and open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def main() -> None:
    """Run, look, and write the table."""
    typed = [*SETTINGS, *sys.argv[1:]]
    seen: dict[int, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *typed, f"hydra.run.dir={folder}"]
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None:
            metrics = Path(folder) / "metrics.csv"
            text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
            epoch = len(text.splitlines()) - 1
            if epoch > 0 and epoch not in seen:
                seen[epoch] = look(process.pid)
            time.sleep(0.05)
    if process.returncode:
        sys.exit(process.returncode)
    rows = [
        f"| {epoch} | {50 * epoch:,} | {seen[epoch][0]:,.0f} | {seen[epoch][1]} |"
        for epoch in SHOWN
    ]
    text = "\n".join(
        [
            "# soak",
            "",
            f"`python benchmarks/soak.py {' '.join(sys.argv[1:])}`: 2,000 outer steps of 5 tasks, "
            "with validation and checkpoints after every 50.",
            "",
            "| epoch | outer steps | resident memory (MB) | open files |",
            "| ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )
    OUT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
