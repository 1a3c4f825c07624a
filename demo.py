"""A local page to draw on, where a checkpoint learns your own classes from a few examples.

python demo.py ckpt_path=checkpoints/best.ckpt
"""

import hydra
from dotenv import load_dotenv
from omegaconf import DictConfig

from metadraw.command.cli import one_line_errors
from metadraw.command.keys import check_job


@hydra.main(version_base="1.3", config_path="configs", config_name="demo")
def main(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C."""
    with one_line_errors():
        check_job(cfg)
        from metadraw.use.page.server import serve

        serve(cfg)


if __name__ == "__main__":
    load_dotenv()
    with one_line_errors():
        main()
