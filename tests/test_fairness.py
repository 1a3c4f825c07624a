"""Fair-MAML: the regularised objective, its exact meta-gradient, its synthetic tasks and tables."""

import csv
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import equal
from test_meta_gradients import LR, descend, functional_call, relative_error

import metadraw
from metadraw import InputError
from metadraw.command.cli import one_line_errors
from metadraw.data.episode import Examples
from metadraw.data.table import Table
from metadraw.objectives.fair_classification import CRITERIA, FairClassification
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

STEPS = 3


def build(*overrides):
    return metadraw.build(metadraw.compose("experiment=fair", *overrides))


# ---- the objective ---------------------------------------------------------------------------

#: Chance of a positive outcome, label, protected.
SEEN = [(0.9, 1, True), (0.4, 1, True), (0.2, 0, True), (0.8, 1, False), (0.7, 0, False)]


def seen(rows=SEEN):
    chance, y, protected = (torch.tensor(column) for column in zip(*rows, strict=True))
    outputs = torch.stack([1 - chance, chance], dim=1).log()
    return outputs, Examples(torch.zeros(len(rows), 2), y, {"protected": protected})


@pytest.mark.parametrize(
    ("criterion", "rate"), [("demographic_parity", 1.5 / 3), ("equal_opportunity", 1.3 / 2)]
)
def test_the_loss_has_the_regulariser(criterion, rate):
    outputs, examples = seen()
    objective = FairClassification(gamma=2.0, criterion=criterion)
    expected = F.cross_entropy(outputs, examples.y) + 2 * (1 - rate)
    torch.testing.assert_close(objective.loss(outputs, examples), expected)
    # Padding changes nothing.
    padded, more = seen([*SEEN, (0.01, 1, True)])
    weighted = more._replace(extra={**more.extra, "weight": torch.tensor([1.0] * 5 + [0.0])})
    torch.testing.assert_close(objective.loss(padded, weighted), expected)
    found, known = objective.metrics(padded, weighted), objective.metrics(outputs, examples)
    for name, value in known.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_the_differences_between_groups():
    objective = FairClassification(gamma=0.0, criterion="demographic_parity")
    found = objective.metrics(*seen())
    assert list(found) == list(objective.measured)
    assert found["parity"].item() == pytest.approx(1 - 1 / 3)
    assert found["opportunity"].item() == pytest.approx(1 - 1 / 2)
    assert found["acc"].item() == pytest.approx(3 / 5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_group_may_be_missing(criterion):
    objective = FairClassification(gamma=3.0, criterion=criterion)
    outputs, examples = seen([row for row in SEEN if not row[2]])
    outputs.requires_grad_()
    loss = objective.loss(outputs, examples)
    torch.testing.assert_close(loss, F.cross_entropy(outputs, examples.y))
    assert torch.autograd.grad(loss, outputs)[0].isfinite().all()
    found = objective.metrics(outputs, examples)
    assert found["parity"] == found["opportunity"] == 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("objective.gamma=-1", "objective.gamma=-1: must be a number of at least 0"),
        ("objective.gamma=true", "objective.gamma=True: must be a number"),
        ("objective.gamma=nan", "objective.gamma=nan: must be a number"),
        ("objective.criterion=both", "objective.criterion=both: must be one of demographic_parity"),
        (
            "objective.monitor=parity",
            "objective.mode=max: must be min for objective.monitor=parity",
        ),
        ("data.slope=[1]", r"data.slope=\[1\]: must be two numbers"),
        ("data.angle=[1,true]", "must be two numbers"),
        ("data.queries=[1,5]", r"data.queries=\[1, 5\]: must be one whole number"),
        ("data=sinusoids", "these tasks have no classes"),
    ],
)
def test_wrong_input(override, says):
    with pytest.raises(SystemExit, match=says), one_line_errors():
        build(override)


def test_tasks_without_a_protected_group_are_refused(tiny_learner):
    with pytest.raises(InputError, match="these tasks have no protected group"):
        tiny_learner("objective=fair_classification", "data.ways=2")


# ---- meta-gradients --------------------------------------------------------------------------


def outputs_of(algorithm, params, x):
    own = {n.removeprefix("network."): p for n, p in params.items() if n.startswith("network.")}
    features = functional_call(algorithm.network, own, (x,))
    return features @ params["head.weight"].T + params["head.bias"]


def regularised(algorithm, params, examples, gamma, criterion):
    """Slack et al. 2020: the loss, and gamma times 1 minus the protected group's mean chance."""
    logits = outputs_of(algorithm, params, examples.x)
    chances = []
    for row, label, protected in zip(logits, examples.y, examples.extra["protected"], strict=True):
        if protected and (criterion == "demographic_parity" or label == 1):
            chances.append(row[1].exp() / row.exp().sum())
    loss = F.cross_entropy(logits, examples.y)
    return loss + gamma * (1 - sum(chances) / len(chances)) if chances else loss


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_equals_per_task_autograd(criterion, how):
    settings = [f"algorithm.inner_lr={LR}", f"algorithm.inner_steps={STEPS}", "data.queries=7"]
    settings += ["objective.gamma=1.5", f"objective.criterion={criterion}", "data.shots=2"]
    data, learner = build(*settings, f"learner.map_tasks={how}")
    learner = learner.double()
    batch = data.episodes("train")(torch.arange(8)).to(torch.float64)
    members = batch.support.extra["protected"]
    assert not members.any(dim=1).all()  # some support set has nobody of the group
    assert members.any()
    found, values = learner.meta_gradients(batch)
    gradients, losses = [], []
    for t in range(8):
        task, named = batch.task(t), learner.algorithm.named_parameters()
        meta = {name: p.detach().clone().requires_grad_() for name, p in named}
        fast = meta
        for _ in range(STEPS):
            loss = regularised(learner.algorithm, fast, task.support, 1.5, criterion)
            fast = descend(loss, fast, LR)
        loss = regularised(learner.algorithm, fast, task.query, 1.5, criterion)
        slopes = torch.autograd.grad(loss, list(meta.values()))
        gradients.append(dict(zip(meta, slopes, strict=True)))
        losses.append(loss.detach())
    mean = {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}
    assert relative_error(found, mean) < 1e-9
    torch.testing.assert_close(values["loss"], torch.stack(losses), rtol=1e-9, atol=0)


# ---- synthetic tasks -------------------------------------------------------------------------


def test_synthetic_tasks_are_as_described():
    data, _ = build("data.shots=4", "data.queries=400", "data.angle=[0.4,0.4]")
    batch = data.episodes("train")(torch.arange(1000))
    assert batch.support.x.shape == (1000, 4, 2)
    assert torch.equal(batch.about["classes"], torch.tensor([[0, 1]] * 1000))
    slope = batch.about["slope"][:, None]
    assert -5 <= slope.min() < -4.5
    assert -0.5 < slope.max() <= 0
    x, y, protected = batch.query.x, batch.query.y, batch.query.extra["protected"]
    assert torch.equal(y == 1, x[..., 1] > slope * x[..., 0])
    # The mixture's mean is 0, and its covariance that of both parts and of their means.
    points = x.flatten(0, 1).double()
    torch.testing.assert_close(points.mean(0), points.new_zeros(2), atol=0.03, rtol=0)
    torch.testing.assert_close(
        points.T.cov(), points.new_tensor([[11.5, 5.0], [5.0, 8.0]]), atol=0.15, rtol=0
    )
    # The group is drawn with the probability of the second distribution, by Bayes' rule.
    c, s = math.cos(0.4), math.sin(0.4)
    turned = points @ points.new_tensor([[c, s], [-s, c]])
    densities = [
        torch.distributions.MultivariateNormal(
            points.new_tensor(mean), points.new_tensor(covariance)
        )
        .log_prob(turned)
        .exp()
        for mean, covariance in (([2, 2], [[5, 1], [1, 5]]), ([-2, -2], [[10, 1], [1, 3]]))
    ]
    chance, members = densities[1] / sum(densities), protected.flatten().double()
    for low in (0.0, 0.25, 0.5, 0.75):
        of = (chance >= low) & (chance < low + 0.25)
        assert (members[of] - chance[of]).mean().abs() < 4 * 0.5 / of.sum() ** 0.5
    # So the group has fewer positive outcomes, more so for a smaller angle.
    gap = y[~protected].double().mean() - y[protected].double().mean()
    other = build("data.angle=[1.6,1.6]", "data.queries=400")[0]
    wide = other.episodes("train")(torch.arange(100)).query
    members = wide.extra["protected"]
    assert gap > 0.3
    assert wide.y[~members].double().mean() - wide.y[members].double().mean() < gap - 0.1


def test_a_synthetic_task_depends_on_nothing_but_seed_split_and_index():
    data, _ = build()
    sampler = data.episodes("train")
    together = sampler(torch.arange(10))
    assert equal(together.task(7), sampler(torch.tensor([7])).task(0))
    assert not equal(together, data.episodes("val")(torch.arange(10)))
    assert not equal(together, build("seed=1")[0].episodes("train")(torch.arange(10)))
    more = build("data.shots=9", "data.queries=120")[0].episodes("train")(torch.arange(10))
    assert torch.equal(more.support.x[:, :5], together.support.x)
    assert torch.equal(more.query.extra["protected"][:, :100], together.query.extra["protected"])


# ---- tables ----------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """A file of 10 regions of 30 synthetic people each, and the overrides that read it."""
    random = torch.Generator().manual_seed(0)
    with (tmp_path / "people.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["region", "age", "income", "sex", "constant", "hours"])
        for number in torch.arange(300)[torch.randperm(300, generator=random)].tolist():
            age, hours = torch.randint(20, 60, [2], generator=random).tolist()
            income = ">50K" if age + (number % 7) * 5 > 50 else "<=50K"
            sex = "f" if (number // 10) % 3 else "m"
            rows.writerow([f"r{number % 10}", age, income, sex, 1, hours + number / 1000])
    columns = {"target": "income", "protected": "sex", "task": "region"}
    typed = [f"data.{key}={value}" for key, value in columns.items()]
    typed += ["data.positive='>50K'", "data.group=f", f"data.path={tmp_path / 'people.csv'}"]
    return ["data=table", *typed, "data.shots=5", "data.queries=10"]


def test_tasks_of_a_table(table, tmp_path):
    data, _ = build(*table)
    with (tmp_path / "people.csv").open() as file:
        rows = list(csv.DictReader(file))
    splits = data.splits
    assert [len(splits[s]) for s in ("train", "val", "test")] == [6, 2, 2]
    everything = [name for names in splits.values() for name in names]
    assert sorted(everything) == [f"r{i}" for i in range(10)]
    training = [row for row in rows if row["region"] in splits["train"]]
    columns = ("age", "constant", "hours")
    raw = torch.tensor([[float(row[c]) for c in columns] for row in training]).double()
    mean, deviation = raw.mean(0), raw.std(0, correction=0)
    deviation[1] = 1  # a constant is only centred
    # Every example is a row of its task, and no row is drawn twice in a task.
    by_hours = {float(row["hours"]): row for row in rows}
    for split, names in splits.items():
        batch = data.episodes(split)(torch.arange(40))
        regions = [f"r{i}" for i in batch.about["task"].tolist()]
        assert set(regions) == set(names)
        for t, region in enumerate(regions):
            task = batch.task(t)
            x = torch.cat([task.support.x, task.query.x]).double() * deviation + mean
            y = torch.cat([task.support.y, task.query.y])
            member = torch.cat([e.extra["protected"] for e in (task.support, task.query)])
            found = [min(by_hours, key=lambda h, v=v: abs(h - v)) for v in x[:, 2].tolist()]
            assert len(set(found)) == 15
            for hours, age, label, group in zip(found, x[:, 0], y, member, strict=True):
                row = by_hours[hours]
                assert row["region"] == region
                assert float(row["age"]) == pytest.approx(age.item(), abs=1e-3)
                assert (row["income"] == ">50K") == bool(label)
                assert (row["sex"] == "f") == bool(group)
    sampler = data.episodes("test")
    assert equal(sampler(torch.arange(9)).task(4), sampler(torch.tensor([4])).task(0))
    chosen, _ = build(*table, "data.features=[hours,age]")
    assert chosen.episodes("test")(torch.arange(1)).support.x.shape == (1, 5, 2)


WRONG = {
    "path": ({"path": "no.csv"}, r"data.path=no.csv: not a readable CSV file"),
    "target": (
        {"target": "incom"},
        "data.target=incom: .* no such column; the closest .* is income",
    ),
    "same": ({"task": "sex"}, "data.protected=sex, data.task=sex: must be three different"),
    "feature": ({"features": ["ages"]}, "data.features=ages: .* no such column; .* is age"),
    "used": ({"features": ["sex"]}, "data.features: sex is target, protected attribute or task"),
    "text": ({"features": "age"}, "data.features=age: must be a list of columns"),
    "none": ({"features": []}, "data.features: .* has no column left"),
    "positive": (
        {"positive": 1},
        "data.positive=1: no row has this value of income: .* <=50K, >50K",
    ),
    "group": ({"group": "x"}, "data.group=x: no row has this value of sex"),
    "shots": ({"shots": 25}, "data.shots=25 .* = 35 rows of a task, but there are 30 of r"),
    "seed": ({"split_seed": -1}, "data.split_seed=-1: must be a whole number"),
    "tasks": ({"task": "constant", "features": ["age"]}, "has 1 tasks: must be at least 3"),
}


def opened(table, changes):
    """The table with other arguments."""
    arguments = dict(metadraw.compose("experiment=fair", *table).data)
    return Table(**{k: v for k, v in arguments.items() if k != "_target_"} | changes)


def test_what_is_wrong_with_a_table(table):
    for changes, says in WRONG.values():
        with pytest.raises(InputError, match=says) as refused:
            opened(table, changes).episodes("train")
        assert "\n" not in str(refused.value)


ROWS = {
    "r1,old,>50K,f,1,2": "row 302: age is 'old': must be a number",
    "r1,nan,>50K,f,1,2": "row 302: age is 'nan': must be a number",
    "r1,30,>50K,f": "row 302 has not 6 cells",
    "r1,30,>50K,f,1,2,3": "row 302 has not 6 cells",
}


def test_what_is_wrong_with_a_row(table, tmp_path):
    file = tmp_path / "people.csv"
    whole = file.read_text()
    for line, says in ROWS.items():
        file.write_text(f"{whole}{line}\n")
        with pytest.raises(InputError, match=says):
            opened(table, {}).setup()


# ---- runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["synthetic", "table"])
def test_a_run_and_its_evaluation(kind, table, tmp_path, caplog):
    caplog.set_level("INFO")
    small = ["data.train_batches=4", "data.val_batches=2", "data.test_batches=2"]
    small += ["trainer=cpu", "trainer.max_epochs=2", f"paths.output_dir={tmp_path / 'run'}"]
    data = table if kind == "table" else []
    found = train(metadraw.compose("experiment=fair", *data, *small))
    assert {"acc", "parity", "opportunity", "parity_before"} <= found["test"].keys()
    assert (tmp_path / "run" / "episode.png").stat().st_size > 5000
    again = ["trainer=cpu", f"ckpt_path={tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}"]
    cfg = metadraw.compose(*again, f"paths.output_dir={tmp_path / 'again'}", config="eval")
    assert evaluate(cfg)["test"]["parity"] == found["test"]["parity"]
    one = metadraw.compose(
        *again, "data.shots=1", f"paths.output_dir={tmp_path / 'one'}", config="eval"
    )
    assert evaluate(one)["config"]["data"]["shots"] == 1
