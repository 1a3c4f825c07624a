"""Commands as a user types them, right and wrong; every key of the configs is read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from points import ENVIRONMENT, HANGS

import metadraw
from metadraw.command.cli import one_line_errors
from metadraw.command.config import CONFIGS
from metadraw.command.keys import check
from metadraw.results.sweep import read_sweep
from metadraw.training.evaluate import evaluate
from metadraw.training.factory import build_learner
from metadraw.training.train import train

ROOT = CONFIGS.parent


def command(*arguments, cwd=ROOT, program="train.py", env=ENVIRONMENT):
    """Run a program of the repository; returns the finished process."""
    return subprocess.run(
        [sys.executable, ROOT / program, *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=HANGS,
        env=env,
    )


@pytest.fixture
def from_command_line(tiny, tmp_path):
    """Overrides of a tiny run in Hydra's own folder, below ``tmp_path``."""
    return [o for o in tiny if not o.startswith("paths.output_dir")] + [f"paths.log_dir={tmp_path}"]


WRONG = {
    "unknown algorithm": (["algorithm=mamml"], "mamml", "fomaml"),
    "unknown key": (["data.shotz=5"], "data.shotz", "did you mean data.shots?"),
    "unknown key, added": (["+data.shotz=5"], "data.shotz", "did you mean data.shots?"),
    "unknown key, forced": (["++algoritm=maml"], "algoritm:", "did you mean algorithm?"),
    "unknown key of no group": (["algoritm=maml"], "algoritm:", "did you mean algorithm?"),
    "unknown key, nothing alike": (["+anything=1"], "anything:", "--help"),
    "unknown key, misplaced": (["+lr=0.1"], "lr:", "did you mean optimizer.lr?"),
    "unknown key, to be added": (["optimizer.weight_decay=1"], "+optimizer.weight_decay?"),
    "unknown key, misspelt": (["+trainer.max_stps=1"], "did you mean +trainer.max_steps?"),
    "unknown key of a callback": (["+callbacks.best.save_top=1"], "+callbacks.best.save_top_k?"),
    "unknown folder": (["+paths.logdir=here"], "paths.logdir:", "paths.log_dir?"),
    "no callback": (["+callbacks.mine.patience=1"], "callbacks.mine:"),
    "unknown experiment group": (["experimnt=debug"], "did you mean experiment?"),
    "tags": (["tags=first"], "tags=first", "tags=[first]"),
    "number of tasks": (["data.train_tasks=0"], "data.train_tasks=0"),
    "unknown source": (["data.source=ftp"], "data.source=ftp", "google"),
    "missing folder": (["data.path=/no/such/folder"], "/no/such/folder"),
    "no shots": (["data.shots=0"], "data.shots=0"),
    "too many shots": (["data.shots=30"], "data.shots=30", "data.samples_per_class"),
    # More than any memory: nothing of that size may be tried first.
    "far too many shots": (["data.shots=1000000000000"], "but there are 20 of", "ask for fewer"),
    "more than any memory": (["model.hidden_channels=10000000000000"], "not enough memory for"),
    "too many ways": (["data.ways=80"], "data.ways=80", "69"),
    "inner steps": (["algorithm.inner_steps=0"], "algorithm.inner_steps=0"),
    "inner learning rate": (["algorithm.inner_lr=-1"], "algorithm.inner_lr=-1"),
    "endless": (["algorithm.inner_lr=inf"], "algorithm.inner_lr=inf: must be a number above 0"),
    "given twice": (["algorithm=baseline_pp", "+algorithm.frozen=true"], "frozen: this choice"),
    "not a number": (["data.shots=five"], "data.shots=five"),
    "notes": (["notes=[1]"], "notes=[1]: must be text"),
    "no folder of a cache": (["data.cache_dir=null"], "data.cache_dir=None: must be a path"),
    "folders": (["data.path=[1]"], "data.path=[1]: must be a path"),
    "server": (["data.base_url=null"], "data.base_url=None"),
    "channels": (["model.image_channels=-1"], "model.image_channels=-1: must be a whole number"),
    "outer learning rate": (["optimizer.lr=fast"], "optimizer: Adam: ", "(given: lr=fast)"),
    "steps between checks": (["trainer.log_every_n_steps=few"], "trainer.log_every_n_steps=few"),
    "a first validation": (["trainer.num_sanity_val_steps=few"], "num_sanity_val_steps=few"),
    "name of a checkpoint": (["callbacks.best.filename=1"], "callbacks.best.filename=1: must be"),
    "no seed": (["seed=null"], "seed=None: must be a whole number from 0"),
    "seed that is no number": (["seed=abc"], "seed=abc: must be"),
    "seed of evaluation": (["data.eval_seed=-1"], "data.eval_seed=-1: must be"),
    "seed of the split": (["data.split_seed=1.5"], "data.split_seed=1.5: must be"),
    "no checkpoint": (["ckpt_path=/no/such.ckpt"], "/no/such.ckpt"),
    "clipping": (["+trainer.gradient_clip_val=1"], "learner.gradient_clip_norm"),
    "graph without a GPU": (["learner.cuda_graph=true"], "learner.cuda_graph=true", "trainer=gpu"),
    "graph and steps again": (
        ["learner.cuda_graph=true", "learner.recompute_steps=true"],
        "learner.cuda_graph=true",
        "learner.recompute_steps=true",
    ),
    "graph of another kind": (["learner.cuda_graph=2"], "learner.cuda_graph=2", "true or false"),
    "accumulation": (["+trainer.accumulate_grad_batches=2"], "learner.tasks_per_chunk"),
    "half precision": (["trainer.precision=16-mixed"], "bf16-mixed"),
    "epochs": (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
    "a try": (["+trainer.fast_dev_run=true"], "trainer.max_epochs=1"),
    "no validation": (["+trainer.limit_val_batches=0"], "data.val_batches=1"),
    "validation too late": (["+trainer.check_val_every_n_epoch=9"], "trainer.max_epochs=2"),
    "fewer samples": (["data.train_samples_per_class=1"], "train_samples_per_class=1", "2"),
    "more samples": (["data.train_samples_per_class=21"], "data.samples_per_class"),
    "drawings": (["data.samples_per_class=true"], "data.samples_per_class=True: expected a whole"),
    "schedule": (
        ["algorithm=maml_pp", "algorithm.multi_step_epochs=true"],
        "algorithm.multi_step_epochs=True: must be a whole number",
    ),
    "patience": (["scheduler=plateau", "scheduler.patience=few"], "ReduceLROnPlateau", "=few"),
    "rate of a schedule": (["scheduler=cosine", "scheduler.eta_min=-1"], "learning rate of -"),
    "rate": (["optimizer=sgd", "optimizer.lr=nan"], "optimizer: SGD", "not finite", "lr=nan"),
    "statistics": (["learner.query_statistics=both"], "query, support or running"),
    "optimiser": (["optimizer.lr=-1"], "learning rate"),
    "trainer": (["trainer.precision=31"], "31"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_told_in_one_line(tiny, wrong):
    overrides, *says = WRONG[wrong]
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        train(metadraw.compose(*tiny, *overrides))
    line = str(stopped.value)
    assert "\n" not in line
    for part in ["error: ", *says]:
        assert part in line


@pytest.mark.parametrize(
    "wrong",
    ["unknown algorithm", "too many shots", pytest.param("unknown key", marks=pytest.mark.slow)],
)
def test_nothing_but_that_line_is_printed(from_command_line, wrong):
    """Errors of Hydra itself, before the job and within it."""
    overrides, *says = WRONG[wrong]
    done = command(*from_command_line, *overrides)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in ["error: ", *says]:
        assert part in done.stderr
    assert done.stdout == ""


def test_train_then_evaluate_rerun_and_multirun(from_command_line, tmp_path):
    done = command(*from_command_line)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "train" / "runs").iterdir()
    # In a file or a pipe: no bar, and one line per step, as in the log.
    assert done.stderr == ""
    assert done.stdout == (folder / "train.log").read_text()
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("run", "epoch", "epoch", "meta-test", "results:", "curves:")
    ]
    first = json.loads((folder / "results.json").read_text())["test"]
    assert f"meta-test accuracy {100 * first['acc']:.2f}" in done.stdout
    assert str(folder / "curves.png") in done.stdout

    quiet = ["trainer=cpu", f"paths.log_dir={tmp_path}"]
    # From another folder, without a home folder, with output in ASCII only.
    bare = {k: v for k, v in ENVIRONMENT.items() if k != "HOME"} | {"PYTHONIOENCODING": "ascii"}
    bare |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    typed = [f"ckpt_path={folder}/checkpoints/best.ckpt", *quiet]
    done = command(*typed, program="eval.py", cwd=tmp_path, env=bare)
    assert done.returncode == 0, done.stderr
    assert "meta-test accuracy" in done.stdout
    assert "Logging error" not in done.stderr
    (again,) = (tmp_path / "eval" / "runs").iterdir()
    assert "±" in (again / "eval.log").read_text(encoding="utf-8")
    assert json.loads((again / "results.json").read_text())["test"]["acc"] == first["acc"]

    done = command("--config-dir", str(folder), "--config-name", "config", "task_name=rerun")
    assert done.returncode == 0, done.stderr
    (rerun,) = (tmp_path / "rerun" / "runs").iterdir()
    again = json.loads((rerun / "results.json").read_text())
    assert again["test"]["loss"] == first["loss"]
    assert again["algorithm"] == "maml"

    done = command("-m", *from_command_line, "algorithm=maml_pp,fomaml")
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "train" / "multiruns").iterdir()
    configs = [
        json.loads((job.folder / "results.json").read_text())["config"] for job in read_sweep(sweep)
    ]
    assert [config["algorithm_name"] for config in configs] == ["maml_pp", "fomaml"]
    # MAML++ sets its schedule in its own job only.
    assert [bool(config["scheduler"]) for config in configs] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "ckpt_path is missing"),
        (["ckpt_path=/no/such.ckpt"], "no such file"),
        (["ckpt_path=x", "data.shotz=3"], "data.shotz"),
    ],
)
def test_wrong_evaluation(tmp_path, arguments, says):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        evaluate(metadraw.compose(f"paths.output_dir={tmp_path}", *arguments, config="eval"))
    assert says in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_missing_value_is_named():
    with pytest.raises(SystemExit, match=r"error: data\.path is missing"), one_line_errors():
        metadraw.build(metadraw.compose("data=image_folder"))


def test_what_data_sets_share_is_no_data_set():
    with pytest.raises(metadraw.InputError, match="not a data set"):
        metadraw.build(metadraw.compose("data=episodes"))


DATA = (
    "cifar_fs, completion, cub, domain_folder, domains, fair_synthetic, fc100, icons, "
    "image_folder, mini_imagenet, mixture, navigation, omniglot, quickdraw, sinusoids, table, "
    "tiered_imagenet"
)


def test_help_offers_what_can_be_chosen():
    """Neither base configs nor the groups of another command are offered."""
    train, evaluation = (
        command("--help", program=f"{name}.py").stdout for name in ("train", "eval")
    )
    assert f"\ndata: {DATA}\n" in train
    assert "\nscheduler: cosine, none, one_cycle, plateau\n" in train
    assert "\nlogger: csv, many, none, tensorboard, wandb\n" in train
    assert "\nexperiment: best, best_conv4, completion, debug, fair, navigation, overf" in train
    assert f"\ndata: as_trained, {DATA}\n" in evaluation
    assert "\nmodel: " not in evaluation


def test_help_teaches():
    done = command("--help")
    assert done.returncode == 0
    for part in (
        "python train.py algorithm=fomaml data.shots=5",
        "algorithm: alpha_maml, anil, baseline_pp, boil, cavia, cnp, finetune",
        "inner_lr",
    ):
        assert part in done.stdout


@pytest.mark.parametrize("program", ["train", "eval", "adapt", "demo"])
def test_help_does_not_wait_for_pytorch(program):
    code = f"import sys, metadraw, {program}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert set(metadraw.__all__) <= set(dir(metadraw))
    with pytest.raises(AttributeError, match="nothing"):
        _ = metadraw.nothing


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--cfg", "job"], "_target_: metadraw.algorithms.maml.MAML"),
        (["--cfg", "job", "--resolve", "--package", "data"], "queries: 1"),
        (["--info", "defaults"], "algorithm/maml"),
        (["--info", "all"], "Config search path"),
    ],
)
def test_hydras_own_flags(flags, part):
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert part in done.stdout


def leaves(value, path=""):
    """(dotted key, raw value) of everything in nested dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def test_every_key_of_the_train_config_is_read(tiny, monkeypatch):
    """Below a ``_target_``, a key is an argument that the constructor takes or refuses; every other
    key must be read during a run, by code or by another key's interpolation.
    """
    cfg = metadraw.compose(*tiny)
    keys = dict(leaves(OmegaConf.to_container(cfg)))
    read = set()
    look_up = DictConfig._get_impl

    def recorded(self, key, *args, **kwargs):
        read.add(self._get_full_key(key))
        return look_up(self, key, *args, **kwargs)

    monkeypatch.setattr(DictConfig, "_get_impl", recorded)
    # Reads that copy or save the whole config do not count.
    monkeypatch.setattr("metadraw.training.train.save_config", lambda *_: None)

    def names(cfg):
        return {"algorithm_name": cfg.algorithm_name, "data": {"ways": cfg.data.ways}}

    monkeypatch.setattr("metadraw.training.factory.portable", names)
    train(cfg)
    interpolated = {
        name for value in keys.values() for name in re.findall(r"\$\{([\w.]+)\}", str(value))
    }
    instantiated = {path.rsplit(".", 1)[0] for path in keys if path.endswith("._target_")}
    for path in keys:
        argument = any(path.startswith(f"{parent}.") for parent in instantiated)
        # These two determine Hydra's run folder, see the test of whole commands.
        elsewhere = path in ("task_name", "paths.log_dir")
        # And these two are read once there is a teacher (test_pretrain.py).
        elsewhere |= path in ("teacher.share", "teacher.temperature")
        assert argument or elsewhere or path in read | interpolated, path


@pytest.mark.parametrize(
    "target", ["data", "model", "algorithm", "optimizer", "learner", "trainer"]
)
def test_an_argument_that_nothing_takes_is_refused(tiny, target):
    with pytest.raises(metadraw.InputError, match=rf"{target}\.surplus: there is no such key"):
        metadraw.compose(*tiny, f"+{target}.surplus=1")


@pytest.mark.parametrize(
    "key",
    ["algorithm.network", "algorithm.head", "optimizer.params", "scheduler.optimizer"]
    + ["learner.algorithm", "learner.scheduler"],
)
def test_what_the_program_passes_itself_is_no_key(tiny, key):
    with pytest.raises(metadraw.InputError, match=rf"{key}: there is no such key"):
        metadraw.compose(*tiny, "scheduler=cosine", f"+{key}=1")


def test_arguments_that_something_takes_can_be_added(tiny):
    """By the signature of each target, even if a class passes arguments to its base."""
    cfg = metadraw.compose(
        *tiny,
        "+trainer.max_steps=3",
        "+optimizer.weight_decay=0.1",
        "+callbacks.best.save_top_k=1",
        "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer",
        "+callbacks.timer.duration=00:01:00:00",
        "logger=wandb",
        "+logger.wandb.entity=me",
    )
    assert cfg.callbacks.timer.duration == "00:01:00:00"
    for group in ("data", "optimizer"):
        with open_dict(cfg[group]):
            cfg[group].surplus = 1
        with pytest.raises(metadraw.InputError, match=rf"{group}\.surplus"):
            check(cfg)
        del cfg[group].surplus
    eval_cfg = metadraw.compose("+algorithm.first_order=true", config="eval")
    assert eval_cfg.algorithm.first_order


def test_an_unknown_key_of_an_experiment_file(tiny, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nalgoritm: fomaml\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(metadraw.InputError, match=r"algoritm.*did you mean algorithm"):
        metadraw.compose(*tiny, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")


def choices():
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        group = path.parent.name
        # Of data, the others are no data sets, or need a folder (test_image_folder.py has it) or
        # no folder (test_sinusoids.py, test_navigation.py, test_completion.py, test_fairness.py).
        others = group == "data" and path.stem != "quickdraw"
        # These have tests of their own.
        others |= path.stem in ("squared_error", "sinusoids", "timm")
        others |= path.stem in ("policy_gradient", "navigation", "completion", "fourier")
        others |= path.stem in ("fair_classification", "fair")
        others |= path.stem in ("pretrain", "best", "best_conv4")
        # Every algorithm takes steps elsewhere, beginning with test_meta_gradients.py.
        if group not in ("hydra", "paths", "sweep", "algorithm") and not others:
            yield f"{'' if group != 'experiment' else '+'}{group}={path.stem}".lstrip("+")


@pytest.mark.parametrize("choice", list(choices()))
def test_every_shipped_choice_composes_and_takes_a_step(tiny_for, choice):
    group, _, _ = choice.partition("=")
    own = tiny_for("maml")
    tiny = [o for o in own if o != "trainer=cpu" and not o.startswith(f"{group}.")]
    narrow = ["model.widths=[4,4,4,6]"] if "resnet" in choice else []
    data, learner = metadraw.build(metadraw.compose(*tiny, choice, *narrow))
    gradients, values = learner.meta_gradients(next(iter(data.train_dataloader())))
    assert gradients
    assert values["loss"].isfinite().all()


def switches():
    """The settings of networks and algorithms that are true or false, with their choice."""
    for group in ("algorithm", "model"):
        for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
            for name, value in OmegaConf.to_container(OmegaConf.load(path)).items():
                if isinstance(value, bool) and not name.startswith("_"):
                    yield f"{group}={path.stem}", f"{group}.{name}"


@pytest.mark.parametrize(("choice", "key"), list(switches()))
def test_a_switch_is_true_or_false(choice, key):
    cfg = metadraw.compose(choice, f"{key}=half")
    says = f"error: {key}=half: must be true or false"
    with pytest.raises(SystemExit, match=says), one_line_errors():
        build_learner(cfg)


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_names_real_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_promises_are_shown_by_tests_that_exist():
    promises = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", promises):
        assert f"def {name}(" in tests, name


@pytest.mark.parametrize(
    "line", re.findall(r"^python ((?:train|eval|adapt|demo)\.py .*)$", README, re.MULTILINE)
)
def test_readme_commands_compose(line, tmp_path):
    program, *overrides = line.split("#")[0].split()
    single = [o.split(",")[0] for o in overrides if not o.startswith("-")]
    if "--config-dir" in overrides:
        return  # the re-run of a run, above
    assert metadraw.compose(*single, config=program.removesuffix(".py"))


def test_readme_python_runs(tiny):
    (code,) = re.findall(r"```python\n(import metadraw.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code.replace('"data.shots=5"', f'"data.shots=5", *{tiny}'), names)
    assert names["logits"].shape == (25, 5)
    assert set(names["gradients"]) == {n for n, _ in names["learner"].algorithm.named_parameters()}


def readme_example(name, tmp_path):
    """Write a README example's two files below ``tmp_path``; returns its module name."""
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", README, re.DOTALL)
    for path, text in blocks:
        if Path(path).stem == name:
            target = tmp_path / path
            target.parent.mkdir(parents=True)
            target.write_text(text, encoding="utf-8")
    return [f"hydra.searchpath=[file://{tmp_path / 'configs'}]"]


def test_readme_examples_train(tiny, tmp_path, monkeypatch):
    import metadraw.algorithms

    search = readme_example("sign_maml", tmp_path)
    folder = tmp_path / "src/metadraw/algorithms"
    package = metadraw.algorithms
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    found = train(metadraw.compose(*search, "algorithm=sign_maml", *tiny))
    assert 0 <= found["test"]["acc"] <= 1


@pytest.mark.parametrize("mode", ["run", "below a file", "sweep", "logs", "eval"])
def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path, mode):
    """A file is in the way, because root can write anywhere else."""
    file = tmp_path / "file"
    file.touch()
    given = {
        "run": [f"hydra.run.dir={file}"],
        "below a file": [f"hydra.run.dir={file}/run"],
        "sweep": ["-m", "seed=1,2", f"hydra.sweep.dir={file}"],
        "logs": [],
        "eval": ["ckpt_path=none.ckpt", f"hydra.run.dir={file}"],
    }[mode]
    env = ENVIRONMENT | ({"METADRAW_LOGS": str(file)} if mode == "logs" else {})
    done = command(*given, program="eval.py" if mode == "eval" else "train.py", env=env)
    assert done.returncode == 1
    assert f"error: {file}" in done.stderr
    assert "choose another path" in done.stderr
    assert "Traceback" not in done.stderr
