"""Pre-training: an ordinary classifier of all classes, from which other algorithms start."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import equal
from test_meta_gradients import LR, maml, reference_mean, relative_error
from torch import nn

import metadraw
from metadraw import FewShot, InputError
from metadraw.data.augmentation import Affine
from metadraw.data.episode import joined
from metadraw.models.resnet import ResNet12
from metadraw.training.evaluate import evaluate
from metadraw.training.factory import imitate, start_from
from metadraw.training.train import train

SHAPES = ["data.train_ways=8", "data.train_tasks_per_batch=1", "data.train_queries=2"]


@pytest.fixture
def pretrain(tiny):
    """Overrides for a run of seconds with the experiment's recipe."""
    own = [o for o in tiny if not o.startswith(("model.", "algorithm."))]
    sizes = ["model.widths=[4,4,4,6]", *SHAPES]
    return ["experiment=pretrain", *own, *sizes]


# ---- batches ---------------------------------------------------------------------------------


def test_meta_training_alone_has_tasks_of_its_own_shape(pretrain):
    data, _ = metadraw.build(metadraw.compose(*pretrain))
    batch = next(iter(data.train_dataloader()))
    assert batch.about["classes"].shape == (1, 8)
    assert (batch.support.x.shape[:2], batch.query.x.shape[:2]) == ((1, 8), (1, 16))
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch.about["classes"].shape == (4, 5)


def test_more_ways_need_an_algorithm_that_learns_any_number(tiny):
    with pytest.raises(InputError, match=r"data.train_ways=8: MAML learns a head for data.ways=5"):
        metadraw.build(metadraw.compose(*tiny, "data.train_ways=8"))
    own = [o for o in tiny if not o.startswith("algorithm.")]
    found = train(metadraw.compose(*own, *SHAPES, "algorithm=protonet"))
    assert 0 < found["test"]["acc"] < 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.train_ways=1", "data.train_ways=1: must be a whole number of at least 2"),
        ("data.train_ways=300", "data.train_ways=300: the meta-train split has only 207"),
        ("data.train_shots=99", r"data.train_shots=99 \+ data.train_queries=2 = 101 drawings"),
        ("data.train_tasks_per_batch=0", "data.train_tasks_per_batch=0"),
        ("data.rotation=181", "data.rotation=181: must be a number in 0..180"),
        ("data.zoom=true", "data.zoom=True: must be a number"),
        ("data.shear=-1", "data.shear=-1: must be"),
        ("data.rotation=half", "data.rotation=half: must be a number in 0..180"),
        ("algorithm.label_smoothing=1", "algorithm.label_smoothing=1"),
        ("algorithm.label_smoothing=half", "algorithm.label_smoothing=half: must be at least 0"),
        ("model.dropout=half", "model.dropout=half: must be at least 0, below 1"),
        ("learner.gradient_clip_norm=half", "learner.gradient_clip_norm=half: must be above 0"),
        ("algorithm.temperature=0", "algorithm.temperature=0"),
        ("model.widths=[4,0]", r"model.widths=\[4, 0\]"),
        ("model.widths=[4,half]", r"model.widths=\[4, 'half'\]: must be a list of whole numbers"),
        ("model.widths=half", "model.widths=half: must be a list of whole numbers"),
        ("model.dropout=1", "model.dropout=1"),
        ("model.poolings=5", r"model.poolings=5: must be null for all, or a whole number in 0..4"),
        ("model.image_size=7", "model.image_size=7: 3 poolings need at least 8 pixels"),
        ("algorithm.mirror_images=2", "algorithm.mirror_images=2: must be true or false"),
    ],
)
def test_wrong_input(pretrain, override, says):
    with pytest.raises(Exception, match=says):
        metadraw.build(metadraw.compose(*pretrain, override))


# ---- networks --------------------------------------------------------------------------------


@pytest.mark.parametrize(("poolings", "places"), [(None, 1), (3, 3), (0, 28)])
def test_features_are_the_mean_over_the_places_that_poolings_leave(poolings, places):
    network = ResNet12(widths=[4, 4, 4, 6], poolings=poolings).double()
    pictures, seen = torch.rand(3, 1, 28, 28, dtype=torch.float64), []
    network[-1].register_forward_hook(lambda _, inputs, output: seen.append(output))
    features = network(pictures)
    assert seen[0].shape == (3, 6, places, places)
    torch.testing.assert_close(features, seen[0].flatten(2).mean(dim=2))


def test_mirror_images_are_averaged_in_evaluation_alone(pretrain):
    (data, plain), (_, both) = (
        metadraw.build(metadraw.compose(*pretrain, "data.mirror=false", *more))
        for more in ([], ["algorithm.mirror_images=true"])
    )
    batch = data.episodes("train")(torch.arange(1))
    assert equal(plain.meta_gradients(batch)[0], both.meta_gradients(batch)[0])
    task = data.episodes("test")(torch.arange(1)).task(0)
    mirrored = task._replace(
        support=task.support._replace(x=task.support.x.flip(-1)),
        query=task.query._replace(x=task.query.x.flip(-1)),
    )
    # What is the same seen from either side is classified the same.
    one, other = (both.answer(both.adapt(each), each) for each in (task, mirrored))
    torch.testing.assert_close(one, other)
    one, other = (plain.answer(plain.adapt(each), each) for each in (task, mirrored))
    assert not torch.allclose(one, other)
    with torch.no_grad():
        both.algorithm.eval()
        features = [plain.algorithm.eval().features(x) for x in (task.query.x, mirrored.query.x)]
        torch.testing.assert_close(both.algorithm.features(task.query.x), sum(features) / 2)


# ---- augmentation ----------------------------------------------------------------------------


def affine(picture, rotation=0.0, zoom=0.0, shear=0.0, numbers=(0.5, 0.5, 0.5)):
    given = (torch.tensor([number], dtype=torch.float64) for number in numbers)
    return Affine(rotation, zoom, shear)(picture[None, None], *given)[0, 0]


def test_affine_by_hand():
    picture = torch.rand(28, 28)
    assert torch.allclose(affine(picture, 15, 0.3, 10), picture, atol=1e-6)
    for number, quarters in ((1, 1), (0, -1)):  # counterclockwise, clockwise
        turned = affine(picture, rotation=90, numbers=(number, 0.5, 0.5))
        assert torch.allclose(turned, picture.rot90(quarters), atol=1e-5)
    square = torch.zeros(28, 28)
    square[10:18, 10:18] = 1  # 8 x 8 in the middle
    larger = affine(square, zoom=0.5, numbers=(0.5, 1, 0.5))
    smaller = affine(square, zoom=0.5, numbers=(0.5, 0, 0.5))
    assert larger.sum() == pytest.approx(64 * 1.5**2, rel=0.02)
    assert smaller.sum() == pytest.approx(64 / 1.5**2, rel=0.1)
    # A vertical line slants by the tangent: over 20 rows to the right by 20 * tan(30 degrees).
    line = torch.zeros(28, 28)
    line[4:24, 13:15] = 1
    slanted = affine(line, shear=30, numbers=(0.5, 0.5, 1))
    columns = torch.arange(28.0)
    centers = (slanted * columns).sum(1)[4:24] / slanted.sum(1)[4:24]
    assert abs(abs(centers[-1] - centers[0]) - 19 * math.tan(math.radians(30))) < 0.2


def test_only_meta_training_is_augmented_and_the_same_every_time(pretrain):
    cfg = metadraw.compose(*pretrain)
    data, again = (metadraw.build(cfg)[0] for _ in range(2))
    plain, _ = metadraw.build(
        metadraw.compose(*pretrain, "data.rotation=0", "data.zoom=0", "data.shear=0")
    )
    numbers = torch.arange(4)
    train_tasks = data.episodes("train")(numbers)
    assert equal(train_tasks, again.episodes("train")(numbers))
    assert not equal(train_tasks, plain.episodes("train")(numbers))
    assert torch.equal(
        train_tasks.about["classes"], plain.episodes("train")(numbers).about["classes"]
    )
    assert equal(data.episodes("val")(numbers), plain.episodes("val")(numbers))
    assert 0 <= train_tasks.query.x.min() <= train_tasks.query.x.max() <= 1 + 1e-6


# ---- training --------------------------------------------------------------------------------


class Ordinary(nn.Module):
    """The same network and classifier as PyTorch users write them, with running statistics."""

    def __init__(self, learner):
        super().__init__()
        self.network = ResNet12(widths=[4, 4, 4, 6], poolings=3)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = True
                module.register_buffer("running_mean", torch.zeros(module.num_features))
                module.register_buffer("running_var", torch.ones(module.num_features))
                module.register_buffer("num_batches_tracked", torch.tensor(0))
        self.network.load_state_dict(learner.algorithm.network.state_dict(), strict=False)
        self.classifier = nn.Linear(6, learner.algorithm.classifier.out_features)
        self.classifier.load_state_dict(learner.algorithm.classifier.state_dict())

    def forward(self, x):
        return self.classifier(self.network(x))


def test_it_is_ordinary_training(pretrain):
    """Three steps of SGD: the parameters and running statistics of plain PyTorch."""
    data, learner = metadraw.build(metadraw.compose(*pretrain))
    learner, ordinary = learner.double(), Ordinary(learner).double()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (learner.algorithm, ordinary)]
    for step in range(3):
        batch = data.episodes("train")(torch.tensor([step])).to(torch.float64)
        means, _ = learner.meta_gradients(batch)
        for name, parameter in learner.algorithm.meta_parameters().items():
            parameter.grad = means[name]
        learner.algorithm.outer_step(means, optimizers[0])
        task = batch.task(0)
        examples = joined(task.support, task.query)
        loss = F.cross_entropy(
            ordinary(examples.x), task.about["classes"][examples.y], label_smoothing=0.1
        )
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    expected = ordinary.network.state_dict()
    for name, value in learner.algorithm.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    for name in learner.algorithm.statistics:
        own = learner.algorithm.get_buffer(name.removeprefix("network.").replace(".", "-"))
        right = expected[name.removeprefix("network.")]
        torch.testing.assert_close(own, right, rtol=1e-9, atol=1e-12)
    # In evaluation, features are those of the ordinary network in evaluation mode.
    task = data.episodes("test")(torch.tensor([0])).to(torch.float64).task(0)
    state = learner.adapt(task)
    with torch.no_grad():
        support, query = (ordinary.network.eval()(e.x) for e in (task.support, task.query))
    center = learner.algorithm.center
    support, query = (F.normalize(f - center, dim=1) for f in (support, query))
    distances = ((query[:, None] - support) ** 2).sum(dim=2)  # of one shot, in the labels' order
    probabilities = (-distances / 0.1).softmax(dim=1)
    torch.testing.assert_close(learner.answer(state, task).softmax(dim=1), probabilities)
    # One drawing does not depend on the others.
    alone = task._replace(query=task.query._replace(x=task.query.x[:1], y=task.query.y[:1]))
    torch.testing.assert_close(learner.answer(state, alone), learner.answer(state, task)[:1])


def test_a_run_and_what_starts_from_it(pretrain, tiny, tmp_path):
    found = train(metadraw.compose(*pretrain))
    assert found["test"]["query_statistics"] == "running"
    assert found["test"]["inner_steps"] == 0
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    saved = torch.load(best, weights_only=True)["state_dict"]
    # In use, too, it goes by running statistics, and is as in evaluation.
    few_shot, (data, learner) = FewShot(best), metadraw.load(best)
    assert few_shot.learner.query_statistics == "running"
    task = data.episodes("test")(torch.tensor([0])).task(0)
    examples = {str(label): task.support.x[label : label + 1] for label in range(5)}
    probabilities = few_shot.adapt(examples).probabilities(task.query.x)
    expected = learner.answer(learner.adapt(task), task).softmax(dim=1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-5)
    # Another head on the same features, without any training.
    own = [o for o in pretrain if not o.startswith("paths.")]
    zero = [f"init_from={best}", "trainer.max_epochs=0", f"paths.output_dir={tmp_path / 'zero'}"]
    other = train(metadraw.compose(*own, "algorithm=logistic_regression", *zero))
    assert other["train"]["epochs"] == other["train"]["outer_steps"] == 0
    assert other["init_from"] == str(best)
    assert 0 < other["val"]["acc"] < 1
    kept = torch.load(tmp_path / "zero" / "checkpoints" / "best.ckpt", weights_only=True)
    for name, value in kept["state_dict"].items():
        if "classifier" not in name:
            assert torch.equal(value, saved[name])
    own = [o for o in tiny if not o.startswith(("model.", "paths."))]
    model = ["model=resnet12_small", "model.widths=[4,4,4,6]"]
    start = ["optimizer=sgd", "optimizer.lr=0.000001", f"init_from={best}"]
    where = f"paths.output_dir={tmp_path / 'maml'}"
    train(metadraw.compose(*own, *model, *start, where))
    trained = torch.load(tmp_path / "maml" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in trained["state_dict"].items():
        if name.startswith("algorithm.network."):
            torch.testing.assert_close(value, saved[name], rtol=0, atol=1e-4)
    for overrides, says in (
        ([*model[:1], "model.widths=[4,4,4,7]"], r"init_from=.*: of another network: network\.\S+"),
        (["model=conv4"], "of another network"),
    ):
        with pytest.raises(InputError, match=says):
            train(metadraw.compose(*own, *overrides, *start, f"paths.output_dir={tmp_path / 'x'}"))
    with pytest.raises(InputError, match=r"init_from=none.ckpt: there is no such file"):
        train(metadraw.compose(*own, "init_from=none.ckpt", f"paths.output_dir={tmp_path / 'x'}"))


# ---- frozen statistics -----------------------------------------------------------------------

RESNET = ["model=resnet12_small", "model.widths=[4,4,4,6]"]
CONV4 = ["model=conv4", "model.hidden_channels=4"]
FROZEN = "init_statistics=frozen"


@pytest.fixture
def pretrained(pretrain, tmp_path):
    """Pre-train a network; returns a copy of the best checkpoint that may be removed."""

    def make(model):
        folder = tmp_path / "pretrained"
        own = [o for o in pretrain if not o.startswith(("model.", "paths."))]
        train(metadraw.compose(*own, *model, f"paths.output_dir={folder}"))
        return folder / "checkpoints" / "best.ckpt"

    return make


@pytest.fixture
def after(tiny, tmp_path):
    """Overrides for MAML on a pre-trained network, in a folder of this name."""

    def make(model, name, *more):
        own = [o for o in tiny if not o.startswith(("model.", "paths."))]
        return [*own, *model, f"paths.output_dir={tmp_path / name}", *more]

    return make


@pytest.mark.parametrize("model", [RESNET, CONV4])
def test_frozen_statistics_are_those_of_pre_training(model, pretrained, after):
    best = pretrained(model)
    _, source = metadraw.load(best)
    data, learner = metadraw.build(
        metadraw.compose(*after(model, "run", FROZEN, f"algorithm.inner_lr={LR}"))
    )
    start_from(best, learner)
    task = data.episodes("test")(torch.tensor([0])).task(0)
    with source._mode(training=False), torch.no_grad():
        expected = source.algorithm.features(task.query.x)
    for training in (True, False):
        with learner._mode(training), torch.no_grad():
            features = learner.algorithm.features(task.query.x)
            alone = learner.algorithm.features(task.query.x[:1])
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(alone, expected[:1])  # whatever else is in the batch

    # Away from zeros and ones, statistics matter to the inner loop and to what goes through it.
    learner = learner.double()
    batch = data.episodes("train")(torch.arange(3)).to(torch.float64)
    found, _ = learner.meta_gradients(batch)
    learner.algorithm.train()
    assert not any(m.training for m in learner.modules() if isinstance(m, nn.BatchNorm2d))
    reference, _ = reference_mean(maml, learner.algorithm, batch, steps=2)
    assert relative_error(found, reference) < 1e-9


def test_a_run_with_frozen_statistics_needs_its_start_no_more(pretrained, after):
    best = pretrained(CONV4)
    kept = torch.load(best, weights_only=True)["state_dict"]
    start = [FROZEN, f"init_from={best}"]
    whole = train(metadraw.compose(*after(CONV4, "whole", *start)))
    train(metadraw.compose(*after(CONV4, "part", *start, "trainer.max_epochs=1")))
    last = best.parents[2] / "part" / "checkpoints" / "last.ckpt"
    best.unlink()
    resumed = [*start, f"ckpt_path={last}"]
    found = train(metadraw.compose(*after(CONV4, "resumed", *resumed)))
    assert found["test"]["loss"] == whole["test"]["loss"]
    assert found["config"]["init_statistics"] == "frozen"
    one, other = (
        best.parents[2] / name / "checkpoints" / "best.ckpt" for name in ("whole", "resumed")
    )
    saved, again = (torch.load(p, weights_only=True)["state_dict"] for p in (one, other))
    assert all(torch.equal(value, again[name]) for name, value in saved.items())
    # The run itself has changed no statistics.
    for layer in range(4):
        for kind in ("running_mean", "running_var"):
            statistics = kept[f"algorithm.{layer}-1-{kind}"]
            assert not torch.equal(statistics, torch.zeros_like(statistics))
            assert torch.equal(saved[f"algorithm.network.{layer}.1.{kind}"], statistics)

    evaluated = evaluate(
        metadraw.compose(
            f"ckpt_path={one}", f"paths.output_dir={best.parents[2] / 'eval'}", config="eval"
        )
    )
    assert evaluated["test"]["loss"] == pytest.approx(whole["test"]["loss"])
    data, learner = metadraw.load(one)
    few_shot = FewShot(one)
    task = data.episodes("test")(torch.tensor([0])).task(0)
    examples = {str(label): task.support.x[label : label + 1] for label in range(5)}
    probabilities = few_shot.adapt(examples).probabilities(task.query.x)
    expected = learner.answer(learner.adapt(task), task).softmax(dim=1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-5)

    # Another run may start from this one, with its statistics or those of each batch.
    for choice, name in ((FROZEN, "frozen"), ("init_statistics=batch", "batch")):
        train(metadraw.compose(*after(CONV4, name, choice, f"init_from={one}")))
    frozen, batch = (
        torch.load(best.parents[2] / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("frozen", "batch")
    )
    mean = "algorithm.network.0.1.running_mean"
    assert torch.equal(frozen["state_dict"][mean], saved[mean])
    assert mean not in batch["state_dict"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["init_statistics=x"], "init_statistics=x: must be batch or frozen"),
        ([FROZEN], "init_statistics=frozen: has no statistics without init_from"),
        (
            [FROZEN, "init_from=none.ckpt", "model.norm=layer"],
            "init_statistics=frozen: Conv4 has no batch norm .*: must be batch",
        ),
    ],
)
def test_statistics_that_cannot_be_frozen(overrides, says, after):
    with pytest.raises(InputError, match=says):
        train(metadraw.compose(*after(CONV4, "run", *overrides)))


@pytest.mark.parametrize("algorithm", ["protonet", "maml_pp"])
def test_a_start_without_statistics_of_its_own(algorithm, checkpoint_of, after):
    """Of MAML++, too, which keeps those of each inner step."""
    start = [FROZEN, f"init_from={checkpoint_of(algorithm)}"]
    with pytest.raises(InputError, match=r"init_from=\S+ kept no running statistics of network\.0"):
        train(metadraw.compose(*after(CONV4, "run", *start)))


@pytest.mark.parametrize(
    ("experiment", "size"),
    [("best", "model.widths=[4,4,4,6]"), ("best_conv4", "model.hidden_channels=4")],
)
def test_the_best_recipes_take_a_step(tiny, experiment, size):
    own = [o for o in tiny if not o.startswith(("model.", "algorithm."))]
    cfg = metadraw.compose(f"experiment={experiment}", *own, size, *SHAPES)
    data, learner = metadraw.build(cfg)
    learner.algorithm.check_classes(data.class_count)
    gradients, values = learner.meta_gradients(next(iter(data.train_dataloader())))
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert values["loss"].isfinite().all()


# ---- a teacher -------------------------------------------------------------------------------


@pytest.fixture
def teacher_of(pretrain, tmp_path):
    """The checkpoint of a pre-trained classifier."""

    def make(*overrides):
        own = [o for o in pretrain if not o.startswith("paths.")]
        where = f"paths.output_dir={tmp_path / 'teacher'}"
        train(metadraw.compose(*own, "trainer.max_epochs=1", *overrides, where))
        return tmp_path / "teacher" / "checkpoints" / "best.ckpt"

    return make


def test_a_student_learns_the_probabilities_of_its_teacher(pretrain, teacher_of):
    """Loss and gradient by the definition, with a teacher that knows orientations, too."""
    path = teacher_of("data.new_classes=rotations", "algorithm.classes=1380")
    cfg = metadraw.compose(
        *pretrain, f"teacher.ckpt_path={path}", "teacher.share=0.7", "teacher.temperature=3"
    )
    data, learner = metadraw.build(cfg)
    imitate(cfg.teacher, learner)
    _, teacher = metadraw.load(path)
    parameters = [name for name, _ in learner.algorithm.named_parameters()]
    assert not any("teacher" in name for name in [*parameters, *learner.state_dict()])
    batch = data.episodes("train")(torch.tensor([0]))
    found, values = learner.meta_gradients(batch)
    task = batch.task(0)
    examples, algorithm = joined(task.support, task.query), learner.algorithm
    with torch.no_grad():
        known = teacher.algorithm.eval().classifier(teacher.algorithm.features(examples.x))
    algorithm.train()
    logits = algorithm.classifier(algorithm.features(examples.x))
    right = task.about["classes"][examples.y]
    own = F.cross_entropy(logits, right, label_smoothing=0.1)
    likely = (known[:, :345] / 3).softmax(1)
    apart = (likely * (likely.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    loss = 0.3 * own + 0.7 * 9 * apart
    gradients = torch.autograd.grad(loss, list(algorithm.parameters()))
    for name, expected in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5)
    assert values["loss"].isfinite().all()


def test_a_run_with_a_teacher_resumes_and_needs_it_no_more_when_done(
    pretrain, teacher_of, tmp_path
):
    path = teacher_of()
    own = [o for o in pretrain if not o.startswith(("paths.", "trainer.max_epochs"))]
    given = [*own, f"teacher.ckpt_path={path}", "trainer.max_epochs=2", "scheduler=none"]

    def run(name, *more):
        folder = tmp_path / name
        train(metadraw.compose(*given, *more, f"paths.output_dir={folder}"))
        return folder / "checkpoints" / "last.ckpt"

    whole, part = run("whole"), run("part", "trainer.max_epochs=1")
    resumed = run("resumed", f"ckpt_path={part}")
    plain = run("plain", "teacher.ckpt_path=null")
    states = [torch.load(each, weights_only=True)["state_dict"] for each in (whole, resumed, plain)]
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])
    path.unlink()
    assert metadraw.load(whole)[1].algorithm.classifier.out_features == 345


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["teacher.share=1.5"], "teacher.share=1.5: must be a number in 0..1"),
        (["teacher.share=half"], "teacher.share=half: must be a number in 0..1"),
        (["teacher.temperature=0"], "teacher.temperature=0: must be a number above 0"),
        (["algorithm.classes=400"], "was trained on 345 classes, and algorithm.classes=400"),
        (["algorithm=protonet"], "but are ProtoNet and SimpleShot"),
        (["teacher.ckpt_path=none.ckpt"], "teacher.ckpt_path=none.ckpt: there is no such file"),
    ],
)
def test_wrong_teachers(pretrain, teacher_of, overrides, says):
    own = [o for o in pretrain if "algorithm." not in o or "algorithm=" not in overrides[0]]
    given = [*own, f"teacher.ckpt_path={teacher_of()}", "learner.query_statistics=support"]
    with pytest.raises(InputError, match=says):
        train(metadraw.compose(*given, *overrides))
