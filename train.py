"""Meta-train, meta-validate after every epoch, meta-test the best checkpoint.

python train.py algorithm=fomaml data.shots=5
"""

import hydra
from dotenv import load_dotenv
from omegaconf import DictConfig

from metadraw.command.cli import job_errors, one_line_errors
from metadraw.command.keys import check_job


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one config; returns the best meta-validation result, for sweepers that search."""
    with job_errors():
        check_job(cfg)
        # Not at the top: importing PyTorch takes seconds, --help and typing errors should not.
        from metadraw.training.train import train

        return train(cfg)["val"][cfg.objective.monitor]


if __name__ == "__main__":
    load_dotenv()
    with one_line_errors():
        main()
