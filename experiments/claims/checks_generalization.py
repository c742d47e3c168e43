"""Quick computations on the generalization bounds in the theory of Mixup: linear models on moons and digits."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

import nfm_theory as nt
from nfm_theory.generalization.glm import class_constraint, glm_cubic, rescaled_moment
from nfm_theory.generalization.rademacher import covariance, whitening

from ..data.digits import load_digits
from .check import FAILS, LIMITS, Check
from .checks_numeric import ORDER_TOLERANCE, RATIO_TOLERANCE, seeded

_GEN = nt.generalization
THETA = (0.8, -1.2)
#: Radius and γ of the class, confidence δ, and number of draws for the generalization bound.
RADIUS, GAMMA, DELTA, DRAWS = 0.4, 0.15, 0.05, 10
#: Largest relative gap at which a curve counts as close to another.
CLOSE = 0.1


@cache
def _moons(count: int = 60) -> tuple[Tensor, Tensor]:
    from sklearn import datasets

    points, labels = datasets.make_moons(count, noise=0.15, random_state=0)
    x = torch.from_numpy(points)
    return x - x.mean(0), torch.from_numpy(labels).double()


def glm_regularizer() -> Check:
    """Is the remainder of the order and size that the theory predicts, and does the term exist at Beta(1, 1)?"""
    x = torch.rand(40, 2, generator=seeded(), dtype=torch.float64) ** 3  # skewed: symmetric data have no third moment
    x, y = 3 * (x - x.mean(0)), (torch.arange(40) % 2).double()
    theta = torch.tensor(THETA, dtype=torch.float64)
    scores = x @ theta
    standard = (nn.functional.softplus(scores) - y * scores).mean()
    t = torch.tensor([0.004, 0.002, 0.001], dtype=torch.float64)
    added = _GEN.glm_mixup_loss(theta, x, y, alpha=8.0, scale=t, num_lam=400) - standard
    left = added - t**2 * _GEN.glm_regularizer(theta, x, alpha=8.0)
    order = float(torch.log2(left[-2] / left[-1]))
    ratio = float(left[-1] / (t[-1] ** 3 * glm_cubic(theta, x, alpha=8.0)))
    good = abs(order - 3) < ORDER_TOLERANCE and abs(ratio - 1) < RATIO_TOLERANCE
    try:
        beyond = f"the moment at Beta(1, 1) is {rescaled_moment(1.0):.3g}"
        exists = True
    except ValueError:
        beyond, exists = "at Beta(1, 1) the moment is infinite and the quadratic does not exist", False
    detail = f"40 samples, α = β = 8: remainder of order {order:.2f}, {ratio:.3f} times the predicted; {beyond}"
    return Check(FAILS, detail) if not good else Check.of(True, detail) if exists else Check(LIMITS, detail)


def _comparisons(found: list) -> Check:
    good = sum(c.holds for c in found)
    ratios = [c.ratio for c in found]
    detail = f"{good} of {len(found)} bounds hold; bound / complexity {min(ratios):.2f} to {max(ratios):.2f}"
    return Check.of(good == len(found), detail)


def rademacher_glm() -> Check:
    """Is the complexity of the ellipsoid below its bound, with a proved ρ?"""
    digits = load_digits(2, images=False).x[:120]
    found = []
    for x, norms in ((_moons()[0], (0.5, 1.0, 2.0)), (digits - digits.mean(0), (0.05, 0.1, 0.2))):
        for norm in norms:
            rho = _GEN.retentiveness(x, max_norm=norm, num_directions=8, generator=seeded()).lower
            theta = torch.full((x.shape[1],), norm / x.shape[1] ** 0.5, dtype=x.dtype)
            gamma = float(class_constraint(theta, x))
            for sharp in (False, True):
                found.append(_GEN.compare_glm_bound(x, gamma, rho, sharp=sharp, samples=500, generator=seeded()))
    return _comparisons(found)


def rademacher_two_layer() -> Check:
    """Is the complexity below its bound for the features of a random ReLU layer?"""
    x, found = _moons()[0], []
    for width in (8, 32):
        weight = torch.randn(x.shape[1], width, generator=seeded(width), dtype=x.dtype)
        for count in (12, len(x)):
            features = torch.relu(x[:count] @ weight)
            found.append(_GEN.compare_two_layer_bound(features, 1.0, samples=500, generator=seeded()))
    return _comparisons(found)


def _member(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Logistic regression on weighted samples by a few Newton steps, scaled down until it is in the class."""
    theta = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(8):
        p = torch.sigmoid(x @ theta)
        slope = x.T @ (weights * (p - y)) + 2e-3 * theta
        curve = (x * (weights * p * (1 - p))[:, None]).T @ x + 2e-3 * torch.eye(len(theta), dtype=x.dtype)
        theta = theta - torch.linalg.solve(curve, slope)
    theta = theta * min(1.0, RADIUS / float(theta.norm()))
    while class_constraint(theta, x) > GAMMA:
        theta = 0.99 * theta
    return theta


def generalization_gap() -> Check:
    """Is the expected loss below its bound, with the digits 3 and 8 as the population?"""
    data = load_digits(2, images=False)
    x, y = torch.cat([data.x, data.x_test]), torch.cat([data.y, data.y_test]).double()
    x = x - x.mean(0)
    span = RADIUS * float(x.norm(dim=1).max())
    rank = whitening(covariance(x)).shape[1]
    rho = _GEN.retentiveness(x, max_norm=RADIUS, num_directions=4, generator=seeded()).lower
    largest = math.log1p(math.exp(span))
    kept, total, empty = 0, 0, []
    for n in (30, 1_000, 100_000):
        complexity = _GEN.glm_bound(GAMMA, rho, rank=rank, num_samples=n)
        bounds = []
        for draw in range(DRAWS):
            picked = torch.randint(len(x), (n,), generator=seeded(draw))
            weights = torch.bincount(picked, minlength=len(x)).double() / n
            scores = x @ _member(x, y, weights)
            losses = nn.functional.softplus(scores) - y * scores
            bounds.append(
                _GEN.generalization_bound(
                    float(weights @ losses), complexity, lipschitz=1.0, loss_range=span, num_samples=n, delta=DELTA
                )
            )
            kept, total = kept + (float(losses.mean()) <= bounds[-1]), total + 1
        if min(bounds) >= largest:
            empty.append(n)
    words = f"above any loss of the class at n = {', '.join(map(str, empty))}" if empty else "never above any loss"
    return Check.of(kept >= (1 - DELTA) * total, f"holds in {kept} of {total} draws, n = 30 to 100,000; it is {words}")


def approximation() -> Check:
    """Is the Mixup loss close to its second-order expansion while logistic regression is trained with Mixup?"""
    x, y = _moons(30)
    model = nn.Linear(2, 1).double().eval()
    theta, bias = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    snapshots = []
    for step in range(61):
        if step % 10 == 0:
            snapshots.append({"weight": theta.clone(), "bias": bias.clone()})
        lam = nt.MixingLaw(1.0).sample((len(x), 1), unmixed=False, generator=seeded(step), dtype=x.dtype)
        partner = torch.randperm(len(x), generator=seeded(1000 + step))
        mixed, target = lam * x + (1 - lam) * x[partner], lam[:, 0] * y + (1 - lam[:, 0]) * y[partner]
        slope = torch.sigmoid(mixed @ theta[0] + bias) - target
        theta, bias = theta - (slope @ mixed / len(x))[None], bias - slope.mean()
    model, setting = model.requires_grad_(False), {"law": nt.Law(), "loss": "logistic"}
    gaps = _GEN.quadratic_gap_along(nt.Problem(model, x, y, params=state, **setting) for state in snapshots)
    worst = max(gap.relative for gap in gaps)
    share = max(gap.of_regularization for gap in gaps[1:])
    detail = f"largest gap {100 * worst:.1f} % of the loss, {100 * share:.0f} % of what Mixup adds to it"
    return Check.of(worst < CLOSE, detail)
