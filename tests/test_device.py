"""Steps on PyTorch's meta device, where a tensor made on the CPU or a value read back raises."""

import pytest
import torch
from conftest import each_algorithm, tasks_of

import metadraw
from metadraw.training.factory import build_learner

TASKS, WAYS, SHOTS = 3, 5, 2


def episodes():
    images = torch.empty(TASKS, WAYS * SHOTS, 1, 28, 28)
    return tasks_of(images, images, WAYS)


CASES = [
    *(pytest.param(*case.values, [], marks=case.marks) for case in each_algorithm()),
    ("maml", ["learner.query_statistics=support"]),
    ("maml", ["learner.recompute_steps=true"]),
    ("maml", ["model.fused=false"]),
    ("maml_pp", ["learner.query_statistics=support", "learner.recompute_steps=true"]),
]


@pytest.mark.parametrize(("algorithm", "options"), CASES, ids=str)
def test_nothing_is_read_back_or_made_elsewhere(algorithm, options):
    cfg = metadraw.compose(f"algorithm={algorithm}", *options)
    for key in ("inner_steps", "eval_inner_steps"):
        if key in cfg.algorithm:
            cfg.algorithm[key] = 2
    learner = build_learner(cfg)
    with torch.device("meta"):
        batch = episodes()
    learner.to("meta")
    gradients, metrics = learner.meta_gradients(batch)
    assert {value.device.type for value in [*gradients.values(), *metrics.values()]} == {"meta"}
    outcome = learner.evaluate(batch)
    assert outcome.after.shape == (TASKS, WAYS * SHOTS, WAYS)
    assert outcome.after.is_meta
