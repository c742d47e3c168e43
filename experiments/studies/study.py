"""What the ledger says of a study: all schemes on one data set at one size, seed by seed, and how they differ.

A study is what the recipes `NAME/...` are as they stand now: a result counts if its settings have the hash of a
recipe. What was not run has no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..recipes import Recipe, select_recipes
from ..record.comparison import Paired, Summary, by_seed, paired_difference, summarise
from ..record.ledger import LEDGER, Entry, read

NOT_RUN = "not run"
#: Studies of this project's own sizes.
STUDIES = {
    "digits": "digits", "cifar10-small": "CIFAR-10, small", "cifar100-small": "CIFAR-100, small",
}  # fmt: skip
#: How schemes are called, in the order in which they are shown.
TITLES = {
    "baseline": "Baseline",
    "baseline_noise": "Noise only",
    "noise_injection": "Noise injection",
    "dropout": "Dropout",
    "weight_decay": "Weight decay",
    "label_smoothing": "Label smoothing",
    "mixup": "Mixup",
    "cutmix": "CutMix",
    "puzzlemix": "PuzzleMix",
    "manifold_mixup": "Manifold Mixup",
    "noisy_mixup": "Noisy Mixup",
    "nfm": "NFM",
    "taylor_nfm": "Taylor-NFM",
    "autoaugment": "AutoAugment",
    "augmix_no_jsd": "AugMix, no JSD",
    "augmix": "AugMix",
    "manifold_mixup_jsd": "Manifold Mixup + JSD",
    "noisymix": "NoisyMix",
    "taylor_noisymix": "Taylor-NoisyMix",
    "adversarial": "Adversarial",
}
_LABELS = {
    "clean": "clean",
    "corrupted/mean": "corrupted: mean",
    "corrupted/mean_without_noise": "corrupted: without noise",
    "flip_probability/mean": "flip probability",
    "rms_calibration_error": "RMS calibration error",
    "ece": "ECE",
    "aurra": "AURRA",
}
_KINDS = {
    "white_noise": "white noise σ = ",
    "salt_pepper": "salt and pepper γ = ",
    "pgd_linf": "PGD radius ",
    "fgsm_linf": "FGSM radius ",
    "corrupted/category": "corrupted: ",
}
_LOWER = ("flip_", "ece", "rms_calibration_error", "mce")


def load_entries(path: Path = LEDGER) -> list[Entry]:
    """The results; none if there is no such file yet.

    Args:
        path: the ledger.

    Raises:
        LedgerError: if a line is damaged.
    """
    return read(path) if Path(path).exists() else []


def label(metric: str) -> str:
    """A metric's key in words.

    Example:
        >>> label("white_noise/0.5"), label("corrupted/category/blur"), label("pgd_linf/0.007843")
        ('white noise σ = 0.5', 'corrupted: blur', 'PGD radius 2/255')
    """
    kind, _, level = metric.rpartition("/")
    if kind.endswith("_linf") and level != f"{float(level):.2g}":  # a radius in pixel values, rounded in the key
        level = f"{round(255 * float(level))}/255"
    return _LABELS.get(metric) or (_KINDS[kind] + level if kind in _KINDS else metric)


def lower_is_better(metric: str) -> bool:
    """Whether small values are good."""
    return metric.startswith(_LOWER)


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        name: first part of the recipes' names.
        recipes: by scheme, in the order of `TITLES`.
        entries: of each scheme; none where it was not run.
    """

    name: str
    recipes: Mapping[str, Recipe]
    entries: Mapping[str, Sequence[Entry]]

    @property
    def run(self) -> list[str]:
        """Schemes with a result."""
        return [scheme for scheme, entries in self.entries.items() if entries]

    def values(self, scheme: str, metric: str) -> dict[int, float]:
        """A metric by seed, as in the ledger; empty where it was not measured."""
        return by_seed(self.entries.get(scheme, ()), metric)

    def summary(self, scheme: str, metric: str) -> Summary | None:
        """A metric over the seeds in percent, `None` where it was not measured."""
        found = self.values(scheme, metric)
        return summarise(100 * value for value in found.values()) if found else None

    def seeds(self, scheme: str) -> int:
        """Number of networks with any result."""
        return len({entry.seed for entry in self.entries.get(scheme, ())})

    def levels(self, kind: str) -> list[str]:
        """Levels at which a kind such as `"white_noise"` was measured, rising, as they stand in the keys."""
        keys = {key for entries in self.entries.values() for entry in entries for key in entry.metrics}
        found = {key.removeprefix(f"{kind}/") for key in keys if key.startswith(f"{kind}/")}
        return sorted(found, key=float)

    def strong(self, kind: str) -> str | None:
        """The key of the strongest level but one (the strongest often leaves chance), `None` if not measured."""
        levels = self.levels(kind)
        return f"{kind}/{levels[max(0, len(levels) - 2)]}" if levels else None

    def gain(self, first: str, second: str, metric: str) -> Paired | None:
        """First less second scheme on their common seeds in points, `None` without any."""
        a, b = (self.values(scheme, metric) for scheme in (first, second))
        if not a.keys() & b.keys():
            return None
        return paired_difference({s: 100 * v for s, v in a.items()}, {s: 100 * v for s, v in b.items()})


def study(entries: Iterable[Entry], name: str) -> Study:
    """Gather a study from the ledger.

    Args:
        entries: of the ledger, any.
        name: first part of the recipes' names, such as `"digits"`.

    Raises:
        ValueError: if there are no such recipes.
    """
    by_hash: dict[str, list[Entry]] = {}
    for entry in entries:
        by_hash.setdefault(entry.hash, []).append(entry)
    recipes = {recipe.name.partition("/")[2]: recipe for recipe in select_recipes(f"{name}/*")}
    order = [scheme for scheme in TITLES if scheme in recipes]
    recipes = {scheme: recipes[scheme] for scheme in (*order, *(s for s in recipes if s not in TITLES))}
    return Study(name, recipes, {scheme: by_hash.get(recipe.hash, []) for scheme, recipe in recipes.items()})


def table_metrics(one: Study) -> list[str]:
    """The metrics that sum up a study: each kind of suite once, noise and attacks at the strongest level but one."""
    noisy = [one.strong(kind) for kind in ("white_noise", "salt_pepper", "pgd_linf")]
    wanted = ["clean", *(key for key in noisy if key), "corrupted/mean", "corrupted/mean_without_noise"]
    wanted += ["flip_probability/mean", "rms_calibration_error"]
    return [metric for metric in wanted if any(one.values(scheme, metric) for scheme in one.run)]


def format_summary(found: Summary | None) -> str:
    """`mean ± standard error`; without it for one network; `not run` for none.

    Example:
        >>> format_summary(summarise([90.0, 92.0]))
        '91.0 ± 1.0'
    """
    if found is None:
        return NOT_RUN
    return f"{found.mean:.1f}" + ("" if found.stderr is None else f" ± {found.stderr:.1f}")


def format_gain(found: Paired | None) -> str:
    """`+difference (low to high)` in points with the 95 % interval; `not run` for none.

    Example:
        >>> format_gain(paired_difference({1: 92.0, 2: 93.0}, {1: 91.0, 2: 91.0}))
        '+1.5 (−4.9 to +7.9)'
    """
    if found is None:
        return NOT_RUN
    if found.interval is None:
        return f"{_signed(found.difference)} ({'one seed' if found.n == 1 else 'the same for all seeds'})"
    low, high = found.interval
    return f"{_signed(found.difference)} ({_signed(low)} to {_signed(high)})"


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def is_clear(found: Paired | None) -> bool:
    """Whether the 95 % interval of a difference leaves zero out."""
    return found is not None and found.interval is not None and not found.interval[0] <= 0 <= found.interval[1]


def ranking(one: Study, metric: str) -> list[tuple[str, Summary]]:
    """Schemes by their mean, the best first; those that were not measured are left out."""
    found = [(scheme, mean) for scheme in one.run if (mean := one.summary(scheme, metric)) is not None]
    return sorted(found, key=lambda pair: pair[1].mean, reverse=not lower_is_better(metric))


@dataclass(frozen=True)
class Explained:
    """How much of a scheme's gain over the baseline its expansion has too.

    Attributes:
        exact: the scheme less the baseline, points.
        taylor: its expansion less the baseline.
        rest: the scheme less its expansion.
        share: `taylor / exact`; `None` where the gain is not clearly different from zero.
    """

    exact: Paired | None
    taylor: Paired | None
    rest: Paired | None
    share: float | None


def explained(one: Study, metric: str, *, scheme: str = "nfm", baseline: str = "baseline") -> Explained:
    """The gain of a scheme over the baseline, and that of `taylor_<scheme>`, the plain loss with the expansion added.

    Args:
        one: a study.
        metric: key.
        scheme: the exact scheme.
        baseline: what both are compared with.
    """
    expansion = f"taylor_{scheme}"
    pairs = ((scheme, baseline), (expansion, baseline), (scheme, expansion))
    exact, taylor, rest = (one.gain(a, b, metric) for a, b in pairs)
    share = taylor.difference / exact.difference if is_clear(exact) and taylor is not None else None
    return Explained(exact, taylor, rest, share)
