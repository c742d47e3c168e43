"""No false certificate: `python -m benchmarks.certificates [--num N] [--json PATH]`.

Random small ReLU and leaky-ReLU networks, two points each. The exact maximum of the loss in a ball (enumeration of
activation regions) and a long attack bound every certificate from below; the excess of what was attained over a bound
must be rounding. The ratio certificate / maximum says how tight each method is. Progress is kept in the file, so that
a run can be interrupted.
"""

import argparse
import itertools
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from benchmarks.estimators.measure import machine, num_threads, versions
from nfm_theory import Problem
from nfm_theory.adversarial import certify, worst_case

METHODS = ("crown", "crown-ibp", "interval")
#: Networks between two writes of the file.
STRIDE = 250


@dataclass
class Tightness:
    """What was found on the networks `0 .. networks - 1`.

    Attributes:
        networks: how many.
        violation: worst excess of something attained over a bound on it.
        gap: worst width of the interval that enumeration leaves.
        ratios: certified loss over the exact maximum, per method and point.
    """

    networks: int = 0
    violation: float = 0.0
    gap: float = 0.0
    ratios: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in ("enumeration", *METHODS)})

    def quantile(self, method: str, q: float) -> float:
        """Quantile of the ratios of a method."""
        return float(torch.tensor(self.ratios[method], dtype=torch.float64).quantile(q))


def random_case(seed: int) -> tuple[Problem, dict]:
    """A network with two points and their labels, and a ball around each point."""
    r = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=r))

    d, classes = pick(1, 4), pick(1, 3)
    sizes = [d, *(pick(2, 6) for _ in range(pick(1, 2))), classes]
    layers = []
    for width, after in itertools.pairwise(sizes):
        linear = nn.Linear(width, after).double()
        for parameter in linear.parameters():
            parameter.data = (torch.rand(parameter.shape, generator=r, dtype=torch.float64) * 2 - 1) / width**0.5
        linear.bias.data += 0.2 * torch.randn(after, generator=r, dtype=torch.float64)
        layers += [linear, nn.LeakyReLU(0.2) if seed % 2 else nn.ReLU()]
    x = torch.randn(2, d, generator=r, dtype=torch.float64)
    box = (-3.0, 3.0) if seed % 5 == 0 else None
    options = {
        "radius": torch.rand(2, generator=r, dtype=torch.float64) * 2,
        "norm": "linf" if seed % 6 == 0 else "l2",
        "box": box,
    }
    y = torch.randint(max(2, classes), (2,), generator=r)
    model, loss = nn.Sequential(*layers[:-1]).eval(), "logistic" if classes == 1 else "cross_entropy"
    return Problem(model, x if box is None else x.clamp(*box), y, loss=loss), options


def extend(found: Tightness, num: int) -> Tightness:
    """Check `num` more networks."""
    for seed in range(found.networks, found.networks + num):
        problem, options = random_case(seed)
        source = torch.Generator().manual_seed(seed)
        exact = worst_case(problem, method="enumeration", steps=30, restarts=2, generator=source, **options)
        attained = exact.certificate.attained
        excess = [exact.lower - exact.upper]
        found.gap = max(found.gap, float((attained - exact.certificate.margins).max()))
        found.ratios["enumeration"] += (exact.upper / exact.lower).tolist()
        for method in METHODS:
            bound = certify(problem, method=method, **options)
            excess += [exact.lower - bound.loss_upper, (bound.margins - attained).flatten()]
            found.ratios[method] += (bound.loss_upper / exact.lower).tolist()
        found.violation = max(found.violation, *(float(part.max()) for part in excess))
        found.networks += 1
    return found


def table(found: Tightness) -> str:
    """What was found, as text."""
    lines = [f"{found.networks} networks, {2 * found.networks} points: largest violation {found.violation:.1e}"]
    lines.append(f"{'certificate / maximum':24}{'median':>10}{'95 %':>10}{'largest':>10}")
    for name in found.ratios:
        lines.append(f"{name:24}" + "".join(f"{found.quantile(name, q):10.4f}" for q in (0.5, 0.95, 1.0)))
    return "\n".join(lines)


def main() -> None:
    """Run, print, and keep a summary."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certificates", description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10_000, help="networks in all")
    parser.add_argument("--json", type=Path, help="file that keeps progress and result")
    args = parser.parse_args()
    found, about = Tightness(), {"machine": machine(), "versions": versions("nfm_theory")}
    if args.json and args.json.exists():
        found = Tightness(**json.loads(args.json.read_text())["found"])
    start = time.perf_counter()
    with num_threads(1):
        while found.networks < args.num:
            extend(found, min(STRIDE, args.num - found.networks))
            if args.json:
                rounded = asdict(found) | {"ratios": {k: [round(r, 6) for r in v] for k, v in found.ratios.items()}}
                quantiles = {k: [found.quantile(k, q) for q in (0.5, 0.95, 1.0)] for k in found.ratios}
                partial = args.json.with_suffix(".partial")
                partial.write_text(json.dumps(about | {"quantiles": quantiles, "found": rounded}) + "\n")
                os.replace(partial, args.json)
    print(table(found), f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
