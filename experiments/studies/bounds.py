"""The study `bounds`: does the adversarial bound hold on trained networks, on digits or on two classes of CIFAR-10?

Networks are trained by plain ERM, with noise, Mixup, Manifold Mixup and NFM. Each record of `bounds.jsonl` is about one
network: both sides of the bound at several ε, the largest ε up to which it holds, and for each sample the radius that
the bound implies, between what is certified and where an attack changes the label. `bounds_cifar.jsonl` is the same for
CIFAR-10.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

import nfm_theory as nt
from nfm_theory.adversarial import BoundReport, Effort, bound, certify, flip_radius, validity_radius

from ..data.cifar import read_batch
from ..data.digits import CLASSES, Digits, load_digits, verification_subset
from ..record.files import versions
from .networks import NetworkRecipe, centered, train, trained_network
from .recorded import RecordedStudy, RecordFile, results_table

_LAYERS = ("", "hidden1", "hidden2")
#: The levels that the NFM paper trains with.
NOISE = {"add_noise": 0.4, "mult_noise": 0.2}
#: How each scheme uses `NoisyFeatureMixup`; plain ERM does not.
SCHEMES: dict[str, dict] = {
    "erm": {},
    "noise": {"layers": _LAYERS, **NOISE},
    "mixup": {"layers": ("",), "alpha": 1.0},
    "manifold": {"layers": _LAYERS, "alpha": 1.0},
    "nfm": {"layers": _LAYERS, "alpha": 1.0, **NOISE},
}
#: ε at which both sides of the bound are computed, and at which the validity radius is looked for.
EPS = (0.05, 0.1, 0.2, 0.5, 1.0)
SCALES = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0)
NOISY_EPS = 0.1
SEEDS = (0, 1, 2)
NUM_SAMPLES = 40
#: The two classes of CIFAR-10, airplane and automobile, and how many images of each are used.
CIFAR_PAIR, CIFAR_TRAIN, CIFAR_TEST, CIFAR_SAMPLES = (0, 1), 100, 500, 12
_EFFORT = Effort(steps=20, restarts=1)


@dataclass(frozen=True)
class BoundCase:
    """One network that is trained and checked."""

    model: str
    classes: int
    scheme: str
    seed: int
    n: int = NUM_SAMPLES
    epochs: int = 20
    learning_rate: float = 3e-3
    eps: tuple[float, ...] = EPS
    scales: tuple[float, ...] = SCALES
    cifar: str = ""

    @property
    def recipe(self) -> NetworkRecipe:
        """How the network is trained. The mean of the checked samples is subtracted from the data."""
        return NetworkRecipe(
            model=self.model, classes=self.classes, seed=self.seed, epochs=self.epochs,
            learning_rate=self.learning_rate, centre=self.n, **SCHEMES[self.scheme],
        )  # fmt: skip


def cases(*, quick: bool = False, cifar: str = "") -> list[BoundCase]:
    """The cases; `quick` gives small ones of the same kind, for tests, and `cifar` is a folder of CIFAR-10."""
    if cifar:
        setting = {"n": CIFAR_SAMPLES, "epochs": 80, "learning_rate": 1e-2, "eps": (0.1, 0.5, 1.0), "cifar": cifar}
        setting["scales"] = setting["eps"]
        if quick:
            setting |= {"n": 4, "epochs": 1, "eps": (0.1,), "scales": (0.1,)}
        return [BoundCase("cifar_cnn", 2, scheme, 0, **setting) for scheme in SCHEMES]
    if quick:
        toy = {"n": 10, "epochs": 3, "eps": (0.1, 0.5), "scales": (0.1,)}
        return [BoundCase("leaky_mlp", 10, "nfm", 0, **toy), BoundCase("relu_mlp", 2, "erm", 0, **toy)]
    return [
        BoundCase(model, classes, scheme, seed)
        for model in ("leaky_mlp", "relu_mlp")
        for classes in CLASSES
        for scheme in SCHEMES
        for seed in SEEDS
    ]


def load_pair(folder: Path, *, check: bool = True) -> Digits:
    """Images of airplanes and automobiles, standardized like the digits: the first of each class.

    Args:
        folder: folder with the official files `data_batch_1` and `test_batch`.
        check: True to check that the files are the official ones.
    """
    parts = []
    for name, count in (("data_batch_1", CIFAR_TRAIN), ("test_batch", CIFAR_TEST)):
        batch = read_batch(folder / name, check=check)
        labels = batch.labels.numpy()
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in CIFAR_PAIR]))
        parts += [batch.images[chosen].double(), (batch.labels[chosen] == CIFAR_PAIR[1]).long()]
    x, y, x_test, y_test = parts
    mean, std = x.mean(), x.std(correction=0)
    return Digits((x - mean) / std, y, (x_test - mean) / std, y_test, 2)


def certified_radius(problem: nt.Problem, high: Tensor, *, bisections: int = 8) -> Tensor:
    """The largest l2 radius up to `high` at which CROWN certifies the label of each sample, by bisection.

    Args:
        problem: network and images.
        high: largest radius of interest for each sample, `(n,)`.
        bisections: number of certificates.
    """
    low = torch.zeros_like(high)
    high = high.clone()
    for _ in range(bisections):
        middle = (low + high) / 2
        robust = certify(problem, middle, method="crown").robust
        low, high = torch.where(robust, middle, low), torch.where(robust, high, middle)
    return low


def _side(report: BoundReport) -> dict:
    """The part of a report that the figures and tables need."""
    record = report.to_dict()
    names = (
        "eps", "verdict", "radius_kind", "standard_loss", "nfm_loss", "nfm_error", "regularizer", "right_lower",
        "right_upper", "predicted_slack", "inside", "label_kept", "failed",
    )  # fmt: skip
    return {name: record[name] for name in names}


def _rounded(values: Tensor) -> list[float | None]:
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values.tolist()]


def run_case(case: BoundCase) -> tuple[list[dict]]:
    """The record of one network."""
    start = time.perf_counter()
    if case.cifar:
        data = load_pair(Path(case.cifar))
        network = train(case.recipe, data)
    else:
        data = load_digits(case.classes)
        network = trained_network(**asdict(case.recipe))
    data = centered(data, case.n)
    x, y = verification_subset(data, case.n)
    problem = nt.Problem(network.model, x, y, law=nt.Law(), loss=data.loss)
    options = {"certificate": "crown", "effort": _EFFORT}
    with nt.options(progress=False):
        reports = [bound(problem, eps, **options) for eps in case.eps]
        first = reports[0]
        kinds = ("sharp", "mean") if "homogeneity" in first.failed else ("sharp",)
        validity = {kind: validity_radius(problem, case.scales, 3, radius=kind, **options).to_dict() for kind in kinds}
        flip = flip_radius(problem, bisections=6, steps=20, generator=torch.Generator().manual_seed(0)).radius
        certified = certified_radius(problem, flip.nan_to_num(posinf=float(x.flatten(1).norm(dim=1).max())))
        sides = [_side(report) for report in reports]
        for side, report in zip(sides, reports, strict=True):
            robust = certify(problem, report.paper_radius, method="crown").robust
            side["certified_paper"] = int(robust.sum())
        noisy = None
        if not case.cifar:
            noisy = _side(bound(problem.with_law(nt.Law(**NOISE)), NOISY_EPS, **options))
    points = {"sharp": first.sharp_radius / first.eps, "paper": first.paper_radius / first.eps}
    points |= {"certified": certified, "flip": flip}
    record = {
        "data": "cifar10" if case.cifar else "digits",
        **{name: getattr(case, name) for name in ("model", "classes", "scheme", "seed", "n")},
        "assumptions": first.to_dict()["assumptions"], "bound": sides, "noisy": noisy, "validity": validity,
        "points": {name: _rounded(radii) for name, radii in points.items()},
        "training": {**network.facts, "samples": len(data.x)}, "versions": versions(), "device": "cpu",
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    return ([record],)


def groups(records: Sequence[dict]) -> dict[tuple[str, int, str], list[dict]]:
    """The records of all seeds by model, number of classes and scheme, in the order of the file."""
    found: dict[tuple[str, int, str], list[dict]] = {}
    for record in records:
        found.setdefault((record["model"], record["classes"], record["scheme"]), []).append(record)
    return found


def median(values: Sequence[float | None]) -> float:
    """The median of radii; `None` stands for a radius that no attack reached, and counts as infinite."""
    return float(np.median([np.inf if v is None else v for v in values]))


def mean_of_medians(records: Sequence[dict], name: str) -> tuple[float, float]:
    """The median radius over the samples: its mean over the seeds, and half of its range."""
    values = [median(r["points"][name]) for r in records]
    return fmean(values), (max(values) - min(values)) / 2


def kept(records: Sequence[dict], eps: float, kind: str = "sharp") -> float:
    """The share of samples whose label is certified in the ball of the implied radius, `"sharp"` or `"paper"`, at ε."""
    sides = [side for r in records for side in r["bound"] if side["eps"] == eps]
    counts = [s["certified_paper"] if kind == "paper" else s["label_kept"]["certified"] for s in sides]
    return sum(counts) / sum(r["n"] for r in records)


def interval(records: Sequence[dict], kind: str = "sharp") -> str:
    """The ε up to which the bound is certified, and from which it is refuted, as text."""
    texts = []
    for r in records:
        found = r["validity"].get(kind)
        if found is not None:
            low = f"{found['certified']:.2g}"
            texts.append(f"≥ {low}" if found["refuted"] is None else f"{low} – {found['refuted']:.2g}")
    unique = list(dict.fromkeys(texts))
    return ", ".join(f"{texts.count(t)} × {t}" if len(unique) > 1 else t for t in unique) or "–"


def summary_table(records: Sequence[dict]) -> Table:
    """The table of results, one row for each network and scheme, as means over the seeds."""
    rows = []
    for (model, classes, scheme), some in groups(records).items():
        radii = [f"{mean_of_medians(some, name)[0]:.3f}" for name in ("sharp", "paper", "certified", "flip")]
        accuracy = fmean(r["training"]["test_accuracy"] for r in some)
        last = kept(some, some[0]["bound"][-1]["eps"])
        rows.append([model, str(classes), scheme, f"{100 * accuracy:.1f} %", interval(some), *radii, f"{last:.2f}"])
    header = ("model", "K", "scheme", "test", "ε*", "sharp, ε = 1", "paper", "certified", "flip", "kept, ε = 1")
    title = "The adversarial bound on trained networks (Mixup at the input)"
    return results_table(title, header, rows, text=("model", "scheme", "ε*"))


def conclude(records: Sequence[dict]) -> tuple[int, list[str]]:
    """A refuted inequality is a finding about a network and not an error, so the exit status is 0."""
    verdicts = [side["verdict"] for record in records for side in record["bound"]]
    return 0, [", ".join(f"{verdicts.count(word)} {word}" for word in ("certified", "refuted", "undecided"))]


def _difference(new: dict, old: dict) -> str:
    """One record certifies what the other refutes, or the loss of NFM is more than a tenth away."""
    recorded = {side["eps"]: side for side in old["bound"]}
    words = []
    for side in new["bound"]:
        other = recorded.get(side["eps"])
        if other is None:
            continue
        opposite = {side["verdict"], other["verdict"]} == {"certified", "refuted"}
        if opposite or not math.isclose(side["nfm_loss"], other["nfm_loss"], rel_tol=0.1):
            found = [f"{one['verdict']}, loss {one['nfm_loss']:.4g}" for one in (other, side)]
            words.append(f"ε = {side['eps']:g}: {found[0]} recorded; {found[1]} now")
    return "; ".join(words)


def _in_sample(case: BoundCase) -> bool:
    return case.classes == 10 and case.seed == 0 and case.scheme == "nfm"


def study(*, cifar: bool = False) -> RecordedStudy:
    """The study, on digits or on CIFAR-10."""
    file = RecordFile(f"bounds{'_cifar' * cifar}.jsonl", ("model", "classes", "scheme", "seed"), _difference)
    return RecordedStudy(
        "bounds", (file,), run_case, summary_table, conclude=conclude, sample=_in_sample,
        sample_words="ten classes, NFM with the first seed",
    )  # fmt: skip
