"""What the control variate saves: `python -m benchmarks.control_variate [--json PATH] [--case NAME ...]`.

For the remainder `L_nfm(eps) - Taylor polynomial` plain Monte Carlo needs time proportional to its variance times the
cost of a draw. Per estimator: the variance of plain sampling over its own, per evaluation of the head (how many times
fewer samples), the time of a draw in forward passes (evaluation and control variate together, medians, interleaved),
and the effective gain, their quotient relative to plain sampling.
"""

import argparse
import json

import torch
from torch import Tensor

from benchmarks.estimators.cases import SETTINGS, build_case
from benchmarks.estimators.measure import interleaved, machine, num_threads, versions
from experiments.data.digits import load_digits, verification_subset
from experiments.studies.networks import trained_network
from nfm_theory import Law, Problem
from nfm_theory.expansion.paths import Polynomials
from nfm_theory.losses.monte_carlo import (
    CONTROL_VARIATES,
    RunningMoments,
    block_sweeps,
    corrected,
    sweep_means,
)

EPS = (0.1, 0.03, 0.01)
#: Name -> (control variate, antithetic noise).
ESTIMATORS = {
    "plain": ("none", False),
    "antithetic": ("none", True),
    "quadratic": ("quadratic", False),
    "quadratic, antithetic": ("quadratic", True),
    "cubic, antithetic": ("cubic", True),
}
LEVELS = {"add_noise": 0.4, "mult_noise": 0.2}
LAW = Law(**LEVELS)


def trained_mlp() -> Problem:
    """An MLP trained on the digits, NFM at the input."""
    model = trained_network("mlp", classes=10, seed=0).model
    return Problem(model, *verification_subset(load_digits(10), 20), law=LAW)


def standard(name: str, batch: int, layer: str = "") -> Problem:
    """A case of the estimator benchmark with fewer samples, in float64."""
    case = build_case(name, dtype=torch.float64)
    return Problem(case.model, case.x[:batch], case.y[:batch], layer=layer, law=LAW, loss=SETTINGS[name].loss)


#: Name -> (problem, evaluations of the head per estimator, whether third derivatives are affordable).
CASES = {
    "mlp, trained on digits": (trained_mlp, 20_000, True),
    "mlp64": (lambda: standard("mlp64", 64), 10_000, False),
    "cnn": (lambda: standard("cnn", 16), 2_000, False),
    "preact_resnet18, last stage": (lambda: standard("preact_resnet18", 8, "layer3"), 1_000, False),
    "preact_resnet18, classifier": (lambda: standard("preact_resnet18", 8, "layer4"), 2_000, False),
}


def costs(problem: Problem, cubic: bool) -> dict[str, float]:
    """Time of a draw with each control variate, in forward passes of the head; all but the random numbers counts."""
    n, eps = len(problem.features), 0.1
    sweeps = block_sweeps(problem, order=2)
    polynomials, draw = Polynomials(problem), problem.draw(n, sweeps, generator=torch.Generator().manual_seed(0))
    points = problem.features.repeat(sweeps, *[1] * (problem.features.ndim - 1))

    def with_control(order: int):
        def call():
            path = problem.path(draw)
            path(eps)
            if order >= 0:
                polynomials(path, order)

        return call

    with torch.no_grad():
        calls = {name: with_control(order) for name, order in CONTROL_VARIATES.items() if order < 3 or cubic}
        timings = interleaved({"forward": lambda: problem.head(points)} | calls, repeats=7)
    return {name: timings[name].median / timings["forward"].median for name in calls}


def variances(problem: Problem, eps: Tensor, order: int, both_signs: bool, samples: int) -> Tensor:
    """Variance of the mean over the samples times the evaluations of the head it takes, at every ε.

    Without the exact terms that the estimator would add: they have no variance.
    """
    n, generator = len(problem.features), torch.Generator().manual_seed(0)
    per_sweep = n * (2 if both_signs else 1)
    block, sweeps = block_sweeps(problem, max(order, 0)), samples // per_sweep
    polynomials, moments = Polynomials(problem), RunningMoments()
    with torch.no_grad():
        for start in range(0, sweeps, block):
            draw = problem.draw(n, min(block, sweeps - start), generator=generator)
            losses, coefficients = sweep_means(problem, polynomials, draw, eps, order, both_signs)
            moments.add(corrected(losses, coefficients, eps, [order] * len(eps)))
    return moments.stderr() ** 2 * sweeps * per_sweep


def measure(problem: Problem, samples: int, cubic: bool) -> dict[str, dict]:
    """The table of one case."""
    eps = torch.tensor(EPS, dtype=problem.features.dtype)
    price, spread = costs(problem, cubic), {}
    for name, (control, both) in ESTIMATORS.items():
        if control in price:
            spread[name] = variances(problem, eps, CONTROL_VARIATES[control], both, samples)
    table = {}
    for name, variance in spread.items():
        control, gain = ESTIMATORS[name][0], spread["plain"] / variance
        effective = gain * price["none"] / price[control]
        table[name] = {"gain": gain.tolist(), "forward_passes": price[control], "effective_gain": effective.tolist()}
    return table


def main() -> None:
    """Print the tables; write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the tables to this file")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these")
    args = parser.parse_args()
    tables = {}
    with num_threads(1):
        for case in args.case or CASES:
            build, samples, cubic = CASES[case]
            tables[case] = measure(build(), samples, cubic)
            print(f"{case}\n{'':24}" + "".join(f"{f'eps = {e:g}':>12}" for e in EPS) + f"{'passes':>8}  effective gain")
            for name, row in tables[case].items():
                gains = "".join(f"{gain:12.3g}" for gain in row["gain"])
                effective = "".join(f"{gain:12.3g}" for gain in row["effective_gain"])
                print(f"{name:24}{gains}{row['forward_passes']:8.2f}{effective}")
    if args.json:
        record = {
            "eps": EPS,
            "tables": tables,
            "levels": LEVELS,
            "machine": machine(),
            "versions": versions("nfm_theory"),
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
