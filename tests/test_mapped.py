"""Drawings that stay on disk: the same episodes, with memory that does not grow."""

import resource

import numpy as np
import pytest
import torch
from conftest import ROOT, equal
from test_image_folder import folder, module  # noqa: F401

import metadraw
from metadraw.data import cache
from metadraw.data.drawings import QUICKDRAW_CLASSES
from metadraw.data.mapped import MappedImages
from metadraw.data.sampling import EpisodeSampler
from metadraw.training.train import train

CLASSES = 30
GB = 1 << 30


@pytest.fixture(scope="module")
def real(from_npm, tmp_path_factory):
    """Files of a few thousand real drawings each, of unequal length: each class with others."""
    images = from_npm[0].images.reshape(345, 100, 784)
    files = tmp_path_factory.mktemp("real")
    for number, name in enumerate(QUICKDRAW_CLASSES):
        others = range(number, number + (20 + number % 11 if number < CLASSES else 1))
        np.save(files / f"{name}.npy", np.concatenate([images[i % 345] for i in others]))
    return files


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shots": 3, "queries": 4, "shift": 2, "mirror": True},
        {"orientations": 4, "mirror": True},
        {"samples": 20},
    ],
    ids=str,
)
def test_the_same_episodes_as_in_memory(real, options):
    arrays = [np.load(real / f"{n}.npy", mmap_mode="r") for n in QUICKDRAW_CLASSES[:CLASSES]]
    counts = torch.tensor([len(array) for array in arrays])
    assert counts.min() >= 2000
    assert counts.unique().numel() > 5
    whole = torch.from_numpy(np.concatenate(arrays)).view(-1, 1, 28, 28)
    usual = {"split": "train", "ways": 5, "shots": 1, "queries": 1, "seed": 3}

    def episodes(images):
        sampler = EpisodeSampler(images, counts, torch.arange(CLASSES), **usual | options)
        return sampler(torch.arange(40))

    mapped = MappedImages(arrays, (1, 28, 28))
    assert mapped.shape == whole.shape
    assert equal(episodes(mapped), episodes(whole))
    elsewhere = MappedImages(arrays, (1, 28, 28)).to("meta")
    assert isinstance(elsewhere, MappedImages)
    assert elsewhere.device.type == "meta"
    rows = torch.tensor([[0, len(whole) - 1], [int(counts[0]), int(counts[0]) - 1]])
    assert torch.equal(mapped[rows], whole[rows])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(tmp_path):
    """All synthetic images if there is room, else those that are requested."""
    random, arrays = np.random.default_rng(0), []
    for number, length in enumerate((300, 500)):
        file = tmp_path / f"{number}.npy"
        np.save(file, random.integers(0, 256, (length, 784), np.uint8))
        arrays.append(np.load(file, mmap_mode="r"))
    right = torch.from_numpy(np.concatenate(arrays)).view(-1, 1, 28, 28)
    images = MappedImages(arrays, (1, 28, 28)).to("cuda")
    assert isinstance(images, torch.Tensor)
    assert torch.equal(images.cpu(), right)
    rows = torch.tensor([[799, 0], [299, 300]]).cuda()
    found = MappedImages(arrays, (1, 28, 28), "cuda")[rows]
    assert found.is_cuda
    assert torch.equal(found.cpu(), right[rows.cpu()])


def test_a_run_on_all_drawings(real, tmp_path):
    given = ["data.source=path", f"data.path={real}", "data.samples_per_class=all"]
    few = [f"data.{split}_batches=2" for split in ("train", "val", "test")]
    cfg = metadraw.compose(
        *given, *few, "trainer=cpu", "trainer.max_epochs=1", f"paths.output_dir={tmp_path}"
    )
    found = train(cfg)
    assert found["data"]["samples_per_class"] == "all"
    assert found["data"]["sha256_of_samples"]
    data, _ = metadraw.build(cfg)
    data.setup()
    assert isinstance(data.episodes("train").images, MappedImages)
    assert [len(images) for images in data.drawings.images][:3] == [2000, 2100, 2200]


def test_memory_does_not_grow_with_39_gigabytes(tmp_path, monkeypatch):
    """Sparse files, which take no space, with as many bytes as all of Quick, Draw!."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from whole import make_files

    make_files(tmp_path)
    if sum(file.stat().st_blocks for file in tmp_path.iterdir()) * 512 > GB:
        pytest.skip("this file system has no sparse files")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given = ["data.source=path", f"data.path={tmp_path}", "data.samples_per_class=all"]
    data, _ = metadraw.build(metadraw.compose(*given))
    for split in ("train", "val", "test"):
        for batch in range(20):
            episodes = data.episodes(split)(torch.arange(25 * batch, 25 * (batch + 1)))
    assert episodes.support.x.shape == (25, 5, 1, 28, 28)
    assert data.episodes("train").images.shape.numel() > 38 * 10**9
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # kB
    assert grown * 1024 < GB // 2


def test_an_image_folder_above_the_limit_stays_on_disk(module, monkeypatch):  # noqa: F811
    usual = module()
    usual.setup()
    in_memory = usual.episodes("train")(torch.arange(3))
    assert isinstance(usual.episodes("train").images, torch.Tensor)

    monkeypatch.setattr(cache, "LARGEST", 1000)
    mapped = module()
    mapped.setup()
    assert isinstance(mapped.episodes("train").images, MappedImages)
    assert equal(mapped.episodes("train")(torch.arange(3)), in_memory)
    assert mapped.drawings.provenance == usual.drawings.provenance


def test_episodes_on_one_device_and_then_on_another(tiny):
    """What was moved to a device stays there; what is on the CPU stays as well."""
    data, _ = metadraw.build(metadraw.compose(*tiny))
    numbers = torch.arange(3)
    before = data.episodes("test")(numbers)
    assert data.episodes("test", "meta").images.is_meta
    assert equal(data.episodes("test")(numbers), before)
    assert data.episodes("val", "meta").images is data.episodes("test", "meta").images
