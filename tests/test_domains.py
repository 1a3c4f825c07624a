"""Domains and mixtures, on synthetic data sets whose pixels say where they come from."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import equal
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from PIL import Image

import metadraw
from metadraw import InputError
from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.drawings import Drawings
from metadraw.training.evaluate import evaluate
from metadraw.training.train import train

NAMES = [f"c{number:02}" for number in range(15)]


class Marked(EpisodeDataModule):
    """Pictures whose pixels are 100 * kind + class; the first one's is the drawing's number."""

    def __init__(self, *, kind, count, names=tuple(NAMES), folder=None, **episodes):
        super().__init__(**episodes)
        self.kind, self.count, self.names, self.folder = kind, count, list(names), folder

    def load(self):
        images = []
        for name in self.names:
            of_class = np.full((self.count, 28, 28), 100 * self.kind + int(name[1:]), np.uint8)
            of_class[:, 0, 0] = range(self.count)
            if self.folder:
                np.save(f"{self.folder}/{self.kind}{name}.npy", of_class)
                of_class = np.load(f"{self.folder}/{self.kind}{name}.npy", mmap_mode="r")
            images.append(of_class)
        return Drawings(
            images, tuple(self.names), {"source": "synthetic", "sha256": f"{self.kind}"}
        )


def part(kind, count, **options):
    return {"_target_": f"{__name__}.Marked", "kind": kind, "count": count, **options}


#: Two domains of different sizes, the second with other classes, too, in another order.
PARTS = {"a": part(0, 5), "b": part(1, 9, names=["c20", *NAMES[::-1]])}


#: The key of the parts, and those of the configs, which are replaced.
KEYS = {"domains": "domains", "mixture": "parts"}
SHIPPED = {"domains": ("doodles", "icons"), "parts": ("doodles",)}


def overrides(key="domains", parts=PARTS, **options):
    given = {"ways": 3, "queries": 2, **options}
    return [
        *(f"~data.{key}.{name}" for name in SHIPPED[key]),
        *(f"+data.{key}.{name}={flat(each)}" for name, each in parts.items()),
        *(f"++data.{name}={flat(value)}" for name, value in given.items()),
    ]


def flat(value):
    """A value as Hydra's command line takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{flat(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(flat, value)) + "]"
    return "null" if value is None else str(value)


def module(data="domains", **options):
    return instantiate(metadraw.compose(f"data={data}", *overrides(KEYS[data], **options)).data)


def marks(x):
    """Kind, class and number of each picture ``[..., 1, 28, 28]``."""
    values = (255 * x).round().long()
    return values[..., 0, 9, 9] // 100, values[..., 0, 9, 9] % 100, values[..., 0, 0, 0]


def check_classes(batch, names):
    """Every picture is of the class behind its label, and no drawing is used twice."""
    number = torch.tensor([int(name[1:]) for name in names])
    seen = []
    for examples in (batch.support, batch.query):
        kind, of_class, drawing = marks(examples.x)
        assert torch.equal(of_class, number[batch.about["classes"].gather(1, examples.y)])
        seen.append(torch.stack([kind, of_class, drawing], dim=-1))
    for of_task in torch.cat(seen, dim=1).tolist():
        assert len({tuple(each) for each in of_task}) == len(of_task)


def test_each_task_in_its_domain_with_the_same_classes():
    data = module()
    batch = data.episodes("train")(torch.arange(40))
    check_classes(batch, data.drawings.classes)
    kinds = torch.cat([marks(batch.support.x)[0], marks(batch.query.x)[0]], dim=1)
    assert torch.equal(kinds, kinds[:, :1].expand_as(kinds))
    names = data.groups("train", torch.arange(40))
    assert [("a", "b")[kind] for kind in kinds[:, 0]] == names
    assert 10 < names.count("a") < 30
    for domain in ("a", "b"):
        own = module(support_domain=domain, query_domain=domain).episodes("train")
        classes = own(torch.arange(40)).about["classes"]
        assert torch.equal(classes, batch.about["classes"])
        rows = [i for i, name in enumerate(names) if name == domain]
        assert equal(own(torch.tensor(rows)).task(3), batch.task(rows[3]))
    # Whatever the batch.
    assert equal(data.episodes("train")(torch.tensor([7, 2])).task(1), batch.task(2))


def test_learned_in_one_domain_and_asked_in_another():
    # Four queries and a shot are all that the smaller domain has, and fewer than both together.
    data = module(support_domain="b", query_domain="a", shots=8, queries=4)
    batch = data.episodes("test")(torch.arange(9))
    check_classes(batch, data.drawings.classes)
    assert set(marks(batch.support.x)[0].flatten().tolist()) == {1}
    assert set(marks(batch.query.x)[0].flatten().tolist()) == {0}
    assert (batch.support.x.shape[1], batch.query.x.shape[1]) == (24, 12)
    assert data.groups("test", torch.arange(2)) == ["a", "a"]
    ranged = module(support_domain="b", ways=[2, 3], shots=[1, 2], tasks_per_batch=5)
    sizes = set()
    for start in range(0, 40, 5):
        batch = ranged.episodes("train")(torch.arange(start, start + 5))
        check_classes(batch, ranged.drawings.classes)
        sizes.add((batch.support.x.shape[1], batch.query.x.shape[1]))
    assert len(sizes) > 2


def test_mixed_pictures():
    data = module(tasks="mixed", shots=1, unlabelled=1)
    batch = data.episodes("train")(torch.arange(60))
    check_classes(batch, data.drawings.classes)
    for examples in (batch.support, batch.query, batch.sets["unlabelled"]):
        kinds = marks(examples.x)[0].double()
        assert kinds.mean() == pytest.approx(0.5, abs=0.1)
        assert (kinds.amin(dim=1) < kinds.amax(dim=1)).any()  # both in one task
    assert data.groups("train", torch.arange(3)) is None
    assert equal(data.episodes("train")(torch.tensor([5])).task(0), batch.task(5))


def test_domains_held_out():
    parts = {**PARTS, "c": part(2, 6)}
    data = module(parts=parts, test_domains=["b"])
    assert set(data.groups("test", torch.arange(50))) == {"b"}
    for split in ("train", "val"):
        assert set(data.groups(split, torch.arange(50))) == {"a", "c"}
        kinds = marks(data.episodes(split)(torch.arange(50)).query.x)[0]
        assert set(kinds.flatten().tolist()) == {0, 2}
    assert set(data.groups("all", torch.arange(50))) == {"a", "b", "c"}


@pytest.mark.parametrize("options", [{}, {"tasks": "mixed"}, {"support_domain": "b"}])
def test_on_disk_as_in_memory(tmp_path, options):
    augmented = {"shift": 2, "mirror": True, "rotation": 20, "new_classes": "rotations", **options}
    parts = {**PARTS, "b": {**PARTS["b"], "folder": str(tmp_path)}}
    numbers = torch.arange(6)
    on_disk = module(parts=parts, **augmented).episodes("train")(numbers)
    assert equal(on_disk, module(**augmented).episodes("train")(numbers))


def test_a_mixture_of_class_lists():
    parts = {"a": part(0, 5, names=NAMES[:10]), "b": part(1, 9, names=NAMES)}
    data = module("mixture", parts=parts, weights={"a": 3}, new_classes="rotations")
    numbers = torch.arange(200)
    batch, names = data.episodes("train")(numbers), data.groups("train", numbers)
    assert 130 < names.count("a") < 170
    count = data.class_count // 4
    assert count == 25
    known = data.drawings.classes
    for task, name in enumerate(names):
        kinds, of_class, _ = marks(batch.query.x[task])
        assert kinds.unique().tolist() == ["ab".index(name)]
        classes = batch.about["classes"][task][batch.query.y[task]]
        assert [known[c % count] for c in classes] == [f"{name}/c{c:02}" for c in of_class]
        assert {known[c % count] for c in classes} <= set(data.splits["train"])
    one = data.parts["b"].episodes("train")(numbers).task(names.index("b"))
    assert equal(one._replace(about={}), batch.task(names.index("b"))._replace(about={}))
    assert (batch.about["classes"] // count).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        ("domains", {"tasks": "all"}, "data.tasks=all: must be one of per_domain, mixed"),
        ("domains", {"query_domain": "z"}, "data.query_domain: z is not a domain; there are a, b"),
        ("domains", {"test_domains": ["a", "b"]}, "must leave some of a, b for meta-training"),
        ("domains", {"test_domains": "a"}, "data.test_domains=a: must be a list, or null"),
        (
            "domains",
            {"tasks": "mixed", "support_domain": "a"},
            "must be null with data.tasks=mixed",
        ),
        ("domains", {"queries": 5}, "data.domains.a: data.shots=1 + data.queries=5 = 6 drawings"),
        ("domains", {"parts": {"a": part(0, 5, names=["c20"]), "b": part(1, 9)}}, "no class is in"),
        ("domains", {"parts": {"a": {"kind": 0}}}, "data.domains.a: must be a data set"),
        ("domains", {"parts": {"a": part("???", 5)}}, "data.domains.a.kind is missing"),
        ("domains", {"exclude_classes": ["c20"]}, "the data have no c20"),
        ("mixture", {"weights": {"z": 1}}, "must be numbers above 0 by name, of a, b"),
        ("mixture", {"weights": {"a": 1, "b": True}}, "must be numbers above 0 by name, of a, b"),
        ("mixture", {"weights": 2}, "data.weights=2: must be numbers above 0 by name, of a, b"),
        ("mixture", {"classes": ["c01"]}, "data.parts.NAME.classes"),
    ],
)
def test_refused(data, options, says):
    with pytest.raises((InputError, InstantiationException)) as info:
        module(data, **{"parts": PARTS, **options}).episodes("train")
    cause = info.value
    while not isinstance(cause, InputError):
        cause = cause.__cause__
    assert says in str(cause)


def test_results_by_domain(tmp_path):
    """In a run and its checkpoint's evaluation, whose domains may be others."""
    small = [f"data.{split}_batches=2" for split in ("train", "val", "test")]
    small += ["data.tasks_per_batch=4", "trainer=cpu", "trainer.max_epochs=1"]
    run = ["algorithm=protonet", "model.hidden_channels=4", f"paths.output_dir={tmp_path}"]
    test = train(metadraw.compose("data=domains", *overrides(), *small, *run))["test"]
    with (tmp_path / "tasks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(test["groups"]) == {"a", "b"}
    for name, found in test["groups"].items():
        own = [float(row["acc"]) for row in rows if row["group"] == name]
        assert found["tasks"] == len(own)
        assert found["acc"] == pytest.approx(np.mean(own), abs=1e-6)
    checkpoint = f"ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}"
    again = [checkpoint, "trainer=cpu", f"paths.output_dir={tmp_path / 'again'}"]
    assert evaluate(metadraw.compose(*again, config="eval"))["test"]["groups"] == test["groups"]
    other = [*again[:2], f"paths.output_dir={tmp_path / 'other'}", "+data.query_domain=b"]
    found = evaluate(metadraw.compose(*other, config="eval"))
    assert list(found["test"]["groups"]) == ["b"]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["sha256"] != found["data"]["sha256"]  # not to be paired


def test_a_folder_of_domains(tmp_path):
    for kind, domain in enumerate(("photo", "sketch")):
        for name in NAMES[: 11 + kind]:
            folder = tmp_path / domain / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = np.full((28, 28), 100 * kind + int(name[1:]), np.uint8)
                pixels[0, 0] = number
                Image.fromarray(pixels).save(folder / f"{number}.png")
    data = ["data=domain_folder", f"data.path={tmp_path}", "data.domains=[photo,sketch]"]
    small = ["data.ways=2", "data.queries=2", f"data.cache_dir={tmp_path / 'cache'}"]
    made = instantiate(metadraw.compose(*data, *small).data)
    batch = made.episodes("test")(torch.arange(8))
    check_classes(batch, made.drawings.classes)
    assert made.drawings.classes == tuple(NAMES[:11])
    assert set(made.groups("test", torch.arange(8))) == {"photo", "sketch"}


@pytest.mark.parametrize("path", ["null", "[1]"])
def test_a_folder_of_domains_that_is_no_path(path):
    cfg = metadraw.compose("data=domain_folder", f"data.path={path}", "data.domains=[photo]")
    with pytest.raises(InstantiationException, match=r"data\.path=.*: must be a path"):
        metadraw.build(cfg)
