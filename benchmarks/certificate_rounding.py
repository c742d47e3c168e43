"""No false certificate by rounding: `python -m benchmarks.certificate_rounding [--num N] [--json PATH]`.

Random networks in float32 and float64, some with hidden values near 1e6 that cancel. They see their inputs along one
direction, and are piecewise linear there, so that rational arithmetic gives the exact distance to the next other
prediction. The radii lie at this distance and a few units in the last place around it, where rounding decides. A
certificate is false if a margin in exact arithmetic, or as the network computes it, is smaller than what was certified.
Progress is kept in the file, so that a run that was interrupted goes on.
"""

import argparse
import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.estimators.measure import machine, num_threads, versions
from nfm_theory import Problem
from nfm_theory.adversarial import certify
from nfm_theory.adversarial.certificates import CertificateMethod

METHODS: tuple[CertificateMethod, ...] = ("region", "crown", "crown-ibp", "interval", "enumeration")
#: Units in the last place around the exact distance, and parts of it.
ULPS, PARTS = (-64, -8, -2, -1, 0, 1, 2, 8), (0.5, 0.99, 1.01)
#: Directions of the inputs, whose Euclidean lengths are whole numbers.
DIRECTIONS = ((1,), (3, -4), (1, 2, -2), (-2, 3, 6))
#: Most hidden units with which the regions are enumerated, which takes long with more.
ENUMERATED = 3
STRIDE = 50


def random_network(seed: int) -> tuple[nn.Sequential, Tensor, tuple[int, ...]]:
    """A ReLU or leaky network, one point, and the direction along which the network sees it."""
    r = torch.Generator().manual_seed(seed)
    pick = lambda low, high: int(torch.randint(low, high + 1, (), generator=r))  # noqa: E731
    sizes = [1, *(pick(2, 5) for _ in range(pick(1, 2))), pick(1, 3)]
    direction = DIRECTIONS[pick(0, len(DIRECTIONS) - 1)]
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
    first = layers[0]  # with weights of 16 binary digits, each product with a whole number below 7 is exact
    across = (first.weight.data * 4096).round() / 4096
    first.weight.data, first.in_features = across * torch.tensor(direction), len(direction)
    network = nn.Sequential(*layers[:-1]).eval().requires_grad_(False)
    dtype = torch.float64 if seed % 4 == 3 else torch.float32
    return network.to(dtype), torch.randn(1, len(direction), generator=r).to(dtype), direction


def _exact(tensor: Tensor) -> list:
    return [Fraction(v) if not isinstance(v, list) else [Fraction(u) for u in v] for v in tensor.tolist()]


@dataclass(frozen=True)
class Line:
    """A network along the direction of its inputs, in rational arithmetic."""

    weights: list[list[list[Fraction]]]
    biases: list[list[Fraction]]
    kink: Fraction

    @staticmethod
    def of(network: nn.Sequential, direction: tuple[int, ...]) -> "Line":
        """The network with its weights as rational numbers."""
        linear = [module for module in network if isinstance(module, nn.Linear)]
        weights = [_exact(module.weight) for module in linear]
        across = [[row[0] / direction[0]] for row in weights[0]]
        if weights[0] != [[a * d for d in direction] for (a,) in across]:
            raise ValueError(f"network: expected a first layer along {direction}, got the weights {weights[0]}.")
        kink = Fraction(getattr(network[1], "negative_slope", 0))
        return Line([across, *weights[1:]], [_exact(module.bias) for module in linear], kink)

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

    def minima(self, x: Fraction, label: int, radii: list[Fraction]) -> list[list[Fraction]]:
        """The smallest value of each margin in each ball."""
        reach = max(radii)
        inner = [(abs(t - x), self.margins(t, label)) for t in self.knots(x - reach, x + reach)]
        found = []
        for radius in radii:
            ends = [self.margins(x + sign * radius, label) for sign in (-1, 1)]
            values = ends + [margins for away, margins in inner if away <= radius]
            found.append([min(column) for column in zip(*values, strict=True)])
        return found


@dataclass
class Found:
    """What was found.

    Attributes:
        seeds: number of seeds that were tried, from 0 on.
        networks: number of networks with another prediction in reach, whose certificates were checked.
        single: number of these networks in float32.
        balls: number of certified balls, over all methods.
        robust: number of balls that were certified robust.
        false: number of certified margins that are larger than a margin in exact arithmetic.
        computed: number of certified margins that are larger than a margin that the network computes.
        reached: number of balls of 0.99 of the exact distance that enumeration certifies.
        within: number of all these balls.
        refused: number of further networks, whose outputs change with the batch, and which have no certificate.
    """

    seeds: int = 0
    networks: int = 0
    single: int = 0
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


def check(found: Found, methods: tuple[CertificateMethod, ...] = METHODS) -> None:
    """Certify the network of the next seed with radii around its exact distance."""
    seed = found.seeds
    network, x, direction = random_network(seed)
    line, along = Line.of(network, direction), zip(direction, x[0].tolist(), strict=True)
    at = sum((d * Fraction(v) for d, v in along), Fraction(0))
    outputs = line.hidden(at, len(line.weights) - 1)
    label = int(outputs[0] > 0) if len(outputs) == 1 else outputs.index(max(outputs))
    distance = line.flip_distance(at, label, 8)
    found.seeds += 1
    if distance is None:
        return
    norm = "linf" if seed % 5 else "l2"
    far = sum(map(abs, direction)) if norm == "linf" else math.isqrt(sum(d * d for d in direction))
    radii = _radii(distance / far, x.dtype)
    loss = "logistic" if len(outputs) == 1 else "cross_entropy"
    try:
        problem = Problem(network, x.expand(len(radii), -1).clone(), torch.full((len(radii),), label), loss=loss)
    except ValueError:  # so much cancels that the outputs change with the batch, and there is no certificate
        found.refused += 1
        return
    found.networks += 1
    found.single += x.dtype == torch.float32
    exact = line.minima(at, label, [far * Fraction(float(r)) for r in radii])
    toward = torch.tensor(direction, dtype=x.dtype)
    # The rounded points of a Euclidean ball must lie in it
    toward = toward.sign() if norm == "linf" else toward / far * (1 - (len(direction) > 1) * 2.0**-20)
    grid = x + radii[:, None, None] * torch.linspace(-1, 1, 41, dtype=x.dtype)[:, None] * toward
    out = network(grid.flatten(0, 1))
    if len(outputs) == 1:
        margins = out if label else -out
    else:
        margins = out[:, [label]] - out[:, [j for j in range(out.shape[1]) if j != label]]
    computed = margins.reshape(*grid.shape[:2], -1).amin(1)
    units = sum(len(biases) for biases in line.biases[:-1])
    for method in methods:
        if method == "enumeration" and units > ENUMERATED:
            continue
        bound = certify(problem, radii, norm=norm, method=method)
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
    """Run, print, and keep what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.certificate_rounding", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--num", type=int, default=10_000, help="networks in all")
    parser.add_argument("--json", type=Path, help="file that keeps progress and result")
    args = parser.parse_args()
    found, about = Found(), {"machine": machine(), "versions": versions("nfm_theory")}
    if args.json and args.json.exists():
        found = Found(**json.loads(args.json.read_text())["found"])
    start = time.perf_counter()
    with num_threads(1):
        while found.networks < args.num:
            check(found)
            if args.json and (found.seeds % STRIDE == 0 or found.networks == args.num):
                partial = args.json.with_suffix(".partial")
                partial.write_text(json.dumps(about | {"found": asdict(found)}) + "\n")
                os.replace(partial, args.json)
    print(
        f"{found.networks} networks of {found.seeds} seeds ({found.single} in float32), {found.balls} balls, "
        f"{found.robust} certified robust: {found.false} margins are smaller in exact arithmetic, {found.computed} as "
        f"the network computes them; enumeration certifies {100 * found.share:.0f} % at 0.99 of the exact distance; "
        f"{found.refused} more networks refused"
    )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
