"""Resumed runs: new settings are used or refused, and no result is lost."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import every_fifth
from omegaconf import OmegaConf

import metadraw
from metadraw import InputError
from metadraw.results.report import report
from metadraw.training.train import train

SMALL = ["data.train_batches=2", "data.val_batches=1", "data.test_batches=1"]


@pytest.fixture
def run(tiny_for, tmp_path):
    """Train into a folder of this name; returns the results and the folder."""

    def make(name, *overrides, algorithm="protonet"):
        given = [*tiny_for(algorithm), *SMALL, f"paths.output_dir={tmp_path / name}", *overrides]
        cfg = metadraw.compose(*given)
        return train(cfg), Path(cfg.paths.output_dir)

    return make


def last(folder):
    return f"ckpt_path='{folder / 'checkpoints' / 'last.ckpt'}'"


def state(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def group(folder):
    return state(folder)["optimizer_states"][0]["param_groups"][0]


def make_unbeatable(folder):
    """Give a run's best checkpoint a score that nothing later can reach."""
    best, last_state = state(folder, "best"), state(folder)
    best["metadraw_metrics"]["val/acc"] = 1.0
    (key,) = [key for key in last_state["callbacks"] if key.startswith("BestCheckpoint")]
    score = torch.tensor(1.0, dtype=torch.float64)
    kept = last_state["callbacks"][key]
    kept |= {"best_model_score": score, "kth_value": score}
    kept["best_k_models"] = dict.fromkeys(kept["best_k_models"], score)
    torch.save(best, folder / "checkpoints" / "best.ckpt")
    torch.save(last_state, folder / "checkpoints" / "last.ckpt")
    return best


@pytest.mark.parametrize("into", ["moved", "new"])
def test_a_moved_run_folder_keeps_its_best_checkpoint(run, tmp_path, into):
    _, folder = run("run", "data.val_batches=4")
    moved = folder.rename(tmp_path / "moved")
    if into == "moved":  # resumes in its new folder
        (moved / "results.json").unlink()
        (moved / "config.yaml").unlink()
    best = make_unbeatable(moved)
    # Another run has left a file of the same name in its old place.
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(moved / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt")

    found, resumed = run(into, last(moved), "trainer.max_epochs=4", "data.val_batches=4")
    assert found["val"]["acc"] == 1.0
    assert found["checkpoint"] == str(Path("checkpoints", "best.ckpt"))
    assert state(resumed, "best")["epoch"] == best["epoch"]
    assert found["train"]["epochs"] == 4
    seconds = sum(float(row["seconds"]) for row in rows(resumed))  # of all four
    assert found["train"]["seconds_with_validation"] == pytest.approx(seconds, abs=1e-3)  # rounded


def test_nothing_in_a_run_names_its_folder(run):
    """Its folder can therefore move, and be shared."""
    _, folder = run("run")
    files = [*(folder / "checkpoints").iterdir(), folder / "results.json", folder / "config.yaml"]
    assert len(files) == 4
    for file in files:
        assert str(folder).encode() not in file.read_bytes(), file.name


def test_a_best_checkpoint_that_is_lost_is_told(run, caplog):
    _, folder = run("run")
    (folder / "checkpoints" / "best.ckpt").unlink()
    caplog.set_level("INFO")
    found, resumed = run("new", last(folder), "trainer.max_epochs=3")
    assert "the best checkpoint so far was not found" in caplog.text
    assert state(resumed, "best")["epoch"] == 2
    assert found["checkpoint"] == str(Path("checkpoints", "best.ckpt"))


#: Overrides before and now, and what then stands in the optimiser.
AS_TYPED = [
    ([], ["optimizer.lr=0.5"], {"lr": 0.5}),
    ([], ["+optimizer.weight_decay=0.1"], {"lr": 0.001, "weight_decay": 0.1}),
    (["+optimizer.weight_decay=0.1"], [], {"weight_decay": 0.0}),
    ([], ["+optimizer.betas=[0.8,0.9]"], {"betas": [0.8, 0.9]}),
    # After four epochs, with a schedule that was added, lengthened or removed after two.
    ([], ["scheduler=cosine"], {"lr": 0.0}),
    ([], ["scheduler=cosine", "scheduler.T_max=8"], {"lr": 0.0005}),
    (["scheduler=cosine"], ["scheduler=cosine", "scheduler.T_max=8"], {"lr": 0.0005}),
    (["scheduler=cosine"], ["scheduler=cosine", "optimizer.lr=1"], {"lr": 0.0}),
    (["scheduler=cosine"], [], {"lr": 0.001}),
    (["scheduler=cosine"], ["scheduler=plateau"], {"lr": 0.0}),
    ([], ["scheduler=plateau", "optimizer.lr=0.5"], {"lr": 0.5}),
]


@pytest.mark.parametrize(
    ("before", "now", "expected"), every_fifth(pytest.param(*case) for case in AS_TYPED)
)
def test_optimiser_and_schedule_are_as_typed(run, before, now, expected, caplog):
    _, folder = run("run", *before)
    moments = state(folder)["optimizer_states"][0]["state"]
    caplog.set_level("INFO")
    found, resumed = run("new", last(folder), "trainer.max_epochs=4", *now)
    for key, value in expected.items():
        value = tuple(value) if isinstance(value, list) else value
        assert group(resumed)[key] == pytest.approx(value, abs=1e-9), key
    for override in now:
        key, _, value = override.removeprefix("+").partition("=")
        if "." in key:
            assert f"{key}=" in caplog.text
            assert OmegaConf.select(OmegaConf.create(found["config"]), key) is not None
    # The moments continued, and did not restart.
    after = state(resumed)["optimizer_states"][0]["state"]
    assert after[0]["step"] == 2 * moments[0]["step"]


def test_a_schedule_that_is_added_is_that_of_an_uninterrupted_run_from_there_on(run):
    schedule = ["scheduler=cosine", "scheduler.T_max=9", "trainer.max_epochs=4"]
    _, whole = run("whole", *schedule)
    _, first = run("first")
    _, resumed = run("resumed", last(first), *schedule)
    one, other = (state(folder)["lr_schedulers"][0] for folder in (whole, resumed))
    assert one["_last_lr"] == pytest.approx(other["_last_lr"])
    assert one["last_epoch"] == other["last_epoch"] == 4
    assert group(whole)["lr"] == pytest.approx(group(resumed)["lr"])


def test_learned_outer_rates_survive_other_settings(run):
    _, folder = run("run", algorithm="alpha_maml")
    learned = group(folder)["lr"]
    assert learned != 0.001
    more = ["trainer.max_epochs=3", "+optimizer.weight_decay=0.1", "algorithm.outer_hyper_lr=1e-12"]
    _, resumed = run("new", last(folder), *more, algorithm="alpha_maml")
    assert group(resumed)["lr"] == pytest.approx(learned, rel=1e-6)
    assert group(resumed)["weight_decay"] == 0.1


def test_patience_is_as_typed(run):
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.min_delta=2"]
    patience = "callbacks.early_stopping.patience"
    found, folder = run("run", *stopping, f"{patience}=1", "trainer.max_epochs=9")
    assert found["train"]["epochs"] == 2
    found, _ = run("new", last(folder), *stopping, f"{patience}=4", "trainer.max_epochs=9")
    assert found["train"]["epochs"] == 5


def test_a_best_checkpoint_of_other_tasks_is_not_the_best_of_these(run):
    _, folder = run("run")
    best = state(folder, "best")
    found, resumed = run("new", last(folder), "trainer.max_epochs=3", "data.shots=2")
    kept = state(resumed, "best")
    assert kept["epoch"] == 2 > best["epoch"]
    assert kept["metadraw_config"]["data"]["shots"] == found["config"]["data"]["shots"] == 2


def test_settings_of_meta_training_alone_leave_the_best_score_comparable(run):
    _, folder = run("run")
    best = make_unbeatable(folder)
    own = ["data.train_ways=4", "data.train_shots=2", "data.train_queries=3", "data.rotation=9"]
    found, resumed = run("new", last(folder), "trainer.max_epochs=3", *own)
    assert found["val"]["acc"] == 1.0
    assert state(resumed, "best")["epoch"] == best["epoch"]


@pytest.mark.parametrize(
    ("algorithm", "given", "says"),
    [
        ("protonet", ["optimizer=sgd"], "another optimiser cannot use: must be torch.optim.Adam"),
        ("protonet", ["+optimizer.amsgrad=true"], "it lacks 'max_exp_avg_sqs?'"),
        ("protonet", ["trainer.max_epochs=2"], "nothing is left to train.*trainer.max_epochs=4"),
        ("protonet", ["trainer.max_epochs=1"], "has 2 epochs"),
        ("protonet", ["+trainer.max_steps=4"], "nothing is left to train.*has 4 steps"),
        ("meta_sgd", ["algorithm.inner_lr=0.3"], "has learned them already, from 0.01"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_refused(run, tmp_path, algorithm, given, says):
    _, folder = run("run", algorithm=algorithm)
    more = [] if any("max_epochs" in one for one in given) else ["trainer.max_epochs=3"]
    with pytest.raises(InputError, match=says) as refused:
        run("new", last(folder), *more, *given, algorithm=algorithm)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_time_and_weights_that_nothing_goes_on_from(run):
    _, folder = run(
        "run", "+trainer.max_time=00:01:00:00", "+callbacks.best.save_weights_only=true"
    )
    path, took = folder / "checkpoints" / "last.ckpt", state(folder)
    took["callbacks"]["Timer"]["time_elapsed"]["train"] = 100.0
    torch.save(took, path)
    with pytest.raises(InputError, match=r"is 60 s for the whole run.*already took 100 s"):
        run("new", last(folder), "trainer.max_epochs=9", "+trainer.max_time=00:00:01:00")
    with pytest.raises(InputError, match="holds the weights alone"):
        run("new", last(folder).replace("last.ckpt", "best.ckpt"), "trainer.max_epochs=9")


def test_a_run_that_was_killed_before_its_test_is_finished(run):
    """Its folder has every epoch: nothing is left to train, but all results are written."""
    found, folder = run("run")
    for name in ("results.json", "curves.png", "tasks.csv"):
        (folder / name).unlink()
    again, _ = run("run")
    assert again["val"] == found["val"]
    assert again["test"]["acc"] == found["test"]["acc"]
    assert (folder / "curves.png").is_file()


def test_a_folder_of_an_older_version_goes_on(run):
    """Its config lacks keys that are newer than that version, which now have their default."""
    _, folder = run("run", algorithm="maml")
    config, text = folder / "config.yaml", (folder / "config.yaml").read_text()
    lacking = [r"  recompute_steps: false\n", r"  eval_inner_steps: 2\n", r"  queries: 1\n"]
    lacking += [r"  log_every_n_steps: 10\n", r"  image_channels: 1\n"]
    for line in lacking:
        text, count = re.subn(line, "", text)
        assert count, line
    config.write_text(text)
    assert run("run", algorithm="maml")[0]["test"]  # finished, and not refused
    for other in ("learner.recompute_steps=true", "data.queries=2", "algorithm.eval_inner_steps=3"):
        with pytest.raises(InputError, match=f"{other.partition('=')[0]}=None"):
            run("run", other, algorithm="maml")
    with pytest.raises(InputError, match=r"trainer\.max_steps=None"):
        run("run", "+trainer.max_steps=3", algorithm="maml")


def test_a_folder_of_a_gpu_goes_on_on_a_cpu(run):
    """A step as a CUDA graph is the same step."""
    _, folder = run("run")
    config, text = folder / "config.yaml", (folder / "config.yaml").read_text()
    assert "cuda_graph: false" in text
    config.write_text(text.replace("cuda_graph: false", "cuda_graph: true"))
    (folder / "results.json").unlink()
    assert run("run")[0]["test"]


# ---- which weights a result belongs to -------------------------------------------------------


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_an_epoch_without_validation_repeats_none(run, tmp_path):
    every = ["+trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3"]
    _, folder = run("run", *every, algorithm="alpha_maml")
    for name in ("val/acc", "inner_lr/all"):
        assert [bool(row[name]) for row in rows(folder)] == [False, True, False]
    assert all(row["train/acc"] for row in rows(folder))
    assert (folder / "learned.png").is_file()
    assert "finished" in report(folder.parent, tmp_path / "report")


def test_the_best_weights_are_those_that_were_validated(run):
    """Validation after steps 3 and 7 of two epochs of four: the best is one of these two."""
    found, folder = run("run", "+trainer.val_check_interval=3", "data.train_batches=4")
    best = state(folder, "best")
    assert best["global_step"] in (3, 7)
    assert found["val"]["acc"] == pytest.approx(best["metadraw_metrics"]["val/acc"], abs=1e-6)
    assert "val/acc" not in state(folder)["metadraw_metrics"]  # of step 8, which was not


def test_a_run_that_ends_before_any_validation_is_tested(run):
    found, folder = run("run", "trainer.max_epochs=50", "+trainer.max_steps=1")
    assert found["train"]["outer_steps"] == 1
    assert state(folder, "best")["global_step"] == 1
    assert found["val"]["tasks"] == found["test"]["tasks"] == 4


def test_metrics_are_exact_in_any_precision(run):
    found, folder = run("run", "trainer.precision=bf16-true", algorithm="maml")
    with open(folder / "tasks.csv") as file:
        tasks = list(csv.DictReader(file))
    for name in ("acc", "acc_before"):
        correct = [float(task[name]) * 5 for task in tasks]  # of five, a whole number
        assert correct == pytest.approx([round(value) for value in correct], abs=1e-6)
        assert found["test"][name] == pytest.approx(sum(correct) / 5 / len(tasks), abs=1e-6)
    assert all(value.dtype is torch.bfloat16 for value in state(folder)["state_dict"].values())
