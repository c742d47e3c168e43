"""How many samples the control variate saves: `python benchmarks/control_variate.py [--json PATH]`.

For the remainder `L_nfm(eps) - Taylor polynomial` the number of head evaluations that a standard error costs is
proportional to the variance per evaluation. Each estimator runs on the same networks (an
MLP trained on the digits, several seeds, NFM at the input) and budget; the table gives plain
Monte Carlo's variance per evaluation over that of the estimator, the median over seeds: how many times fewer samples.
A plain evaluation and one with a control variate of order q do not cost the same time: that ratio is given as well.
"""

import argparse
import json
import platform
import statistics
import time

import torch

import nfm_theory as nt
from experiments.digits import load_digits, verification_subset
from experiments.train import trained_network

EPS = (0.3, 0.1, 0.03, 0.01)
ESTIMATORS = {
    "plain": {"control_variate": "none", "antithetic_noise": False},
    "antithetic": {"control_variate": "none"},
    "quadratic": {"control_variate": "quadratic", "antithetic_noise": False},
    "quadratic, antithetic": {"control_variate": "quadratic"},
    "cubic, antithetic": {"control_variate": "cubic"},
    "auto": {"control_variate": "auto"},
}


def measure(seed: int, n: int, samples: int) -> dict[str, dict[str, list[float] | float]]:
    """Per estimator: variance per head evaluation at every ε, and seconds per evaluation."""
    generator = torch.Generator().manual_seed(seed)
    model = trained_network("mlp", classes=10, seed=seed).model
    x, y = verification_subset(load_digits(10), n)
    out = {}
    for name, options in ESTIMATORS.items():
        start = time.perf_counter()
        run = nt.nfm_loss(
            model, x, y, method="monte_carlo", eps=EPS, samples=samples,
            add_noise=0.4, mult_noise=0.2, generator=generator, **options,
        )  # fmt: skip
        seconds = (time.perf_counter() - start) / run.samples / len(EPS)
        out[name] = {"variance": (run.stderr**2 * run.samples).tolist(), "seconds": seconds}
    return out


def main() -> None:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the table to this file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--num-samples", type=int, default=20, help="size of the data set")
    parser.add_argument("--samples", type=int, default=20_000, help="head evaluations per estimator")
    args = parser.parse_args()
    runs = [measure(seed, args.num_samples, args.samples) for seed in range(args.seeds)]
    table = {}
    for name in ESTIMATORS:
        gains = [[p / v for p, v in zip(run["plain"]["variance"], run[name]["variance"], strict=True)] for run in runs]
        cost = statistics.median(run[name]["seconds"] / run["plain"]["seconds"] for run in runs)
        table[name] = {"gain": [statistics.median(g) for g in zip(*gains, strict=True)], "relative_cost": cost}
    print(f"{'times fewer samples than plain':32}" + "".join(f"{f'eps = {e:g}':>14}" for e in EPS) + f"{'cost':>8}")
    for name, row in table.items():
        print(f"{name:32}" + "".join(f"{gain:14.3g}" for gain in row["gain"]) + f"{row['relative_cost']:8.2f}")
    if args.json:
        record = {
            "eps": EPS,
            "table": table,
            "settings": vars(args) | {"json": None},
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "nfm_theory": nt.__version__},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        }
        with open(args.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
