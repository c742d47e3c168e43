"""All schemes on one data set at one size: what the ledger says about each seed by seed, and how they differ.

A study consists of the recipes `NAME/...` as they are now: a result counts if its settings have the hash of a recipe.
What was not run has no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..recipes import Recipe, select_recipes
from ..record.comparison import Paired, Summary, by_seed, is_clear, paired_difference, summarize
from ..record.ledger import LEDGER, Entry, read

__all__ = [
    "NOT_RUN", "STUDIES", "TITLES", "Study", "format_gain", "format_summary", "is_clear", "label", "load_entries",
    "lower_is_better", "ranking", "signed", "study", "table_metrics",
]  # fmt: skip

NOT_RUN = "not run"
#: Our own studies, and their titles.
STUDIES = {
    "digits": "digits", "fashion-compact": "Fashion-MNIST", "cifar10-compact": "CIFAR-10",
    "cifar100-compact": "CIFAR-100",
}  # fmt: skip
#: The names of schemes for readers, in the order in which they are shown.
TITLES = {
    "baseline": "Baseline", "baseline_noise": "Noise only", "noise_injection": "Noise injection", "dropout": "Dropout",
    "weight_decay": "Weight decay", "label_smoothing": "Label smoothing", "mixup": "Mixup", "cutmix": "CutMix",
    "puzzlemix": "PuzzleMix", "puzzlemix-long": "PuzzleMix, longer", "manifold_mixup": "Manifold Mixup",
    "noisy_mixup": "Noisy Mixup", "nfm": "NFM",
    "taylor_nfm": "Taylor-NFM", "autoaugment": "AutoAugment", "augmix_no_jsd": "AugMix, no JSD", "augmix": "AugMix",
    "manifold_mixup_jsd": "Manifold Mixup + JSD", "noisymix": "NoisyMix", "taylor_noisymix": "Taylor-NoisyMix",
    "adversarial": "Adversarial",
}  # fmt: skip
_LABELS = {
    "clean": "clean", "corrupted/mean": "corrupted: mean", "corrupted/mean_without_noise": "corrupted: without noise",
    "flip_probability/mean": "flip probability", "rms_calibration_error": "RMS calibration error", "ece": "ECE",
    "aurra": "AURRA",
}  # fmt: skip
_KINDS = {
    "white_noise": "white noise σ = ",
    "salt_pepper": "salt and pepper γ = ",
    "pgd_linf": "PGD radius ",
    "fgsm_linf": "FGSM radius ",
    "corrupted/category": "corrupted: ",
}
_LOWER = ("flip_", "ece", "rms_calibration_error")


def load_entries(path: Path = LEDGER) -> list[Entry]:
    """Read the ledger; a missing file counts as empty.

    Args:
        path: file of results.

    Raises:
        LedgerError: if a line is damaged.
    """
    return read(path) if Path(path).exists() else []


def label(metric: str) -> str:
    """The key of a metric in words.

    Example:
        >>> label("white_noise/0.5"), label("corrupted/category/blur"), label("pgd_linf/0.007843")
        ('white noise σ = 0.5', 'corrupted: blur', 'PGD radius 2/255')
    """
    kind, _, level = metric.rpartition("/")
    if kind.endswith("_linf") and level != f"{float(level):.2g}":  # a radius in pixel values, rounded in the key
        level = f"{round(255 * float(level))}/255"
    return _LABELS.get(metric) or (_KINDS[kind] + level if kind in _KINDS else metric)


def lower_is_better(metric: str) -> bool:
    """True if small values of a metric are good."""
    return metric.startswith(_LOWER)


@dataclass(frozen=True)
class Study:
    """The schemes of one study and their results.

    Attributes:
        name: first part of the names of the recipes.
        recipes: the recipe of each scheme, in the order of `TITLES`.
        entries: the lines of the ledger for each scheme; empty if it was not run.
    """

    name: str
    recipes: Mapping[str, Recipe]
    entries: Mapping[str, Sequence[Entry]]

    @property
    def run(self) -> list[str]:
        """The schemes that have a result."""
        return [scheme for scheme, entries in self.entries.items() if entries]

    def values(self, scheme: str, metric: str) -> dict[int, float]:
        """A metric by seed, as in the ledger; empty if it was not measured."""
        return by_seed(self.entries.get(scheme, ()), metric)

    def summary(self, scheme: str, metric: str) -> Summary | None:
        """A metric in percent, summarized over the seeds; `None` if it was not measured."""
        found = self.values(scheme, metric)
        return summarize(100 * value for value in found.values()) if found else None

    def seeds(self, scheme: str) -> int:
        """The number of networks that have a result."""
        return len({entry.seed for entry in self.entries.get(scheme, ())})

    def levels(self, kind: str) -> list[str]:
        """The levels at which a kind such as `"white_noise"` was measured, in rising order, as text."""
        keys = {key for entries in self.entries.values() for entry in entries for key in entry.metrics}
        found = {key.removeprefix(f"{kind}/") for key in keys if key.startswith(f"{kind}/")}
        return sorted(found, key=float)

    def strong(self, kind: str) -> str | None:
        """The key of the second strongest level, as the strongest often leaves only chance; `None` if not measured."""
        levels = self.levels(kind)
        return f"{kind}/{levels[max(0, len(levels) - 2)]}" if levels else None

    def matched(self, kind: str, drop: float = 20.0) -> str:
        """The key of the lowest level of a kind at which the baseline has lost this many points.

        Raises:
            ValueError: if it loses less at every level.
        """
        clean = self.summary("baseline", "clean")
        for key in (f"{kind}/{level}" for level in self.levels(kind)):
            noisy = self.summary("baseline", key)
            if clean and noisy and clean.mean - noisy.mean >= drop:
                return key
        raise ValueError(f"Expected a level of {kind} at which the baseline loses {drop:g} points, found none.")

    def gain(self, first: str, second: str, metric: str) -> Paired | None:
        """The first scheme minus the second on their common seeds, in points; `None` if they have none."""
        a, b = (self.values(scheme, metric) for scheme in (first, second))
        if not a.keys() & b.keys():
            return None
        return paired_difference({s: 100 * v for s, v in a.items()}, {s: 100 * v for s, v in b.items()})


def study(entries: Iterable[Entry], name: str) -> Study:
    """Gather a study from the ledger.

    Args:
        entries: lines of the ledger.
        name: first part of the names of the recipes, such as `"digits"`.

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
    """The metrics that sum up a study, with noise and attacks at their second strongest level."""
    noisy = [one.strong(kind) for kind in ("white_noise", "salt_pepper", "pgd_linf")]
    wanted = ["clean", *(key for key in noisy if key), "corrupted/mean", "corrupted/mean_without_noise"]
    wanted += ["flip_probability/mean", "rms_calibration_error"]
    return [metric for metric in wanted if any(one.values(scheme, metric) for scheme in one.run)]


def format_summary(found: Summary | None) -> str:
    """A summary as `mean ± standard error`, or `not run`.

    Example:
        >>> format_summary(summarize([90.0, 92.0]))
        '91.0 ± 1.0'
    """
    if found is None:
        return NOT_RUN
    return f"{found.mean:.1f}" + ("" if found.stderr is None else f" ± {found.stderr:.1f}")


def format_gain(found: Paired | None) -> str:
    """A difference in points as `difference (low to high)` with its 95 % interval, or `not run`.

    Example:
        >>> format_gain(paired_difference({1: 92.0, 2: 93.0}, {1: 91.0, 2: 91.0}))
        '+1.5 (−4.9 to +7.9)'
    """
    if found is None:
        return NOT_RUN
    if found.interval is None:
        return f"{signed(found.difference)} ({'one seed' if found.n == 1 else 'the same for all seeds'})"
    low, high = found.interval
    return f"{signed(found.difference)} ({signed(low)} to {signed(high)})"


def signed(value: float) -> str:
    """A number with its sign and one decimal; zero has no sign."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def ranking(one: Study, metric: str) -> list[tuple[str, Summary]]:
    """The schemes with their means, the best first. Those that were not measured are left out."""
    found = [(scheme, mean) for scheme in one.run if (mean := one.summary(scheme, metric)) is not None]
    return sorted(found, key=lambda pair: pair[1].mean, reverse=not lower_is_better(metric))
