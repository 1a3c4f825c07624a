"""Adapt a checkpoint to your own classes, and classify pictures.

python adapt.py ckpt_path=checkpoints/best.ckpt support=FOLDER query=FOLDER
"""

import hydra
from dotenv import load_dotenv
from omegaconf import DictConfig

from metadraw.command.cli import one_line_errors
from metadraw.command.keys import check_job


@hydra.main(version_base="1.3", config_path="configs", config_name="adapt")
def main(cfg: DictConfig) -> None:
    """Adapt and classify."""
    with one_line_errors():
        check_job(cfg)
        from metadraw.use.adapt import adapt

        adapt(cfg)


if __name__ == "__main__":
    load_dotenv()
    with one_line_errors():
        main()
