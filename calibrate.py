"""Give a checkpoint probabilities that mean something, and a sense of "none of these".

python calibrate.py ckpt_path=logs/train/runs/TIME/checkpoints/best.ckpt data.shots=[1,10]
"""

import hydra
from dotenv import load_dotenv
from omegaconf import DictConfig

from metadraw.command.cli import one_line_errors
from metadraw.command.keys import check_job


@hydra.main(version_base="1.3", config_path="configs", config_name="calibrate")
def main(cfg: DictConfig) -> None:
    """Calibrate one checkpoint."""
    with one_line_errors():
        check_job(cfg)
        from metadraw.use.calibrate import calibrate

        calibrate(cfg)


if __name__ == "__main__":
    load_dotenv()
    with one_line_errors():
        main()
