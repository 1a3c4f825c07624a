"""Networks of equal size, and the search for the best of them."""

import pytest
import torch
from conftest import ROOT

import metadraw
from metadraw import InputError
from metadraw.models.conv4 import Conv4
from metadraw.models.convnet import ConvNet


def size(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_the_width_is_the_largest_that_fits(depth, kernel, norm):
    shape = {"depth": depth, "kernel": kernel, "norm": norm, "poolings": min(depth, 3)}
    network = ConvNet(parameters=9000, **shape)
    width = network.blocks[0][0].out_channels
    assert size(network) <= 9000
    for exact in (size(network), size(network) - 1):
        other = ConvNet(parameters=exact, **shape).blocks[0][0].out_channels
        assert other == (width if exact == size(network) else width - 1)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, width)


def test_the_reports_network_is_one_of_them():
    ours, conv4 = ConvNet(parameters=size(Conv4())), Conv4()
    ours.load_state_dict(
        dict(zip(ours.state_dict(), conv4.state_dict().values(), strict=True)),
    )
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(ours(x), conv4(x))


def test_skips_add_the_input_of_a_block():
    network = ConvNet(parameters=2000, depth=2, poolings=0, skip=True)
    first, second = network.blocks
    x = torch.rand(2, 1, 8, 8)
    hidden = first(x)
    torch.testing.assert_close(network(x), (hidden + second(hidden)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"parameters": 20}, r"model.parameters=20: must be at least \d+ with model.depth=4"),
        ({"parameters": True}, "model.parameters=True: must be a whole number of at least 1"),
        ({"depth": 0}, "model.depth=0: must be a whole number of at least 1"),
        ({"kernel": 4}, "model.kernel=4: must be one of 1, 3, 5, 7"),
        ({"norm": "group"}, "model.norm=group: must be one of batch, layer, none"),
        ({"skip": 1}, "model.skip=1: must be true or false"),
        ({"poolings": 5}, r"model.poolings=5: must be a whole number in 0..model.depth=4"),
        ({"depth": 6, "poolings": 5}, "leave something of images of 28 pixels"),
    ],
)
def test_one_line(options, says):
    with pytest.raises(InputError, match=says):
        ConvNet(**{"parameters": 9000} | options)


@pytest.mark.slow
def test_the_search_in_small(monkeypatch, synthetic_folder, tmp_path):
    """Each rung trains the better half on, and the best one's results are written."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import architecture

    monkeypatch.setattr(architecture, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(architecture, "OUT", tmp_path / "architecture")
    assert len(set(architecture.candidates())) == architecture.CANDIDATES
    for model in architecture.candidates():
        metadraw.compose(*architecture.Run(model, 1).settings)
    for name, value in {"CANDIDATES": 4, "RUNGS": 2, "EPOCHS": 1, "SEEDS": (0,)}.items():
        monkeypatch.setattr(architecture, name, value)

    class Here:
        """In this process, whose settings are those above."""

        map = staticmethod(map)

    small = ["data.source=path", f"data.path={synthetic_folder}", "data.samples_per_class=20"]
    small += ["model.parameters=600", "data.train_batches=1", "data.val_batches=1"]
    small += ["data.test_batches=2", "callbacks.progress_bar.refresh_rate=0"]
    rungs = architecture.search(Here(), small)
    assert [len(rung) for rung in rungs] == [4, 2]
    assert set(rungs[1]) == set(list(rungs[0])[:2])
    best = next(iter(rungs[1]))
    resumed = torch.load(
        architecture.Run(best, 2).folder / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert resumed["global_step"] == 2
    assert architecture.search(Here(), small) == rungs  # nothing is done again
    for model in {architecture.REPORT, best}:
        architecture.finish(architecture.Run(model, 1, 0), small)
    architecture.write(rungs, "COMMAND")
    text = (tmp_path / "architecture.md").read_text()
    assert "`COMMAND`" in text
    assert "| 4 | 3 | batch | no | 4 |" in text
    assert (tmp_path / "architecture.png").stat().st_size > 1000
