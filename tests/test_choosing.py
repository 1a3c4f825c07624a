"""Which pictures to label next: each strategy, in Python and by adapt.py."""

import csv
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image, ImageDraw

import metadraw
from metadraw import FewShot, InputError
from metadraw.use.adapt import adapt
from metadraw.use.choosing import STRATEGIES, Pool, choose, weakest_class


def pool_of(count=40, ways=3, features=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=random)
    return Pool(draw(count, ways).softmax(dim=1), draw(count, features), draw(ways, features))


def normalised(pool):
    every = torch.cat([pool.known, pool.features])
    return F.normalize(every - every.mean(0), dim=1).split([len(pool.known), len(pool.features)])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_choices_are_of_the_pool_without_repeats_and_more_only_add(strategy):
    pool = pool_of()
    chosen = choose(pool, 12, strategy)
    assert len(set(chosen)) == 12
    assert set(chosen) <= set(range(40))
    assert choose(pool, 5, strategy) == chosen[:5]
    assert sorted(choose(pool, 99, strategy)) == list(range(40))
    # A pool of equal pictures is no error.
    same = pool._replace(chances=pool.chances[:1].repeat(6, 1), features=pool.features[[0] * 6])
    assert sorted(choose(same, 6, strategy)) == list(range(6))


def test_only_strategies_that_draw_at_random_depend_on_the_seed():
    pool = pool_of()
    found = {s for s in STRATEGIES if choose(pool, 9, s) != choose(pool._replace(seed=1), 9, s)}
    assert found == {"random", "badge"}


def test_uncertainty():
    chances = torch.tensor([[0.34, 0.33, 0.33], [0.5, 0.5, 0.0], [0.9, 0.06, 0.04]])
    pool = pool_of(3)._replace(chances=chances)
    assert choose(pool, 3, "entropy") == [0, 1, 2]
    assert choose(pool, 3, "margin") == [1, 0, 2]


def test_k_center_takes_the_farthest():
    """Sener and Savarese 2018, algorithm 1, as plainly as possible."""
    pool = pool_of()
    known, features = normalised(pool)
    centers, expected = list(known), []
    for _ in range(8):
        nearest = [min(float((x - c).norm()) for c in centers) for x in features]
        expected.append(max(range(40), key=nearest.__getitem__))
        centers.append(features[expected[-1]])
    assert choose(pool, 8, "k_center") == expected


def test_facility_location_takes_what_covers_the_most():
    """Each choice maximises the sum of the similarities to the nearest, over all of the pool."""
    pool = pool_of()
    known, features = normalised(pool)
    expected = []
    for _ in range(8):

        def covered(candidate):
            have = torch.cat([known, features[[*expected, candidate]]])
            return float((features @ have.T).amax(dim=1).sum())

        expected.append(max(set(range(40)) - set(expected), key=covered))
    assert choose(pool, 8, "facility_location") == expected


def test_badge_draws_by_squared_distances_of_gradients():
    pool = pool_of(count=6)
    _, features = normalised(pool)
    # The gradient of a linear layer's loss, if its most probable class were right.
    gradients = []
    for chance, x in zip(pool.chances, features, strict=True):
        weight = torch.zeros(3, 4, requires_grad=True)
        loss = F.cross_entropy((weight @ x + chance.log())[None], chance.argmax()[None])
        gradients.append(torch.autograd.grad(loss, weight)[0].flatten())
    gradients = torch.stack(gradients)
    first = int(gradients.norm(dim=1).argmax())
    expected = (gradients - gradients[first]).square().sum(dim=1)
    seconds = [choose(pool._replace(seed=seed), 2, "badge") for seed in range(1500)]
    assert {one for one, _ in seconds} == {first}
    share = torch.tensor([two for _, two in seconds]).bincount(minlength=6) / 1500
    torch.testing.assert_close(share, expected / expected.sum(), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("n", "strategy", "seed", "says"),
    [
        (0, "random", 0, "suggest=0: must be a whole number of at least 1"),
        (True, "random", 0, "suggest=True: must be a whole number"),
        (1, "best", 0, "strategy=best: must be one of facility_location, k_center"),
        (1, "random", 0.5, "seed=0.5: must be a whole number"),
    ],
)
def test_what_cannot_be_chosen(n, strategy, seed, says):
    with pytest.raises(InputError, match=says):
        choose(pool_of()._replace(seed=seed), n, strategy)


# ---- which class -----------------------------------------------------------------------------


def test_the_weakest_class_is_among_those_with_the_fewest_examples():
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    asked = []

    def held_out(kept):
        asked.append(kept.tolist())
        chances = torch.full((7, 3), 0.25)
        # Class 2 is the weakest where its example is held out, class 1 the weakest of all.
        chances[5:, 2] = torch.where(kept[5:], 0.9, 0.1)
        chances[2:5, 1] = 0.0
        return chances[: len(kept)]

    assert weakest_class(held_out, labels, 3) == 2
    assert [[i for i, k in enumerate(kept) if not k] for kept in asked] == [[0, 2, 5], [1, 3, 6]]
    # A class of one cannot be held out.
    assert weakest_class(held_out, labels[:6], 3) == 2
    assert all(asked[-1])


# ---- in use ----------------------------------------------------------------------------------


def drawing(kind, number):
    image = Image.new("L", (80, 80), 255)
    draw, box = ImageDraw.Draw(image), (10 + number, 12, 60, 66 - number)
    draw.ellipse(box, None, 0, 4) if kind == "ring" else draw.rectangle(box, None, 0, 4)
    return image


@pytest.mark.parametrize("algorithm", ["maml", "matching_net"])
def test_suggestions_are_made_from_what_the_network_sees(algorithm, checkpoint_of):
    meta_learner = FewShot(checkpoint_of(algorithm))
    images = torch.rand(30, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images = (images > 0.7).float()
    names = "abcde"
    classifier = meta_learner.adapt({n: images[i : i + 2] for i, n in enumerate(names)})
    pool = images[10:]
    for strategy in STRATEGIES:
        chosen = classifier.suggest(pool, 4, strategy)
        assert len(set(chosen)) == 4
    assert classifier.suggest([], 4) == []
    # The least certain one, by the probabilities that the classifier itself gives.
    chances = classifier.probabilities(pool)
    first, second = chances.topk(2, dim=1).values.T
    assert classifier.suggest(pool, 1, "margin") == [int((first - second).argmin())]
    # The same as the examples, in every pixel: the farthest is never one of them.
    copies = torch.cat([images[:2], pool[:1]])
    assert classifier.suggest(copies, 1, "k_center") == [2]
    assert classifier.weakest() in names


def test_adapt_suggests_files(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(ROOT)
    for kind in ("ring", "box"):
        for number in range(6):
            part = f"support/{kind}" if number < 2 else "pool"
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
            drawing(kind, number).save(tmp_path / part / f"{kind}{number}.png")
    typed = ["ckpt_path=checkpoints/best.ckpt", f"support={tmp_path / 'support'}"]
    typed += [f"pool={tmp_path / 'pool'}", "suggest=3", f"paths.output_dir={tmp_path / 'out'}"]
    with caplog.at_level("INFO"):
        classifier = adapt(metadraw.compose(*typed, config="adapt"))
    rows = list(csv.DictReader((tmp_path / "out" / "suggestions.csv").open()))
    files = sorted((tmp_path / "pool").iterdir())
    expected = [files[i].name for i in classifier.suggest(files, 3)]
    assert [row["file"] for row in rows] == expected
    for row in rows:
        chances = classifier.probabilities([tmp_path / "pool" / row["file"]])
        assert row["predicted"] == classifier.predict([tmp_path / "pool" / row["file"]])[0]
        assert float(row["probability"]) == pytest.approx(chances.max().item(), abs=1e-4)
        assert f"{row['file']}  perhaps {row['predicted']} " in caplog.text
    assert not (tmp_path / "out" / "predictions.csv").exists()
    assert "suggestions and the classifier: " in caplog.text
    # With both, both.
    both = [*typed, f"query={files[0]}", "strategy=margin"]
    adapt(metadraw.compose(*both, config="adapt"))
    assert (tmp_path / "out" / "predictions.csv").exists()
    for wrong, says in {
        "pool=nowhere": "nowhere: there is no such file or folder",
        "pool=[a]": r"pool=\['a'\]: expected pool=PATH",
        "suggest=0": "suggest=0: must be a whole number of at least 1",
        "strategy=best": "strategy=best: must be one of",
        "query=null": "query=null: expected query=PATH",
    }.items():
        with pytest.raises(InputError, match=says):
            adapt(metadraw.compose(*typed, wrong, config="adapt"))
    with pytest.raises(InputError, match="query is missing"):
        adapt(metadraw.compose(*typed[:2], config="adapt"))
