"""Every algorithm's meta-gradient against plain per-task ``torch.autograd``, in float64.

A new algorithm needs a reference and one line in ``REFERENCES``. References are written as plainly
as possible, from the papers, and share only the network's forward pass, by PyTorch's own layers,
with the algorithms: no torch.func transform, no batch of tasks.
"""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from metadraw import compose
from metadraw.algorithms.inner_loop import gradient_steps
from metadraw.algorithms.maml import MAML
from metadraw.command.config import CONFIGS
from metadraw.data.hashing import fold, mix
from metadraw.models.conv4 import Conv4
from metadraw.training.factory import instantiate
from metadraw.training.learner import MetaLearner


def functional_call(network, params, args):
    """The network's forward pass with other parameters in place of its own."""
    names = {id(p): name for name, p in network.named_parameters()}
    places = [
        (layer, key, own)
        for layer in network.modules()
        for key, own in layer._parameters.items()
        if names.get(id(own)) in params
    ]
    for layer, key, own in places:
        layer._parameters[key] = params[names[id(own)]]
    try:
        return network(*args)
    finally:
        for layer, key, own in places:
            layer._parameters[key] = own


# A large inner rate makes the second derivatives matter.
LR = 0.1


def network_of(meta):
    """Network and head among the meta-parameters."""
    return {name: p for name, p in meta.items() if name.startswith(("network.", "head."))}


def features_of(algorithm, params, x):
    """The outputs of the network."""
    return functional_call(algorithm.network, body_of(params), (x,))


def body_of(params):
    """The network's parameters, by their names in it."""
    own = [name for name in params if name.startswith("network.")]
    return {name.removeprefix("network."): params[name] for name in own}


def logits_of(algorithm, params, x):
    """The outputs of the head."""
    return features_of(algorithm, params, x) @ params["head.weight"].T + params["head.bias"]


def descend(loss, fast, lr, first_order=False):
    """One step of gradient descent; ``lr`` is a number or a list with one for each parameter."""
    slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
    rates = lr if isinstance(lr, list) else [lr] * len(fast)
    rows = zip(fast.items(), rates, slopes, strict=True)
    return {name: p - rate * slope for (name, p), rate, slope in rows}


def maml(algorithm, meta, task, *, first_order=False, steps, rates=None):
    """Finn et al. 2017, algorithm 2. ``rates`` gives each step's list of rates, or one for all."""
    fast = network_of(meta)
    for step in range(steps):
        loss = F.cross_entropy(logits_of(algorithm, fast, task.support.x), task.support.y)
        fast = descend(loss, fast, rates(meta, step) if rates else LR, first_order)
    return F.cross_entropy(logits_of(algorithm, fast, task.query.x), task.query.y)


def rates_by_step(meta, step):
    """LSLR: the i-th parameter's rate of this step."""
    return [rates[step] for name, rates in meta.items() if name.startswith("inner_lrs")]


def rates_by_element(meta, step):
    """Meta-SGD: the same in every step."""
    return [rates for name, rates in meta.items() if name.startswith("inner_lrs")]


def maml_pp(algorithm, meta, task, *, steps, epoch, norm=True):
    """MAML++ with multi-step loss over 4 epochs and first order for 2 epochs."""
    norms = [f"network.{block}.1" for block in range(4)]
    names = [f"{layer}.{kind}" for layer in norms for kind in ("weight", "bias")] if norm else []

    def of_step(step):
        return {name: meta[f"per_step_values.{i}"][step] for i, name in enumerate(names)}

    def loss_at(fast, step, x, y):
        return F.cross_entropy(logits_of(algorithm, fast | of_step(step), x), y)

    fast = {name: p for name, p in network_of(meta).items() if name not in names}
    total = 0.0
    for step in range(steps):
        loss = loss_at(fast, step, task.support.x, task.support.y)
        fast = descend(loss, fast, rates_by_step(meta, step), first_order=epoch < 2)
        anneal = max(0.0, 1 - epoch / 4)
        weight = anneal / steps + (1 - anneal if step == steps - 1 else 0)
        total = total + weight * loss_at(fast, step + 1, task.query.x, task.query.y)
    return total


def head_only(algorithm, meta, task, *, steps):
    """ANIL: features once, gradient descent on the head."""
    support, query = (features_of(algorithm, meta, x) for x in (task.support.x, task.query.x))
    head = {name: p for name, p in meta.items() if name.startswith("head.")}

    def logits(features):
        return features @ head["head.weight"].T + head.get("head.bias", 0)

    for _ in range(steps):
        head = descend(F.cross_entropy(logits(support), task.support.y), head, LR)
    return F.cross_entropy(logits(query), task.query.y)


def new_head(algorithm, meta, task, *, steps, start):
    """Body and a head that ``start`` makes, both adapted."""
    features = features_of(algorithm, meta, task.support.x)
    # Clones: the inner loop's gradient with respect to the network holds the head still.
    fast = {name: p.clone() for name, p in network_of(meta).items()}
    fast["head.weight"], fast["head.bias"] = start(meta, features, task)

    def loss_of(fast, x, y):
        return F.cross_entropy(logits_of(algorithm, fast, x), y)

    for _ in range(steps):
        fast = descend(loss_of(fast, task.support.x, task.support.y), fast, LR)
    return loss_of(fast, task.query.x, task.query.y)


def prototypes(meta, features, task):
    """Triantafillou et al. 2020: W_k = 2 c_k, b_k = -|c_k|^2."""
    means = [features[task.support.y == label].mean(dim=0) for label in range(5)]
    return torch.stack([2 * c for c in means]), torch.stack([-(c @ c) for c in means])


def one_vector(meta, features, task):
    """Ye and Chao 2022: all rows the same."""
    return torch.stack([meta["vector"]] * 5), 0 * meta["vector"][0].repeat(5)


def reptile(algorithm, meta, task, *, steps):
    """Nichol et al. 2018: the sum of the inner gradients, which is the difference of the parameters
    divided by the rate; here as the loss that has this gradient."""
    start = network_of(meta)
    fast = {name: p.detach().requires_grad_() for name, p in start.items()}
    x, y = torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y])
    total = dict.fromkeys(fast, 0.0)
    for _ in range(steps):
        loss = F.cross_entropy(logits_of(algorithm, fast, x), y)
        slopes = torch.autograd.grad(loss, list(fast.values()))
        total = {n: t + s for (n, t), s in zip(total.items(), slopes, strict=True)}
        fast = {
            n: (p - LR * s).detach().requires_grad_()
            for (n, p), s in zip(fast.items(), slopes, strict=True)
        }
    return sum((start[name] * total[name]).sum() for name in start)


def protonet(algorithm, meta, task, *, steps):
    """Snell et al. 2017, equations 1 and 2."""
    support, query = (features_of(algorithm, meta, x) for x in (task.support.x, task.query.x))
    means = torch.stack([support[task.support.y == label].mean(dim=0) for label in range(5)])
    distances = ((query[:, None] - means) ** 2).sum(dim=2)
    return F.cross_entropy(-distances, task.query.y)


def soft_kmeans(algorithm, meta, task, *, steps, distractors="ignore"):
    """Ren et al. 2018, sections 3.1.1 to 3.1.3, class by class."""
    sets = (task.support, task.query, *task.sets.values())
    support, query, *unlabelled = (features_of(algorithm, meta, examples.x) for examples in sets)
    means = torch.stack([support[task.support.y == label].mean(dim=0) for label in range(5)])
    if unlabelled:
        (x,) = unlabelled
        d = torch.stack([((x - mean) ** 2).sum(dim=1) for mean in means])  # [5, M]
        near = (-d).exp()
        total = near.sum(dim=0)
        if distractors == "cluster":
            radius = meta["log_radius"].exp()
            total = total + (-(x**2).sum(dim=1) / radius**2).exp() / radius
        shares = near / total
        if distractors == "mask":
            masks = []
            for row in d / d.mean(dim=1, keepdim=True):
                variance = ((row - row.mean()) ** 2).mean()
                z = (row - row.mean()) / (variance + 1e-6) ** 0.5
                moments = [variance, (z**3).mean(), (z**4).mean() - 3]
                hidden = torch.stack([row.min(), row.max(), *moments])
                hidden = meta["thresholds.0.weight"] @ hidden + meta["thresholds.0.bias"]
                last = meta["thresholds.2.weight"] @ hidden.tanh() + meta["thresholds.2.bias"]
                masks.append(torch.sigmoid(-last[1] * (row - last[0])))
            shares = shares * torch.stack(masks)
        rows = []
        for label, share in enumerate(shares):
            own = support[task.support.y == label]
            rows.append((own.sum(dim=0) + share @ x) / (len(own) + share.sum()))
        means = torch.stack(rows)
    distances = ((query[:, None] - means) ** 2).sum(dim=2)
    return F.cross_entropy(-distances, task.query.y)


def self_training(algorithm, meta, task, *, steps):
    """UNICORN-MAML, then steps on labels of its own, times their probabilities and a weight."""
    fast = {name: p.clone() for name, p in network_of(meta).items()}
    fast["head.weight"], fast["head.bias"] = one_vector(meta, None, task)
    further = 2 if task.sets else 0
    for step in range(steps + further):
        logits = logits_of(algorithm, fast, task.support.x)
        loss = F.cross_entropy(logits, task.support.y)
        if step >= steps:
            logits = logits_of(algorithm, fast, task.sets["unlabelled"].x)
            chances = F.softmax(logits.detach(), dim=1)
            own = F.cross_entropy(logits, chances.argmax(dim=1), reduction="none")
            loss = loss + meta["log_weight"].exp() * (chances.amax(dim=1) * own).mean()
        fast = descend(loss, fast, LR)
    return F.cross_entropy(logits_of(algorithm, fast, task.query.x), task.query.y)


def matching_net(algorithm, meta, task, *, steps):
    """Vinyals et al. 2016, equation 1, example by example."""
    support, query = (features_of(algorithm, meta, x) for x in (task.support.x, task.query.x))
    losses = []
    for x, label in zip(query, task.query.y, strict=True):
        attention = torch.stack([F.cosine_similarity(x, s, dim=0) for s in support]).exp()
        chance = attention[task.support.y == label].sum() / attention.sum()
        losses.append(-chance.log())
    return torch.stack(losses).mean()


def body_only(algorithm, meta, task, *, steps):
    """Oh et al. 2021: gradient descent on the network, under the same head."""
    fast = {name: p for name, p in meta.items() if name.startswith("network.")}
    head = {name: p for name, p in meta.items() if name.startswith("head.")}
    for _ in range(steps):
        logits = logits_of(algorithm, fast | head, task.support.x)
        fast = descend(F.cross_entropy(logits, task.support.y), fast, LR)
    return F.cross_entropy(logits_of(algorithm, fast | head, task.query.x), task.query.y)


def meta_baseline(algorithm, meta, task, *, steps):
    """Chen et al. 2021, equation 3."""
    support, query = (features_of(algorithm, meta, x) for x in (task.support.x, task.query.x))
    means = torch.stack([support[task.support.y == label].mean(dim=0) for label in range(5)])
    cosines = F.cosine_similarity(query[:, None], means[None], dim=2)
    return F.cross_entropy(meta["scale"] * cosines, task.query.y)


def r2d2(algorithm, meta, task, *, steps):
    """Bertinetto et al. 2019, by the equations of as many unknowns as features."""
    support, query = (features_of(algorithm, meta, x) for x in (task.support.x, task.query.x))
    ridge = meta["log_ridge"].exp() * torch.eye(support.shape[1], dtype=support.dtype)
    targets = F.one_hot(task.support.y, 5).to(support.dtype)
    solution = (support.T @ support + ridge).inverse() @ support.T @ targets
    return F.cross_entropy(meta["scale"] * query @ solution + meta["bias"], task.query.y)


def finetune(algorithm, meta, task, *, steps, smoothing=0.0):
    """Cross-entropy of every drawing, among all classes of the data."""
    x, y = torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y])
    features = features_of(algorithm, meta, x)
    logits = features @ meta["classifier.weight"].T + meta["classifier.bias"]
    return F.cross_entropy(logits, task.about["classes"][y], label_smoothing=smoothing)


def baseline_pp(algorithm, meta, task, *, steps):
    """The same with ten times the cosine in place of the linear layer."""
    x, y = torch.cat([task.support.x, task.query.x]), torch.cat([task.support.y, task.query.y])
    features, weights = features_of(algorithm, meta, x), meta["classifier.weight"]
    logits = 10 * F.cosine_similarity(features[:, None], weights[None], dim=2)
    return F.cross_entropy(logits, task.about["classes"][y], label_smoothing=0.1)


def attended(meta, layer, tokens, examples, heads=4):
    """A transformer layer with its normalisations first, head by head."""

    def normalised(x, name):
        spread = x.var(dim=1, correction=0, keepdim=True)
        x = (x - x.mean(dim=1, keepdim=True)) / (spread + 1e-5).sqrt()
        return x * meta[f"{layer}.{name}.weight"] + meta[f"{layer}.{name}.bias"]

    def linear(x, name):
        return x @ meta[f"{layer}.{name}.weight"].T + meta[f"{layer}.{name}.bias"]

    weights, biases = (meta[f"{layer}.attention.in_proj_{n}"].chunk(3) for n in ("weight", "bias"))
    inputs = [normalised(each, "before") for each in (tokens, examples, examples)]
    rows = zip(inputs, weights, biases, strict=True)
    q, k, v = ((x @ w.T + b).chunk(heads, dim=1) for x, w, b in rows)
    found = [(q[h] @ k[h].T / q[h].shape[1] ** 0.5).softmax(dim=1) @ v[h] for h in range(heads)]
    tokens = tokens + linear(torch.cat(found, dim=1), "attention.out_proj")
    return tokens + linear(F.gelu(linear(normalised(tokens, "mlp.0"), "mlp.1")), "mlp.3")


def in_context(algorithm, meta, task, *, steps):
    """Fifty et al. 2024, with each query by itself, and codes by the episode's number."""
    support, query = (
        features_of(algorithm, meta, x) @ meta["embedding.weight"].T + meta["embedding.bias"]
        for x in (task.support.x, task.query.x)
    )
    order = fold(mix(task.number), torch.arange(len(meta["codes"])))
    codes = meta["codes"][order.argsort()[:5]]
    losses = []
    for token, label in zip(query, task.query.y, strict=True):
        examples, token = support + codes[task.support.y], token[None]
        for layer in ("layers.0", "layers.1"):
            token = attended(meta, layer, token, examples)
            examples = attended(meta, layer, examples, examples)
        width = token.shape[1]
        token = F.layer_norm(token, (width,), meta["norm.weight"], meta["norm.bias"])
        losses.append(F.cross_entropy(token @ codes.T / width**0.5, label[None]))
    return torch.stack(losses).mean()


def perceptron(meta, name, x):
    """Linear layers with ReLU between them."""
    layers = [key.removesuffix(".weight") for key in meta if key.startswith(f"{name}.")][::2]
    for layer in layers:
        x = x if layer is layers[0] else F.relu(x)
        x = x @ meta[f"{layer}.weight"].T + meta[f"{layer}.bias"]
    return x


def cnp(algorithm, meta, task, *, steps):
    """Garnelo et al. 2018, class by class."""
    support, query = (features_of(algorithm, meta, x) for x in (task.support.x, task.query.x))
    encoded = perceptron(meta, "encoder", support)
    means = torch.stack([encoded[task.support.y == label].mean(dim=0) for label in range(5)])
    losses = []
    for features, label in zip(query, task.query.y, strict=True):
        known = [torch.cat([features, each, means.mean(dim=0)]) for each in means]
        hidden = [F.relu(perceptron(meta, "decoder", each)) for each in known]
        logits = [meta["output.weight"] @ each + meta["output.bias"] for each in hidden]
        losses.append(F.cross_entropy(torch.cat(logits), label))
    return torch.stack(losses).mean()


def mann(algorithm, meta, task, *, steps):
    """Santoro et al. 2016, equations 2 to 8, vector by vector."""
    support, query = (features_of(algorithm, meta, x) for x in (task.support.x, task.query.x))
    zeros = partial(torch.zeros, dtype=support.dtype)

    def control(x, label, found, hidden, cell):
        gates = meta["gates.weight"] @ torch.cat([x, label, found, hidden]) + meta["gates.bias"]
        i, f, o, g = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        return hidden, cell, meta["key.weight"] @ hidden + meta["key.bias"]

    def read(key, memory):
        return (meta["log_strength"].exp() * F.cosine_similarity(key, memory)).softmax(dim=0)

    found, hidden, cell, memory = zeros(40), zeros(200), zeros(200), zeros(128, 40)
    usage, attention = zeros(128), zeros(128)
    for x, y in zip(support, task.support.y, strict=True):
        label = F.one_hot(y, 5).to(x.dtype)
        hidden, cell, key = control(x, label, found, hidden, cell)
        least = F.one_hot(usage.argmin(), 128).to(x.dtype)
        gate = meta["write_gate"].sigmoid()
        write = gate * attention + (1 - gate) * least
        memory = memory * (1 - least[:, None]) + torch.outer(write, key)
        attention = read(key, memory)
        found = attention @ memory
        usage = 0.95 * usage + attention + write
    losses = []
    for x, y in zip(query, task.query.y, strict=True):
        out, _, key = control(x, zeros(5), found, hidden, cell)
        seen = torch.cat([out, read(key, memory) @ memory])
        losses.append(F.cross_entropy(meta["output.weight"] @ seen + meta["output.bias"], y))
    return torch.stack(losses).mean()


def imaml(algorithm, meta, task, *, steps, strength=2.0, solver_steps=5):
    """Rajeswaran et al. 2019, algorithm 2, as the loss that has this gradient."""
    start = network_of(meta)

    def loss_of(values, examples):
        params = dict(zip(start, values, strict=True))
        return F.cross_entropy(logits_of(algorithm, params, examples.x), examples.y)

    end = [p.detach().requires_grad_() for p in start.values()]
    for _ in range(steps):
        slopes = torch.autograd.grad(loss_of(end, task.support), end)
        rows = zip(end, slopes, start.values(), strict=True)
        end = [
            (p - LR * (s + strength * (p - first))).detach().requires_grad_()
            for p, s, first in rows
        ]

    def flat(tensors):
        return torch.cat([each.flatten() for each in tensors])

    slope = flat(torch.autograd.grad(loss_of(end, task.support), end, create_graph=True))

    def times(vector):
        product = torch.autograd.grad(slope @ vector, end, retain_graph=True)
        return vector + flat(product) / strength

    x = flat(torch.autograd.grad(loss_of(end, task.query), end))
    residual = direction = x - times(x)
    for _ in range(solver_steps):
        image = times(direction)
        if direction @ image <= 0:
            break
        length = residual @ residual / (direction @ image)
        x, after = x + length * direction, residual - length * image
        direction = after + (after @ after) / (residual @ residual) * direction
        residual = after
    return flat(start.values()) @ x


def cavia(algorithm, meta, task, *, steps):
    """Zintgraf et al. 2019, equations 4 and 5, with FiLM after each batch norm or linear layer."""
    layers = list(algorithm.network.modules())
    norms = [layer for layer in layers if hasattr(layer, "num_features")]
    layers = norms or [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    context = torch.zeros(100, dtype=torch.float64, requires_grad=True)

    def loss_of(context, examples):
        film = iter(meta["film.weight"] @ context)

        def modulated(layer, _, x):
            shape = (1, -1, 1, 1)[: x.ndim]
            scale, shift = (
                torch.stack([next(film) for _ in range(x.shape[1])]).view(shape) for _ in range(2)
            )
            return x * (1 + scale) + shift

        hooks = [layer.register_forward_hook(modulated) for layer in layers]
        logits = logits_of(algorithm, meta, examples.x)
        for hook in hooks:
            hook.remove()
        return F.cross_entropy(logits, examples.y)

    for _ in range(steps):
        loss = loss_of(context, task.support)
        context = context - LR * torch.autograd.grad(loss, context, create_graph=True)[0]
    return loss_of(context, task.query)


def meta_curvature(algorithm, meta, task, *, steps):
    """Park and Oliva 2019: MAML on gradients multiplied by M_o, M_i and M_f."""
    fast = network_of(meta)
    for _ in range(steps):
        loss = F.cross_entropy(logits_of(algorithm, fast, task.support.x), task.support.y)
        slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        matrices = iter(p for name, p in meta.items() if name.startswith("curvatures"))
        for name, slope in zip(list(fast), slopes, strict=True):
            if slope.ndim == 4:
                m = [next(matrices) for _ in range(3)]
                curved = torch.einsum("oid,po,qi,ed->pqe", slope.flatten(2), *m)
            elif slope.ndim == 2:
                curved = next(matrices) @ slope @ next(matrices).T
            else:
                curved = next(matrices) @ slope
            fast[name] = fast[name] - LR * curved.reshape(slope.shape)
    return F.cross_entropy(logits_of(algorithm, fast, task.query.x), task.query.y)


STEPS = ["algorithm.inner_steps=%d", f"algorithm.inner_lr={LR}"]
PLUS = [*STEPS, "algorithm.multi_step_epochs=4", "algorithm.first_order_epochs=2"]
#: test name: (reference, config of the algorithm, overrides, epoch)
REFERENCES = {
    "maml": (maml, "maml", STEPS, 0),
    "fomaml": (partial(maml, first_order=True), "fomaml", STEPS, 0),
    "lslr": (partial(maml, rates=rates_by_step), "lslr", STEPS, 0),
    "maml_pp, epoch 0": (partial(maml_pp, epoch=0), "maml_pp", PLUS, 0),
    "maml_pp, epoch 3": (partial(maml_pp, epoch=3), "maml_pp", PLUS, 3),
    "maml_pp, epoch 9": (partial(maml_pp, epoch=9), "maml_pp", PLUS, 9),
    "multi-step loss": (
        partial(maml_pp, epoch=3, norm=False),
        "lslr",
        [*STEPS, "algorithm.multi_step_epochs=4"],
        3,
    ),
    "meta_sgd": (partial(maml, rates=rates_by_element), "meta_sgd", STEPS, 0),
    "alpha_maml": (
        partial(maml, rates=lambda meta, _: [meta["inner_lr"]] * 18),
        "alpha_maml",
        STEPS,
        0,
    ),
    "anil": (head_only, "anil", STEPS, 0),
    "boil": (body_only, "boil", STEPS, 0),
    "meta_baseline": (meta_baseline, "meta_baseline", [], 0),
    "r2d2": (r2d2, "r2d2", [], 0),
    "proto_maml": (partial(new_head, start=prototypes), "proto_maml", STEPS, 0),
    "unicorn_maml": (partial(new_head, start=one_vector), "unicorn_maml", STEPS, 0),
    "reptile": (reptile, "reptile", STEPS, 0),
    "protonet": (protonet, "protonet", [], 0),
    "soft_kmeans_protonet": (soft_kmeans, "soft_kmeans_protonet", [], 0),
    "self_training": (
        self_training,
        "self_training",
        [*STEPS, "algorithm.self_training_steps=2"],
        0,
    ),
    "matching_net": (matching_net, "matching_net", [], 0),
    "finetune": (finetune, "finetune", [], 0),
    "simple_shot": (partial(finetune, smoothing=0.1), "simple_shot", [], 0),
    "lda": (partial(finetune, smoothing=0.1), "lda", [], 0),
    "qda": (partial(finetune, smoothing=0.1), "qda", [], 0),
    "logistic_regression": (partial(finetune, smoothing=0.1), "logistic_regression", [], 0),
    "baseline_pp": (baseline_pp, "baseline_pp", [], 0),
    "in_context": (in_context, "in_context", [], 0),
    "cnp": (cnp, "cnp", [], 0),
    "mann": (mann, "mann", [], 0),
    "imaml": (imaml, "imaml", STEPS, 0),
    "imaml, near the start": (
        partial(imaml, strength=10.0),
        "imaml",
        [*STEPS, "algorithm.proximal=10"],
        0,
    ),
    "cavia": (cavia, "cavia", STEPS, 0),
    "meta_curvature": (meta_curvature, "meta_curvature", STEPS, 0),
}
#: They learn from unlabelled examples, too.
SEMI_SUPERVISED = ("soft_kmeans_protonet", "self_training")
#: Their outer loss is not the query loss that is logged.
OTHER_LOSS = (
    "maml_pp, epoch 0",
    "maml_pp, epoch 3",
    "multi-step loss",
    "reptile",
    "imaml",
    "imaml, near the start",
    "finetune",
    "simple_shot",
    "lda",
    "qda",
    "logistic_regression",
    "baseline_pp",
)


def make_learner(algorithm, steps, overrides=STEPS, chunk=None, norm="batch", fused=True):
    overrides = [override.replace("%d", str(steps)) for override in overrides]
    model = ["model.hidden_channels=6", f"model.norm={norm}", f"model.fused={fused}"]
    cfg = compose(f"algorithm={algorithm}", *overrides, *model)
    torch.manual_seed(3)
    network, head = instantiate(cfg.model), torch.nn.Linear(6, 5)
    algorithm = instantiate(cfg.algorithm)(network, head, instantiate(cfg.objective))
    learner = MetaLearner(algorithm, instantiate(cfg.optimizer), tasks_per_chunk=chunk).double()
    # Away from the start, where all steps and layers are equal.
    for name, p in learner.algorithm.named_parameters():
        if "network" not in name:
            p.data += 0.02 * torch.randn_like(p)
    return learner


def relative_error(found, reference):
    found, reference = (
        torch.cat([g.flatten() for _, g in sorted(named.items())]) for named in (found, reference)
    )
    return ((found - reference).norm() / reference.norm()).item()


def reference_mean(reference, algorithm, batch, steps):
    algorithm = deepcopy(algorithm)
    for network in algorithm.modules():
        if isinstance(network, Conv4):
            network.fused = False
    gradients, losses = [], []
    for t in range(len(batch.number)):
        learned = [(name, p) for name, p in algorithm.named_parameters() if p.requires_grad]
        meta = {name: p.detach().clone().requires_grad_() for name, p in learned}
        loss = reference(algorithm, meta, batch.task(t), steps=steps)
        slopes = torch.autograd.grad(
            loss, list(meta.values()), allow_unused=True, materialize_grads=True
        )
        gradients.append(dict(zip(meta, slopes, strict=True)))
        losses.append(loss.detach())
    mean = {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}
    return mean, torch.stack(losses)


@pytest.mark.parametrize(
    ("fused", "steps", "shots"),
    [(True, 1, 5), (False, 3, 1), (True, 3, 5), (True, 5, 1)],
)
@pytest.mark.parametrize("name", REFERENCES)
def test_equals_per_task_autograd(name, fused, steps, shots, make_sampler):
    reference, config, overrides, epoch = REFERENCES[name]
    if steps > 1 and not overrides:
        pytest.skip("has no inner loop")
    more = 2 if name in SEMI_SUPERVISED else 0
    batch = make_sampler(shots=shots, unlabelled=more)(torch.arange(3)).to(torch.float64)
    learner = make_learner(config, steps, overrides, fused=fused)
    learner.algorithm.begin_epoch(epoch)
    found, values = learner.meta_gradients(batch)
    expected, losses = reference_mean(reference, learner.algorithm, batch, steps)
    assert relative_error({key: found[key] for key in expected}, expected) < 1e-9
    assert all(g.abs().max() > 0 for key, g in expected.items() if not key.startswith("network"))
    if name not in OTHER_LOSS:
        torch.testing.assert_close(values["loss"], losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", REFERENCES)
def test_tasks_one_after_the_other_give_the_same(name, recompute, make_sampler):
    _, config, overrides, epoch = REFERENCES[name]
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    learner = make_learner(config, 3, overrides, fused=not recompute)
    learner.algorithm.begin_epoch(epoch)
    learner.algorithm.recompute_steps = recompute
    mapped = learner.meta_gradients(batch), learner.evaluate(batch)
    learner.task_map.how = "loop"
    looped = learner.meta_gradients(batch), learner.evaluate(batch)
    assert relative_error(looped[0][0], mapped[0][0]) < 1e-9
    torch.testing.assert_close(looped, mapped, rtol=1e-9, atol=1e-9)
    assert not any(value.requires_grad for part in looped[0] for value in part.values())


@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", REFERENCES)
def test_recomputed_steps_change_nothing(name, fused, make_sampler):
    _, config, overrides, epoch = REFERENCES[name]
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    learner = make_learner(config, 3, overrides, fused=fused)
    learner.algorithm.begin_epoch(epoch)
    expected, values = learner.meta_gradients(batch)
    learner.algorithm.recompute_steps = True
    found, again = learner.meta_gradients(batch)
    assert relative_error(found, expected) < 1e-12
    torch.testing.assert_close(again, values, rtol=1e-12, atol=1e-12)


class ByTorchFunc(MAML):
    """An algorithm as a user may write it, with ``torch.func`` directly."""

    def adapt(self, task, steps):
        slope = torch.func.grad(self.loss_on(task.support))
        path = [self.start(task)]
        for _ in range(steps):
            gradient = slope(path[-1])
            path.append({name: p - LR * gradient[name] for name, p in path[-1].items()})
        return path


def test_an_algorithm_may_use_torch_func(make_sampler):
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    learner = make_learner("maml", 3)
    expected, _ = learner.meta_gradients(batch)
    learner.algorithm.__class__ = ByTorchFunc
    for how in ("vmap", "loop"):
        learner.task_map.how = how
        found, _ = learner.meta_gradients(batch)
        assert relative_error(found, expected) < 1e-9


def test_every_algorithm_has_a_reference():
    """`scratch` has no meta-gradient: it is never meta-trained."""
    shipped = {path.stem for path in (CONFIGS / "algorithm").glob("*.yaml")}
    assert shipped - {"scratch"} == {config for _, config, _, _ in REFERENCES.values()}


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_bias_in_front_of_batch_norm_has_no_gradient(algorithm, make_sampler):
    """Batch norm removes any constant, so the exact meta-gradient of that bias is zero."""
    batch = make_sampler(shots=5)(torch.arange(3)).to(torch.float64)
    found, _ = make_learner(algorithm, steps=5).meta_gradients(batch)
    for block in range(4):
        bias, weight = found[f"network.{block}.0.bias"], found[f"network.{block}.0.weight"]
        assert bias.abs().max() < 1e-12 * max(1.0, weight.abs().max().item())


def by_support_statistics(algorithm, meta, task, *, steps):
    """MAML whose query set is normalised by the support set's statistics."""
    fast = network_of(meta)
    for _ in range(steps):
        logits = logits_of(algorithm, fast, task.support.x)
        fast = descend(F.cross_entropy(logits, task.support.y), fast, LR)
    support, query = task.support.x, task.query.x
    for block in range(4):
        names = f"network.{block}.0.weight", f"network.{block}.0.bias"
        support, query = (
            F.conv2d(x, *(fast[n] for n in names), padding=1) for x in (support, query)
        )
        mean = support.mean((0, 2, 3), keepdim=True)
        variance = ((support - mean) ** 2).mean((0, 2, 3), keepdim=True)
        scale, shift = (
            fast[f"network.{block}.1.{n}"].reshape(1, -1, 1, 1) for n in ("weight", "bias")
        )
        support, query = (
            F.max_pool2d(F.relu((x - mean) / (variance + 1e-5).sqrt() * scale + shift), 2)
            for x in (support, query)
        )
    logits = query.flatten(1) @ fast["head.weight"].T + fast["head.bias"]
    return F.cross_entropy(logits, task.query.y)


@pytest.mark.parametrize("fused", [True, False])
def test_query_set_by_the_support_sets_statistics(fused, make_sampler):
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    learner = make_learner("maml", 2, fused=fused)
    own, _ = learner.meta_gradients(batch)
    learner.algorithm.support_statistics = True
    found, values = learner.meta_gradients(batch)
    expected, losses = reference_mean(by_support_statistics, learner.algorithm, batch, 2)
    assert relative_error(found, expected) < 1e-9
    assert relative_error(own, expected) > 0.1
    torch.testing.assert_close(values["loss"], losses, rtol=1e-9, atol=0)


def test_the_references_differ(make_sampler):
    """The comparison above could not tell MAML from FOMAML if second derivatives did not matter."""
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    first, _ = make_learner("fomaml", 5).meta_gradients(batch)
    second, _ = make_learner("maml", 5).meta_gradients(batch)
    assert relative_error(first, second) > 0.01


def test_maml_pp_without_its_changes_is_maml(make_sampler):
    batch = make_sampler()(torch.arange(3)).to(torch.float64)
    plain, _ = make_learner("maml", 3).meta_gradients(batch)
    off, _ = make_learner("lslr", 3, [*STEPS, "algorithm.learned_rates=false"]).meta_gradients(
        batch
    )
    assert plain.keys() == off.keys()
    assert relative_error(off, plain) < 1e-12


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_chunks_change_nothing(norm, make_sampler):
    batch = make_sampler()(torch.arange(5)).to(torch.float64)
    whole, _ = make_learner("maml", 2, norm=norm).meta_gradients(batch)
    parts, _ = make_learner("maml", 2, chunk=2, norm=norm).meta_gradients(batch)
    assert relative_error(parts, whole) < 1e-12


def test_meta_gradients_have_no_side_effect(make_sampler):
    learner = make_learner("maml_pp", 2)
    before = {name: p.clone() for name, p in learner.state_dict().items()}
    learner.meta_gradients(make_sampler()(torch.arange(2)).to(torch.float64))
    assert all(torch.equal(p, before[name]) for name, p in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())


def test_gradient_steps_worked_by_hand():
    """L(w) = w^2 from w = 1 with alpha = 0.25: w' = w - 0.25 * 2w = w / 2, so 1, 1/2, 1/4."""
    path = gradient_steps(
        lambda params: params["w"] ** 2, {"w": torch.tensor(1.0)}, steps=2, lr=0.25
    )
    assert [params["w"].item() for params in path] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(("first_order", "expected"), [(False, 2 * 0.25 * 0.25), (True, 2 * 0.25)])
def test_derivative_through_gradient_steps_by_hand(first_order, expected):
    """The outer loss w''^2 with w'' = w/4: derivative 2 w'' dw''/dw, where dw''/dw is 1/4, or 1."""

    def outer(w):
        path = gradient_steps(
            lambda params: params["w"] ** 2,
            {"w": w},
            steps=2,
            lr=0.25,
            first_order=first_order,
        )
        return path[-1]["w"] ** 2

    assert torch.func.grad(outer)(torch.tensor(1.0)).item() == pytest.approx(expected)
