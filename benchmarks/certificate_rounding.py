"""No false certificate by rounding: `python -m benchmarks.certificate_rounding [--num N]`.

Random networks with one input, in float32 and float64, some with hidden values near 1e6 that cancel. Their margins are
piecewise linear, so that rational arithmetic gives the exact distance to the next other prediction. The radii lie at
this distance and a few units in the last place around it, where rounding decides. A certificate is false if a margin in
exact arithmetic, or as the network computes it, is smaller than what was certified.
"""

import argparse
import itertools
import time
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from benchmarks.estimators.measure import num_threads
from nfm_theory import Problem
from nfm_theory.adversarial import certify
from nfm_theory.adversarial.certificates import CertificateMethod

METHODS: tuple[CertificateMethod, ...] = ("region", "crown", "crown-ibp", "interval", "enumeration")
#: Units in the last place around the exact distance, and parts of it.
ULPS, PARTS = (-64, -8, -2, -1, 0, 1, 2, 8), (0.5, 0.99, 1.01)


def random_network(seed: int) -> tuple[nn.Sequential, Tensor]:
    """A ReLU or leaky network with one input, and one point."""
    r = torch.Generator().manual_seed(seed)
    pick = lambda low, high: int(torch.randint(low, high + 1, (), generator=r))  # noqa: E731
    sizes = [1, *(pick(2, 5) for _ in range(pick(1, 2))), pick(1, 3)]
    layers = []
    for width, after in itertools.pairwise(sizes):
        linear = nn.Linear(width, after)
        for parameter in linear.parameters():
            parameter.data = torch.randn(parameter.shape, generator=r)
        layers += [linear, nn.LeakyReLU(0.25) if seed % 2 else nn.ReLU()]
    if seed % 3 == 0:  # the first two hidden units are large, nearly equal, and subtracted
        first, second = layers[0], layers[2]
        first.weight.data[1], first.bias.data[:2] = first.weight.data[0] * 1.01, 1e6
        second.weight.data[:, 1] = -second.weight.data[:, 0]
    network = nn.Sequential(*layers[:-1]).eval().requires_grad_(False)
    dtype = torch.float64 if seed % 4 == 3 else torch.float32
    return network.to(dtype), torch.randn(1, 1, generator=r).to(dtype)


def _exact(tensor: Tensor) -> list:
    return [Fraction(v) if not isinstance(v, list) else [Fraction(u) for u in v] for v in tensor.tolist()]


@dataclass(frozen=True)
class Line:
    """A network with one input in rational arithmetic."""

    weights: list[list[list[Fraction]]]
    biases: list[list[Fraction]]
    kink: Fraction

    @staticmethod
    def of(network: nn.Sequential) -> "Line":
        """The network with its weights as rational numbers."""
        linear = [module for module in network if isinstance(module, nn.Linear)]
        kink = Fraction(getattr(network[1], "negative_slope", 0))
        return Line([_exact(m.weight) for m in linear], [_exact(m.bias) for m in linear], kink)

    def hidden(self, x: Fraction, depth: int) -> list[Fraction]:
        """The outputs of the linear layer number `depth`."""
        h = [x]
        for k in range(depth + 1):
            if k:
                h = [v if v >= 0 else self.kink * v for v in h]
            rows = zip(self.weights[k], self.biases[k], strict=True)
            h = [sum((w * v for w, v in zip(row, h, strict=True)), b) for row, b in rows]
        return h

    def margins(self, x: Fraction, label: int) -> list[Fraction]:
        """The margins of the label."""
        f = self.hidden(x, len(self.weights) - 1)
        return [f[0] if label else -f[0]] if len(f) == 1 else [f[label] - v for j, v in enumerate(f) if j != label]

    def knots(self, low: Fraction, high: Fraction) -> list[Fraction]:
        """Points between which the network is linear, from `low` to `high`."""
        found = [low, high]
        for depth in range(len(self.weights) - 1):
            values = [self.hidden(x, depth) for x in found]
            more = set(found)
            for (a, z), (b, w) in itertools.pairwise(zip(found, values, strict=True)):
                more |= {a + (b - a) * p / (p - q) for p, q in zip(z, w, strict=True) if (p < 0) != (q < 0)}
            found = sorted(more)
        return found

    def flip_distance(self, x: Fraction, label: int, reach: int) -> Fraction | None:
        """The distance to the nearest point with a margin of 0, up to `reach`; `None` if there is none."""
        found = []
        for sign in (-1, 1):
            ends = sorted([x, x + sign * reach])
            knots = self.knots(*ends)[::sign]
            values = [self.margins(t, label) for t in knots]
            for (a, z), (b, w) in itertools.pairwise(zip(knots, values, strict=True)):
                roots = [a + (b - a) * p / (p - q) for p, q in zip(z, w, strict=True) if p > 0 >= q]
                found += [abs(t - x) for t in roots]
        return min(found, default=None)

    def minima(self, x: Fraction, label: int, radius: Fraction) -> list[Fraction]:
        """The smallest value of each margin in the ball."""
        values = [self.margins(t, label) for t in self.knots(x - radius, x + radius)]
        return [min(column) for column in zip(*values, strict=True)]


@dataclass
class Found:
    """What was found.

    Attributes:
        networks: number of networks.
        balls: number of certified balls, over all methods.
        robust: number of balls that were certified robust.
        false: number of certified margins that are larger than a margin in exact arithmetic.
        computed: number of certified margins that are larger than a margin that the network computes.
        reached: number of balls of 0.99 of the exact distance that enumeration certifies.
        within: number of all these balls.
        refused: number of networks whose outputs change with the batch, which have no certificate.
    """

    networks: int = 0
    balls: int = 0
    robust: int = 0
    false: int = 0
    computed: int = 0
    reached: int = 0
    within: int = 0
    refused: int = 0

    @property
    def share(self) -> float:
        """Part of the balls of 0.99 of the exact distance that enumeration certifies."""
        return self.reached / max(1, self.within)


def _radii(distance: Fraction, dtype: torch.dtype) -> Tensor:
    at, found = torch.tensor(float(distance), dtype=dtype), []
    for steps in ULPS:
        r = at
        for _ in range(abs(steps)):
            r = torch.nextafter(r, torch.tensor(torch.inf if steps > 0 else 0.0, dtype=dtype))
        found.append(r)
    return torch.stack([*found, *(at * part for part in PARTS)])


def check(found: Found, seed: int, methods: tuple[CertificateMethod, ...] = METHODS) -> None:
    """Certify one network with radii around its exact distance."""
    network, x = random_network(seed)
    line, at = Line.of(network), Fraction(float(x))
    outputs = line.hidden(at, len(line.weights) - 1)
    label = int(outputs[0] > 0) if len(outputs) == 1 else outputs.index(max(outputs))
    distance = line.flip_distance(at, label, 8)
    found.networks += 1
    if distance is None:
        return
    radii = _radii(distance, x.dtype)
    exact = [line.minima(at, label, Fraction(float(r))) for r in radii]
    loss = "logistic" if len(outputs) == 1 else "cross_entropy"
    try:
        problem = Problem(network, x.expand(len(radii), 1).clone(), torch.full((len(radii),), label), loss=loss)
    except ValueError:  # so much cancels that the outputs change with the batch, and there is no certificate
        found.refused += 1
        return
    grid = x + radii[:, None] * torch.linspace(-1, 1, 41, dtype=x.dtype)
    out = network(grid.reshape(-1, 1))
    if len(outputs) == 1:
        margins = out if label else -out
    else:
        margins = out[:, [label]] - out[:, [j for j in range(out.shape[1]) if j != label]]
    computed = margins.reshape(*grid.shape, -1).amin(1)
    for method in methods:
        bound = certify(problem, radii, norm="linf" if seed % 5 else "l2", method=method)
        found.balls += len(radii)
        found.robust += int(bound.robust.sum())
        for row, smallest in zip(bound.margins.tolist(), exact, strict=True):
            certain = [m for m in zip(row, smallest, strict=True) if m[0] > -float("inf")]
            found.false += sum(Fraction(m) > true for m, true in certain)
        found.computed += int((bound.margins > computed).sum())
        if method == "enumeration":
            found.within += 1
            found.reached += int(bound.robust[len(ULPS) + PARTS.index(0.99)])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.certificate_rounding", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--num", type=int, default=10_000, help="number of networks")
    args = parser.parse_args()
    found, start = Found(), time.perf_counter()
    with num_threads(1):
        for seed in range(args.num):
            check(found, seed)
    print(
        f"{found.networks} networks, {found.balls} balls, {found.robust} certified robust: {found.false} margins are "
        f"smaller in exact arithmetic, {found.computed} as the network computes them; enumeration certifies "
        f"{100 * found.share:.0f} % at 0.99 of the exact distance; {found.refused} networks refused"
    )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
