"""Quick computations on small networks trained on digits, and on linear models.

Each takes a second or two, gives the same result every time, and says with its numbers whether a statement holds.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

import nfm_theory as nt
from nfm_theory.adversarial import Effort, bound
from nfm_theory.expansion.paths import taylor_coefficients

from ..data.digits import load_digits, verification_subset
from ..studies.networks import centered, trained_network
from .check import FAILS, HOLDS, LIMITS, OPEN, Check

NFM = nt.Law(add_noise=0.4, mult_noise=0.2)
#: Tolerance for the ratio to a prediction at the smallest scale, and for an order.
RATIO_TOLERANCE, ORDER_TOLERANCE = 0.02, 0.1
#: Tolerance for two ways to compute the same number.
IDENTITY = 1e-10
#: Number of samples in the checks of bounds, and the contrast of one of the views.
SAMPLES, CONTRAST = 40, 0.7


def seeded(seed: int = 0) -> torch.Generator:
    """A random generator with a seed."""
    return torch.Generator().manual_seed(seed)


@cache
def _digits(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network with ten classes, and some of its training samples."""
    return (trained_network("mlp", 10).model, *verification_subset(load_digits(10), count))


@cache
def _threes(model: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network that tells 3 from 8, its centered samples and labels, and the mean that was subtracted."""
    network = trained_network(model, 2, centre=SAMPLES)
    raw, labels = verification_subset(load_digits(2), SAMPLES)
    x = verification_subset(centered(load_digits(2), SAMPLES), SAMPLES)[0]
    return network.model, x, labels, (raw - x)[0]


def _views(x: Tensor, mean: Tensor | float = 0.0) -> list[Tensor]:
    """Three views of each image: unchanged, shifted by one pixel, and with less contrast."""
    raw = x + mean
    blank = float(raw.min())
    shifted = torch.full_like(raw, blank)
    shifted[..., 1:] = raw[..., :-1]
    return [x, shifted - mean, blank + CONTRAST * (raw - blank) - mean]


def stability_unmixing() -> Check:
    """Is the stability loss the same for λ as in training and for λ from D̃?"""
    branches = torch.randn(2, 4, 1, generator=seeded(), dtype=torch.float64)
    weight = torch.randn(1, 3, generator=seeded(1), dtype=torch.float64)
    law = nt.Law(alpha=0.7, beta=1.8, mult_noise=0.2)
    problem = nt.Branches(lambda z: torch.tanh(z) @ weight, branches, law=law)
    values = [float(nt.loss(problem, method="exact", form=form)) for form in ("mixed", "unmixed")]
    gap = abs(values[0] - values[1])
    return Check.of(gap < IDENTITY, f"both sides by quadrature, m = 2, K = 3, n = 4: they differ by {gap:.0e}")


def stability_remainder() -> Check:
    """Do the order and the coefficient of the remainder of the stability loss agree with the theory?"""
    model, x, _ = _digits(3)
    scales = [0.008, 0.004, 0.002, 0.001, 0.0005]
    reports = {m: nt.verify(nt.Branches(model, _views(x)[:m], layer="hidden1", law=NFM), eps=scales) for m in (2, 3)}
    words = ", ".join(
        f"m = {m}: {r.verdict}, order {r.observed_order:.2f}, ratio {r.coefficient_ratio:.4f}"
        for m, r in reports.items()
    )
    return _from_verdicts([r.verdict for r in reports.values()], f"first hidden layer, n = {len(x)}; {words}")


def _from_verdicts(verdicts: list[str], detail: str) -> Check:
    if "refuted" in verdicts:
        return Check(FAILS, detail)
    return Check(HOLDS if all(v in ("holds", "certified") for v in verdicts) else OPEN, detail)


def stability_bound() -> Check:
    """Does the inequality of NoisyMix hold on a network that meets its assumptions, at small and larger ε?"""
    model, x, labels, mean = _threes("leaky_mlp")
    branches = nt.Branches(model, _views(x, mean), labels, law=nt.Law(), gamma=12.0, loss="logistic")
    options = {"certificate": "crown", "effort": Effort(steps=20, restarts=1)}
    found = {eps: bound(branches, eps, **options) for eps in (0.001, 0.1)}
    words = ", ".join(f"{r.verdict} at ε = {eps:g}" for eps, r in found.items())
    failed = sorted({name for r in found.values() for name in r.failed})
    detail = (
        f"bias-free network, m = 3, {SAMPLES} digits: {words}; assumptions that fail: {', '.join(failed) or 'none'}"
    )
    return Check(_by_scale([r.verdict for r in found.values()]), detail)


def _by_scale(verdicts: list[str]) -> str:
    """The outcome of a statement about small ε: the smallest ε decides, the others say how far it goes."""
    good = [verdict in ("holds", "certified") for verdict in verdicts]
    if good[0]:
        return LIMITS if "refuted" in verdicts else HOLDS if all(good) else OPEN
    return FAILS if verdicts[0] == "refuted" else OPEN


def linear_bound() -> Check:
    """Does the adversarial bound hold for logistic regression without a bias, on digits and on four points?"""
    _, x, labels, _ = _threes("leaky_mlp")
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 1, bias=False)).double().eval()
    with torch.no_grad():
        # The difference of the class means tells the classes apart, so no training is needed
        model[1].weight[0] = 0.05 * (x[labels == 1].mean(0) - x[labels == 0].mean(0)).flatten()
    wanted = (model(x)[:, 0] > 0) == labels
    x = x[wanted] - x[wanted].mean(0)
    line = nn.Linear(1, 1, bias=False).double().eval().requires_grad_(False)
    line.weight[:] = 3.0
    points = torch.tensor([[-3.0], [-0.1], [0.1], [3.0]], dtype=torch.float64)
    problems = {
        f"{len(x)} digits": nt.Problem(model.requires_grad_(False), x, labels[wanted], law=nt.Law(), loss="logistic"),
        "the points ±0.1 and ±3 of a line": nt.Problem(
            line, points, (points[:, 0] > 0).long(), law=nt.Law(), loss="logistic"
        ),
    }
    words, outcomes, failed = [], [], set()
    for name, problem in problems.items():
        found = {eps: bound(problem, eps, radius="paper") for eps in (0.01, 0.1, 1.0)}
        words.append(f"{name}: " + ", ".join(f"{r.verdict} at ε = {eps:g}" for eps, r in found.items()))
        outcomes.append(_by_scale([r.verdict for r in found.values()]))
        failed |= {assumption for r in found.values() for assumption in r.failed}
    detail = f"radius of the paper; {'; '.join(words)}; assumptions that fail: {', '.join(sorted(failed)) or 'none'}"
    return Check(next(one for one in (FAILS, OPEN, LIMITS, HOLDS) if one in outcomes), detail)


def slack() -> Check:
    """Does the slack of the bound approach its prediction for small ε?"""
    model, x, labels, _ = _threes("leaky_mlp")
    problem = nt.Problem(model, x, labels, law=nt.Law(), loss="logistic")
    found = {eps: bound(problem, eps, certificate="crown").slack_ratio for eps in (1e-2, 1e-3, 1e-4)}
    words = ", ".join(f"{low:.4f} to {high:.4f} at ε = {eps:g}" for eps, (low, high) in found.items())
    low, high = found[1e-4]
    good = abs(low - 1) < RATIO_TOLERANCE and abs(high - 1) < RATIO_TOLERANCE
    return Check.of(good, f"slack / prediction, bias-free network, one margin: {words}")


def any_order() -> Check:
    """Do the expansions of order 0 to 3 of the Mixup loss leave out what is predicted?"""
    model, x, y = _digits(6)
    found = {p: nt.verify(nt.Problem(model, x, y, law=nt.Law()), order=p) for p in range(4)}
    words = ", ".join(f"p = {p}: {r.observed_order:.2f}, ratio {r.coefficient_ratio:.3f}" for p, r in found.items())
    return _from_verdicts([r.verdict for r in found.values()], f"order of the remainder, {words}")


def integral_form() -> Check:
    """Is the integral form of the remainder equal to the difference?"""
    model, x, y = _digits(4)
    double = nt.Problem(model, x, y, law=NFM)
    draw = double.draw(len(x), 10, generator=seeded())
    truth = nt.integral_remainder(double, draw, 0.01)
    value = double.path(draw)(torch.tensor(0.01, dtype=torch.float64))
    powers = 0.01 ** torch.arange(3, dtype=torch.float64)
    plain = value - taylor_coefficients(double.path(draw), 2) @ powers
    gap = float((truth - plain).abs().max() / truth.abs().max())
    return Check.of(gap < 1e-6, f"40 draws at ε = 0.01 in float64: the two forms differ by {gap:.0e} of the largest")


def telescoping() -> Check:
    """Is the curvature from one adjoint and many tangents equal to that of the dense Hessian?"""
    model, x, y = _digits(3)
    terms = nt.terms(nt.Problem(model, x, y, law=nt.Law(alpha=0.0, add_noise=1.0)), remainder=False)
    total = 0.0
    for image, label in zip(x, y, strict=True):

        def loss(flat: Tensor, image: Tensor = image, label: Tensor = label) -> Tensor:
            return nn.functional.cross_entropy(model(flat.reshape(1, *image.shape)), label[None])

        total += float(torch.func.hessian(loss)(image.flatten()).trace()) / 2 / len(x)
    ours = float(terms.R2_add + terms.R3_add)
    gap = abs(ours / total - 1)
    return Check.of(gap < IDENTITY, f"half the trace of the Hessian, network on digits: relative difference {gap:.0e}")


def partners() -> Check:
    """Do the order and the coefficient of the remainder agree with the theory for two relatives of Mixup?"""
    model, x, y = _digits(10)
    gen = nt.generalization
    views, group = torch.cat(_views(x[:3])), torch.arange(3).repeat(3)
    settings = {
        "2-mixup": (x, y, gen.k_mixup_weights(x, 2, sweeps=200, generator=seeded()).value),
        "DP-Mix self": (views, y[group], gen.self_weights(group)),
    }
    found = {
        name: nt.verify(nt.Problem(model, images, labels, law=nt.Law(), partners=weights))
        for name, (images, labels, weights) in settings.items()
    }
    words = ", ".join(
        f"{name}: order {r.observed_order:.3f}, ratio {r.coefficient_ratio:.4f}" for name, r in found.items()
    )
    return _from_verdicts([r.verdict for r in found.values()], words)


def margin() -> Check:
    """Is the margin along segments to the nearest digit of another class at least its bound?"""
    model, _, _ = _digits(3)
    data = load_digits(10)
    x, y = data.x_test[:60], data.y_test[:60]
    apart = torch.cdist(x.flatten(1), data.x_test.flatten(1)).masked_fill(y[:, None] == data.y_test, math.inf)
    found = nt.generalization.segment_margins(nt.Problem(model, x, y), data.x_test[apart.argmin(1)])
    good = int(found.consistent.sum())
    return Check.of(good == len(x), f"bound ≤ margin found on {good} of {len(x)} segments, Jacobians at 33 points each")
