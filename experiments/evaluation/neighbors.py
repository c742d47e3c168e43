"""Measurements for the neighbors of this theory: what mixing does to data, features, margins, and the expansion."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nfm_theory as nt
from nfm_theory.generalization.partners import k_mixup_weights
from nfm_theory.setting.matching import matched_partners, squared_distances

from ..data.images import ImageData
from ..data.neighbor_sets import CLASSES, DIMENSION, PATCHES, features
from .subject import SEED, Measured, Subject

#: Batches of mixed samples for the distances, and samples with which an expansion is verified.
DRAWS, SAMPLES = 20, 32
#: Points on each side of the grid on which a boundary in the plane is found.
GRID = 400
EPS = (0.02, 0.01, 0.005, 0.0025)


def training_part(subject: Subject, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first training samples of a recipe as the network sees them, float32, and their labels.

    Args:
        subject: network, data and training.
        count: number of samples; `None` for all that the recipe uses.
    """
    data, limit = subject.data, subject.training.samples if subject.training else None
    count = min(c for c in (count, limit, 10**9) if c is not None)
    if isinstance(data, ImageData):
        part = data.train.first(count)
        return data.normalize(part.images), part.labels
    return data.x[:count], data.y[:count]


def likelihood(subject: Subject) -> Measured:
    """Mean negative log-likelihood of the labels on the test set, in nats."""
    data = subject.data
    if isinstance(data, ImageData):
        logits, labels = subject.predict(data.test), data.test.labels
    else:
        with torch.inference_mode():
            logits, labels = subject.network(data.x_test), data.y_test
    return {"nll": float(F.cross_entropy(logits.double(), labels))}, {"samples": len(labels)}


def mixed_distance(subject: Subject) -> Measured:
    """How far mixed samples are from the data, and how often both parts of a mixture have the same class.

    The distance is that to the nearest training sample, in units of the mean distance between two training samples.
    """
    x, y = training_part(subject)
    scheme, size = subject.training.scheme, min(len(x), subject.training.batch_size)
    seeded = torch.Generator().manual_seed(SEED)
    flat = x.flatten(1).double()
    apart, same = [], []
    for _ in range(DRAWS):
        rows = torch.randperm(len(flat), generator=seeded)[:size]
        part = flat[rows]
        index = torch.from_numpy(matched_partners(squared_distances(part), scheme.matching, seeded))
        lam = scheme.law.mixing.sample((size, 1), unmixed=False, generator=seeded, dtype=torch.float64)
        apart.append(float(torch.cdist(lam * part + (1 - lam) * part[index], flat).amin(1).mean()))
        same.append(float((y[rows] == y[rows][index]).double().mean()))
    scale = float(torch.pdist(flat[: min(len(flat), 500)]).mean())
    return {"mixed_distance": sum(apart) / DRAWS / scale, "same_class": sum(same) / DRAWS}, {"draws": DRAWS}


def expansion(subject: Subject) -> Measured:
    """Is the expansion right on the trained network, with the scheme's own λ and partners, at the input?

    Also the regularizers, and the mean squared length of the directions, `E |g_r - g_i|²` over pairs.
    """
    scheme = subject.training.scheme
    x, y = training_part(subject, SAMPLES)
    model, x = copy.deepcopy(subject.model).double(), x.double()
    seeded = torch.Generator().manual_seed(SEED)
    k = scheme.matching
    weights = k_mixup_weights(x, k, sweeps=400, generator=seeded).value if k > 1 else None
    law = scheme.law if scheme.law.perturbs else nt.Law()
    report = nt.verify(nt.Problem(model, x, y, law=law, partners=weights), eps=EPS)
    table = torch.full((len(x), len(x)), 1 / len(x), dtype=torch.float64) if weights is None else weights
    length = float((table * torch.from_numpy(squared_distances(x))).sum() / len(x))
    terms = {name: float(getattr(report.terms, name)) for name in ("R1", "R2", "R3", "C3")}
    found = {
        "expansion/holds": float(report.verdict == "holds"), "expansion/order": report.observed_order,
        "expansion/ratio": report.coefficient_ratio, "expansion/length": length,
    }  # fmt: skip
    return found | {f"expansion/{name}": value for name, value in terms.items()}, {"samples": len(x), "k": k}


def learned_features(subject: Subject) -> Measured:
    """Which features of the data with two features per class the network has learned.

    A feature is learned if a sample with it alone is classified correctly. Also the largest inner product of a filter
    of the class with its features, of the weaker and of the stronger one of each class.
    """
    known = features()
    alone = torch.zeros(CLASSES, 2, PATCHES, DIMENSION)
    alone[:, :, 0] = known
    with torch.inference_mode():
        right = subject.network(alone.flatten(0, 1)).argmax(1).reshape(CLASSES, 2) == torch.arange(CLASSES)[:, None]
    filters = subject.model.filters.weight.detach().reshape(CLASSES, -1, DIMENSION)
    products = torch.einsum("crd,cfd->crf", filters, known).amax(1)
    weak, strong = products.amin(1), products.amax(1)
    both = right.all(1).double().mean()
    return {
        "learned_both": float(both), "learned_any": float(right.any(1).double().mean()),
        "feature_balance": float((weak / strong).mean()), "feature_strong": float(strong.mean()),
    }, {}  # fmt: skip


def boundary(model: nn.Module, x: Tensor) -> Tensor:
    """Points in the plane between which the prediction of a network with two classes changes, `(m, 2)`.

    Args:
        model: network for points `(n, 2)`.
        x: points around which the boundary is looked for, `(n, 2)`.
    """
    low, high = x.amin(0) - 1, x.amax(0) + 1
    axes = [torch.linspace(float(a), float(b), GRID) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes)
    with torch.inference_mode():
        logits = model(points)
    gap = (logits[:, 1] - logits[:, 0]).reshape(GRID, GRID)
    points, found = points.reshape(GRID, GRID, 2), []
    for axis in (0, 1):
        first, second = gap.narrow(axis, 0, GRID - 1), gap.narrow(axis, 1, GRID - 1)
        change = (first > 0) != (second > 0)
        share = (first / (first - second))[change][:, None]
        starts, ends = points.narrow(axis, 0, GRID - 1)[change], points.narrow(axis, 1, GRID - 1)[change]
        found.append(starts + share * (ends - starts))
    return torch.cat(found)


def margins(subject: Subject) -> Measured:
    """Distances in the plane from the training points that are classified correctly to the decision boundary."""
    x, y = training_part(subject)
    with torch.inference_mode():
        right = subject.network(x).argmax(1) == y
    edge = boundary(subject.network, x)
    if not len(edge) or not right.any():
        raise ValueError(
            "margins: expected a network whose prediction changes near the data, got one class everywhere."
        )
    apart = torch.cdist(x[right], edge).amin(1)
    found = {"margin/mean": float(apart.mean()), "margin/least": float(apart.min())}
    return found | {"margin/right": float(right.double().mean())}, {"grid": GRID}


NEIGHBOR_SUITES = {
    suite.__name__: suite for suite in (likelihood, mixed_distance, expansion, learned_features, margins)
}
