"""The commands as a user types them, right and wrong, and that every key of the configs is read."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

import metadraw
from metadraw.build import CONFIGS
from metadraw.train import train

ROOT = CONFIGS.parent


def command(*arguments, cwd=ROOT, program="train.py"):
    """Run a program of the repository; returns the finished process."""
    return subprocess.run(
        [sys.executable, ROOT / program, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"},
    )


@pytest.fixture
def from_command_line(tiny, tmp_path):
    """Overrides of a tiny run whose folder is Hydra's own, below ``tmp_path``."""
    return [o for o in tiny if not o.startswith("paths.output_dir")] + [f"paths.log_dir={tmp_path}"]


WRONG = {
    "unknown algorithm": (["algorithm=mamml"], "mamml", "fomaml"),
    "unknown key": (["data.shotz=5"], "data.shotz"),
    "unknown source": (["data.source=ftp"], "data.source=ftp", "google"),
    "missing folder": (["data.path=/no/such/folder"], "/no/such/folder"),
    "no shots": (["data.shots=0"], "data.shots=0"),
    "too many shots": (["data.shots=30"], "data.shots=30", "data.samples_per_class=20"),
    "too many ways": (["data.ways=80"], "data.ways=80", "69"),
    "inner steps": (["algorithm.inner_steps=0"], "algorithm.inner_steps=0"),
    "inner learning rate": (["algorithm.inner_lr=-1"], "algorithm.inner_lr=-1"),
    "not a number": (["data.shots=five"], "data.shots=five"),
    "no checkpoint": (["ckpt_path=/no/such.ckpt"], "/no/such.ckpt"),
    "clipping": (["+trainer.gradient_clip_val=1"], "learner.gradient_clip_norm"),
    "accumulation": (["+trainer.accumulate_grad_batches=2"], "learner.tasks_per_chunk"),
    "half precision": (["trainer.precision=16-mixed"], "bf16-mixed"),
    "epochs": (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
    "statistics": (["learner.query_statistics=both"], "query or support"),
    "optimiser": (["optimizer.lr=-1"], "learning rate"),
    "trainer": (["trainer.precision=31"], "31"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_told_in_one_line(from_command_line, wrong):
    overrides, *says = WRONG[wrong]
    done = command(*from_command_line, *overrides)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in ["error: ", *says]:
        assert part in done.stderr
    assert "Epoch" not in done.stdout


def test_train_then_evaluate_rerun_and_multirun(from_command_line, tmp_path):
    done = command(*from_command_line)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "train" / "runs").iterdir()
    first = json.loads((folder / "results.json").read_text())["test"]
    assert f"meta-test accuracy {100 * first['acc']:.2f}" in done.stdout
    assert str(folder / "curves.png") in done.stdout

    quiet = ["trainer=cpu", f"paths.log_dir={tmp_path}"]
    done = command(f"ckpt_path={folder}/checkpoints/best.ckpt", *quiet, program="eval.py")
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "eval" / "runs").iterdir()
    assert json.loads((again / "results.json").read_text())["test"]["acc"] == first["acc"]

    done = command("--config-dir", str(folder), "--config-name", "config", "task_name=rerun")
    assert done.returncode == 0, done.stderr
    (rerun,) = (tmp_path / "rerun" / "runs").iterdir()
    assert json.loads((rerun / "results.json").read_text())["test"]["loss"] == first["loss"]

    done = command(*from_command_line, "-m", "algorithm=maml,fomaml", "data.shots=1,2")
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "train" / "multiruns").iterdir()
    shots = [
        json.loads((sweep / str(job) / "results.json").read_text())["config"]["data"]["shots"]
        for job in range(4)
    ]
    assert shots == [1, 2, 1, 2]


def test_wrong_evaluation(tmp_path):
    for arguments, says in (
        ([], "ckpt_path"),
        (["ckpt_path=/no/such.ckpt"], "no such file"),
        (["ckpt_path=x", "data.shotz=3"], "data.shotz"),
    ):
        done = command(*arguments, f"paths.log_dir={tmp_path}", program="eval.py")
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert says in done.stderr


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_help_teaches(program):
    done = command("--help", program=program)
    assert done.returncode == 0
    assert "python train.py algorithm=fomaml data.shots=5" in done.stdout
    if program == "train.py":
        assert "algorithm: fomaml, maml" in done.stdout
        assert "inner_lr" in done.stdout


def leaves(node, prefix=""):
    for key, value in OmegaConf.to_container(node, resolve=False).items() if prefix == "" else node:
        yield from _leaves(value, str(key))


def _leaves(value, path):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, value


def test_every_key_of_the_train_config_is_read(tiny, monkeypatch):
    """Below a ``_target_`` a key is an argument, which its constructor takes or refuses; every
    other key must be looked up during a run, by code or by another key's interpolation.
    """
    cfg = metadraw.compose(*tiny)
    keys = dict(leaves(cfg))
    read = set()
    look_up = DictConfig._get_impl

    def recorded(self, key, *args, **kwargs):
        read.add(self._get_full_key(key))
        return look_up(self, key, *args, **kwargs)

    monkeypatch.setattr(DictConfig, "_get_impl", recorded)
    # What is looked up while the whole config is copied or saved does not count.
    monkeypatch.setattr("metadraw.train.save_config", lambda *_: None)
    monkeypatch.setattr("metadraw.build.portable", lambda cfg: {"data": {"ways": cfg.data.ways}})
    train(cfg)
    interpolated = {
        name for value in keys.values() for name in re.findall(r"\$\{([\w.]+)\}", str(value))
    }
    instantiated = {path.rsplit(".", 1)[0] for path in keys if path.endswith("._target_")}
    for path in keys:
        argument = any(path.startswith(f"{parent}.") for parent in instantiated)
        # These two shape Hydra's run folder, see the test of whole commands.
        elsewhere = path in ("task_name", "paths.log_dir")
        assert argument or elsewhere or path in read | interpolated, path


@pytest.mark.parametrize("target", ["data", "model", "algorithm", "optimizer", "learner"])
def test_an_argument_that_nothing_takes_is_refused(tiny, target):
    with pytest.raises(Exception, match=r"unexpected keyword argument|surplus"):
        metadraw.build(metadraw.compose(*tiny, f"+{target}.surplus=1"))


def choices():
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        group = path.parent.name
        if group not in ("hydra", "paths") and (group, path.stem) != ("data", "episodes"):
            yield f"{'' if group != 'experiment' else '+'}{group}={path.stem}".lstrip("+")


@pytest.mark.parametrize("choice", choices())
def test_every_shipped_choice_composes_and_takes_a_step(tiny, choice):
    cfg = metadraw.compose(*[o for o in tiny if o != "trainer=cpu"], choice)
    data, learner = metadraw.build(cfg)
    gradients, _ = learner.meta_gradients(next(iter(data.train_dataloader())))
    assert gradients


def test_readme_names_real_files_and_commands():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    for line in re.findall(r"^python (?:train|eval)\.py (.*)$", text, re.MULTILINE):
        overrides = [w for w in line.split("#")[0].split() if not w.startswith("-")]
        config = "eval" if "ckpt_path=" in line and "eval.py" in text else "train"
        if any("," in o for o in overrides) or any("RUN" in o or "my_" in o for o in overrides):
            continue
        metadraw.compose(*overrides, config=config if "eval" in line else "train")


def test_configs_are_where_they_are_looked_for():
    assert Path(CONFIGS, "train.yaml").exists()
