"""Regression: the sinusoids of the MAML paper, from drawing tasks to comparing runs."""

import csv
import json
import math
from functools import partial

import pytest
import torch
from conftest import ROOT, equal, one_of
from test_meta_gradients import (
    LR,
    descend,
    functional_call,
    rates_by_element,
    rates_by_step,
    relative_error,
)

import metadraw
from metadraw import InputError
from metadraw.command.cli import one_line_errors
from metadraw.results.compare import compare
from metadraw.results.report import report
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

STEPS = 3


def build(*overrides):
    return metadraw.build(metadraw.compose("experiment=sinusoids", *overrides))


# ---- tasks -----------------------------------------------------------------------------------


def test_a_task_is_a_sine_of_its_own():
    data, _ = build("data.shots=7", "data.queries=4")
    batch = data.episodes("train")(torch.arange(500))
    amplitude, phase = (batch.about[name][:, None, None] for name in ("amplitude", "phase"))
    for examples, count in ((batch.support, 7), (batch.query, 4)):
        assert examples.x.shape == examples.y.shape == (500, count, 1)
        torch.testing.assert_close(
            examples.y, amplitude * (examples.x - phase).sin(), atol=1e-5, rtol=0
        )
    # Uniform in the ranges of the paper: means and ends.
    for values, least, most in ((amplitude, 0.1, 5), (phase, 0, math.pi), (batch.support.x, -5, 5)):
        assert least <= values.min() <= values.max() <= most
        width, spread = most - least, (most - least) / 12**0.5 / values.numel() ** 0.5
        assert abs(values.mean() - (least + most) / 2) < 5 * spread
        assert values.max() - values.min() > 0.95 * width
    assert not (batch.support.x[:, :4] == batch.query.x).any()


def test_a_task_depends_on_nothing_but_seed_split_and_index():
    data, _ = build()
    sampler = data.episodes("train")
    together = sampler(torch.arange(10))
    assert equal(together.task(7), sampler(torch.tensor([7])).task(0))
    assert not equal(together, data.episodes("val")(torch.arange(10)))
    assert not equal(together, build("seed=1")[0].episodes("train")(torch.arange(10)))
    assert equal(
        data.episodes("test")(torch.arange(3)),
        build("seed=1")[0].episodes("test")(torch.arange(3)),
    )
    more = build("data.shots=20")[0].episodes("train")(torch.arange(10))
    assert torch.equal(more.support.x[:, :10], together.support.x)


def test_the_oracle_knows_amplitude_and_phase():
    told, plain = (build(f"data.oracle={on}")[0].episodes("train") for on in ("true", "false"))
    told, plain = told(torch.arange(5)), plain(torch.arange(5))
    assert torch.equal(told.query.x[..., :1], plain.query.x)
    assert torch.equal(told.query.y, plain.query.y)
    known = torch.stack([plain.about["amplitude"], plain.about["phase"]], dim=-1)
    assert torch.equal(told.query.x[..., 1:], known[:, None].expand(-1, 10, -1))


def test_reptile_with_one_step_is_training_on_all_tasks_at_once():
    """So it is the pre-training of the MAML paper, on support and query points together."""
    data, learner = build("algorithm=reptile", "algorithm.inner_steps=1")
    learner = learner.double()
    batch = data.episodes("train")(torch.arange(4)).to(torch.float64)
    found, _ = learner.meta_gradients(batch)
    points = [torch.cat([getattr(e, name) for e in batch[:2]], dim=1) for name in "xy"]
    algorithm = learner.algorithm
    named = dict(algorithm.named_parameters())
    loss = (outputs(algorithm, named, points[0].flatten(0, 1)) - points[1].flatten(0, 1)).square()
    slopes = torch.autograd.grad(loss.mean(), list(named.values()))
    assert relative_error(found, dict(zip(named, slopes, strict=True))) < 1e-9


def test_meta_training_alone_has_tasks_of_its_own_size():
    data, _ = build("data.train_shots=20", "data.train_queries=3", "data.shots=5")
    sizes = {split: data.episodes(split)(torch.arange(2)) for split in ("train", "test")}
    assert sizes["train"].support.x.shape == (2, 20, 1)
    assert sizes["train"].query.x.shape == (2, 3, 1)
    assert sizes["test"].support.x.shape == (2, 5, 1)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.amplitude=[5,1]", r"data.amplitude=\[5, 1\]: must be two numbers"),
        ("data.phase=3", "data.phase=3: must be two numbers"),
        ("data.shots=[1,5]", r"data.shots=\[1, 5\]: must be one whole number"),
        ("data.train_queries=[1,5]", r"data.train_queries=\[1, 5\]: must be one whole number"),
        ("data.oracle=1", "data.oracle=1: must be true or false"),
        ("data.shots=0", "data.shots=0: must be a whole number of at least 1"),
        ("objective.size=0", "objective.size=0"),
        ("objective.monitor=acc", "objective.monitor=acc: must be one of loss"),
        ("objective.mode=max", "objective.mode=max: must be min for objective.monitor=loss"),
        ("model.hidden=[]", r"model.hidden=\[\]"),
        ("scheduler=plateau scheduler.mode=max", "scheduler.mode=max: must be min for mean sq"),
    ],
)
def test_wrong_input(override, says):
    with pytest.raises(Exception, match=says):
        build(*override.split())


# ---- meta-gradients --------------------------------------------------------------------------


def outputs(algorithm, params, x):
    own = {n.removeprefix("network."): p for n, p in params.items() if n.startswith("network.")}
    features = functional_call(algorithm.network, own, (x,))
    return features @ params["head.weight"].T + params["head.bias"]


def error(algorithm, params, examples):
    return (outputs(algorithm, params, examples.x) - examples.y).square().mean()


def adapted(algorithm, meta, examples, rates=None, first_order=False):
    fast = {name: p for name, p in meta.items() if name.startswith(("network.", "head."))}
    for step in range(STEPS):
        rate = rates(meta, step) if rates else LR
        fast = descend(error(algorithm, fast, examples), fast, rate, first_order)
    return fast


def maml(algorithm, meta, task, **options):
    """Finn et al. 2017, algorithm 2, with equation 3 as a mean."""
    return error(algorithm, adapted(algorithm, meta, task.support, **options), task.query)


def only(part, algorithm, meta, task):
    """Adapts the parameters whose names begin so, and no others."""
    fast = {name: p for name, p in meta.items() if name.startswith(part)}
    for _ in range(STEPS):
        fast = descend(error(algorithm, meta | fast, task.support), fast, LR)
    return error(algorithm, meta | fast, task.query)


anil, boil = partial(only, "head."), partial(only, "network.")


def reptile(algorithm, meta, task):
    """The loss whose gradient Reptile follows: the inner gradients, as constants."""
    both = task.support._replace(
        x=torch.cat([task.support.x, task.query.x]), y=torch.cat([task.support.y, task.query.y])
    )
    end = adapted(algorithm, meta, both, first_order=True)
    return sum((meta[name] * (meta[name] - p).detach() / LR).sum() for name, p in end.items())


def r2d2(algorithm, meta, task):
    """Ridge regression, by the equations of as many unknowns as features."""
    own = {n.removeprefix("network."): p for n, p in meta.items() if n.startswith("network.")}
    support, query = (
        functional_call(algorithm.network, own, (e.x,)) for e in (task.support, task.query)
    )
    ridge = meta["log_ridge"].exp() * torch.eye(support.shape[1], dtype=support.dtype)
    solution = (support.T @ support + ridge).inverse() @ support.T @ task.support.y
    return (meta["scale"] * query @ solution + meta["bias"] - task.query.y).square().mean()


REFERENCES = {
    "maml": maml,
    "fomaml": partial(maml, first_order=True),
    "reptile": reptile,
    "meta_sgd": partial(maml, rates=rates_by_element),
    "anil": anil,
    "boil": boil,
    "r2d2": r2d2,
    "lslr": partial(maml, rates=rates_by_step),
    "alpha_maml": partial(maml, rates=lambda meta, _: [meta["inner_lr"]] * 6),
}


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("algorithm", REFERENCES)
def test_equals_per_task_autograd(algorithm, how):
    settings = [f"algorithm.inner_lr={LR}", f"algorithm.inner_steps={STEPS}"]
    settings = [] if algorithm == "r2d2" else settings
    data, learner = build(f"algorithm={algorithm}", *settings, f"learner.map_tasks={how}")
    learner = learner.double()
    batch = data.episodes("train")(torch.arange(4)).to(torch.float64)
    found, values = learner.meta_gradients(batch)
    gradients, errors = [], []
    for t in range(4):
        named = learner.algorithm.named_parameters()
        meta = {name: p.detach().clone().requires_grad_() for name, p in named}
        loss = REFERENCES[algorithm](learner.algorithm, meta, batch.task(t))
        slopes = torch.autograd.grad(
            loss, list(meta.values()), allow_unused=True, materialize_grads=True
        )
        gradients.append(dict(zip(meta, slopes, strict=True)))
        errors.append(loss.detach())
    mean = {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}
    assert relative_error(found, mean) < 1e-9
    if algorithm != "reptile":
        torch.testing.assert_close(values["loss"], torch.stack(errors), rtol=1e-9, atol=0)


# ---- runs ------------------------------------------------------------------------------------


def tiny(folder, *overrides):
    batches = ["data.train_batches=20", "data.val_batches=4", "data.test_batches=4"]
    where = ["trainer=cpu", "trainer.max_epochs=3", f"paths.output_dir={folder}"]
    return metadraw.compose(
        "experiment=sinusoids", *batches, *where, "optimizer.lr=0.01", *overrides
    )


@pytest.mark.parametrize("algorithm", one_of("maml", "fomaml", "reptile", "meta_sgd"))
def test_a_run_learns_and_speaks_of_errors(algorithm, tmp_path, caplog):
    caplog.set_level("INFO")
    rate = ["algorithm.inner_lr=0.02"] if algorithm == "reptile" else []
    found = train(tiny(tmp_path / "run", f"algorithm={algorithm}", *rate))
    test = found["test"]
    assert test["loss"] < test["loss_before"]
    assert {"loss", "loss_ci95", "loss_before", "tasks"} <= test.keys()
    assert not any("acc" in name for name in test)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = [float(row["val/loss"]) for row in rows]
    # The best checkpoint has the lowest error.
    assert found["val"]["loss"] == pytest.approx(min(errors), abs=1e-6)
    assert f"meta-test mean squared error {test['loss']:.4f} ± " in caplog.text
    for picture in ("curves.png", "episode.png"):
        assert (tmp_path / "run" / picture).stat().st_size > 10_000
    cfg = metadraw.compose(
        f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}",
        f"paths.output_dir={tmp_path / 'again'}",
        "trainer=cpu",
        config="eval",
    )
    assert evaluate(cfg)["test"]["loss"] == test["loss"]


def test_runs_are_compared_and_reported_by_their_errors(tmp_path):
    for algorithm in ("maml", "fomaml"):
        folder = tmp_path / "sweep" / f"algorithm-{algorithm}"
        train(tiny(folder, f"algorithm={algorithm}"))
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(f"- algorithm={algorithm}\n")
    (tmp_path / "sweep" / "multirun.yaml").write_text(
        "hydra:\n  overrides:\n    task: ['algorithm=maml,fomaml']\n"
    )
    folders = sorted((tmp_path / "sweep").glob("algorithm-*"))
    text = compare(folders)
    losses = [json.loads((f / "results.json").read_text())["test"]["loss"] for f in folders]
    assert "| run " in text
    assert "| loss " in text
    assert all(f"{loss:.4f} ± " in text for loss in losses)
    assert f"**{losses[1] - losses[0]:+.4f} ± " in text or f"{losses[1] - losses[0]:+.4f}" in text
    with pytest.raises(InputError, match="metric=acc: must be one of loss, loss_before"):
        compare(folders, metric="acc")
    page = report(tmp_path / "sweep", tmp_path / "report")
    assert "Meta-test mean squared error, ± half its 95 % interval" in page
    assert all(f"{loss:.4f} ± " in page for loss in losses)
    assert (tmp_path / "report" / "curves.png").stat().st_size > 10_000


def test_tasks_of_another_kind_are_refused(tmp_path):
    train(tiny(tmp_path / "run", "trainer.max_epochs=1"))
    own = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(InputError, match=r"trained on tasks without classes \(Sinusoids\)"):
        metadraw.FewShot(own)
    for checkpoint, data, says in (
        (ROOT / "checkpoints" / "best.ckpt", "sinusoids", "QuickDraw: must have classes"),
        (own, "quickdraw", "Sinusoids: must have no classes"),
    ):
        overrides = [f"ckpt_path={checkpoint}", f"data={data}", f"paths.output_dir={tmp_path}"]
        with pytest.raises(InputError, match=says):
            evaluate(metadraw.compose(*overrides, config="eval"))


def test_other_sinusoids_in_evaluation(tmp_path):
    train(tiny(tmp_path / "run", "trainer.max_epochs=1"))
    cfg = metadraw.compose(
        f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}",
        *("data=sinusoids", "data.amplitude=[6,7]", "data.test_batches=2"),
        f"paths.output_dir={tmp_path / 'wide'}",
        config="eval",
    )
    found = evaluate(cfg)
    assert found["data"]["amplitude"] == [6, 7]
    assert (found["test"]["tasks"], found["config"]["data"]["shots"]) == (50, 10)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=sinusoids", "objective=squared_error"], r"model\.\w+: .*choose another model"),
        (["data=sinusoids", "model=mlp"], r"objective\.ways: .*choose another objective"),
        (["objective=squared_error"], r"outputs of shape \[5, 1\] for targets of shape \[5\]"),
        (["experiment=sinusoids", "algorithm=protonet"], "ProtoNet learns classes"),
        (["algorithm=protonet", "inner_optimizer=adam"], "there is no such key"),
    ],
)
def test_choices_that_do_not_fit_are_told_in_one_line(overrides, says):
    with pytest.raises(SystemExit, match=says) as stopped, one_line_errors():
        metadraw.build(metadraw.compose(*overrides))
    assert "\n" not in str(stopped.value)
