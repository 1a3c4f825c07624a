"""Meta-test a checkpoint again, optionally with other shots, ways, inner steps or another split.

python eval.py ckpt_path=logs/train/runs/TIME/checkpoints/best.ckpt data.shots=5
"""

import hydra
from dotenv import load_dotenv
from omegaconf import DictConfig

from metadraw.command.cli import one_line_errors
from metadraw.command.keys import check_job


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Evaluate one checkpoint."""
    with one_line_errors():
        check_job(cfg)
        from metadraw.training.evaluate import evaluate

        evaluate(cfg)


if __name__ == "__main__":
    load_dotenv()
    with one_line_errors():
        main()
