"""Statistics over seeds: mean and interval of one scheme, difference of two on the same seeds, families of tests.

With three to five seeds, as in the papers, all of this is weak. The interval of five seeds is 1.4 times as wide as the
normal one, that of three 2.2 times; the sign-flip test of five pairs cannot give less than 2/2⁵ = 0.0625. A large
p-value then says little, and a seed is not the only thing that varies: data and settings are the same in all runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .entry import Entry

#: Up to here all 2ⁿ signs are tried.
MOST_PAIRS = 20


@dataclass(frozen=True)
class Summary:
    """One quantity over several seeds.

    Attributes:
        mean: of the values.
        min: smallest value.
        max: largest value.
        n: number of values.
        stderr: standard error of the mean, from the sample standard deviation; `None` for one value.
        interval: Student-t interval (low, high) for the mean; `None` for one value.
    """

    mean: float
    min: float
    max: float
    n: int
    stderr: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Paired:
    """A difference over common seeds, first minus second.

    Attributes:
        difference: mean over the seeds.
        stderr: its standard error; `None` for one seed.
        n: number of common seeds.
        p_value: of the two-sided paired t-test; `None` for one seed, or if the differences are all the same up to
            rounding, where there is no t statistic.
        interval: Student-t interval (low, high); `None` when `p_value` is.
        sign_flip_p_value: of the exact two-sided sign-flip test; `None` for more than `MOST_PAIRS` seeds.
    """

    difference: float
    stderr: float | None
    n: int
    p_value: float | None
    interval: tuple[float, float] | None
    sign_flip_p_value: float | None

    @property
    def clear(self) -> bool:
        """True if the interval leaves out zero: the one rule of this project for a clear difference."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def _finite(values: Iterable[float], name: str) -> np.ndarray:
    array = np.asarray(list(values), dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected at least one number, all finite, got {array.tolist()}.")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}.")


def _t_interval(mean: float, stderr: float, n: int, level: float) -> tuple[float, float]:
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * stderr
    return mean - half, mean + half


def summarise(values: Iterable[float], *, level: float = 0.95) -> Summary:
    r"""Mean, extremes and Student-t interval $\bar x \pm t_{n-1}\, s/\sqrt n$ of independent values.

    The interval covers the mean over all seeds with probability `level` if the values are normal; with three to five
    seeds nobody can check that, and the interval is wide. The NoisyMix paper prints mean (min / max) of five (§4.3).

    Args:
        values: one number per seed.
        level: coverage of the interval.

    Raises:
        ValueError: if there is no value or one is not finite, or for a `level` outside (0, 1).
    """
    _check_level(level)
    x = _finite(values, "values")
    n = len(x)
    # The mean of equal values can lie an ulp outside of them.
    mean = float(np.clip(x.mean(), x.min(), x.max()))
    if n == 1:
        return Summary(mean, mean, mean, 1, None, None)
    stderr = float(x.std(ddof=1)) / math.sqrt(n)
    return Summary(mean, float(x.min()), float(x.max()), n, stderr, _t_interval(mean, stderr, n, level))


def sign_flip(differences: Iterable[float]) -> float:
    """Exact two-sided p-value of the sign-flip test: the share of all 2ⁿ signs with a mean at least as large.

    It assumes only that each difference is as likely to be positive as negative of the same size, no normal law. It is
    never below 2/2ⁿ: 0.25 for three pairs, 0.0625 for five.

    Args:
        differences: one per pair, at most `MOST_PAIRS`.

    Raises:
        ValueError: if there are none, too many, or one is not finite.
    """
    d = _finite(differences, "differences")
    if len(d) > MOST_PAIRS:
        raise ValueError(f"differences: expected at most {MOST_PAIRS}, got {len(d)}; use the t-test of that many.")
    sums = np.zeros(1)
    for value in np.abs(d):
        sums = np.concatenate([sums + value, sums - value])
    # Equal sums differ by rounding, according to the order of their terms.
    slack = 1e-12 * np.abs(d).sum()
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - slack))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], *, level: float = 0.95) -> Paired:
    """Compare two schemes on the seeds that both have: the paired t-test and, as a second opinion, sign flips.

    Pairs help only if a seed means the same to both, the order of the data or the initial weights say. With three to
    five seeds both tests find large differences only; see the head of this module.

    Args:
        a: seed to value of the first scheme.
        b: seed to value of the second.
        level: coverage of the interval.

    Raises:
        ValueError: if no seed is common, a value is not finite, or for a `level` outside (0, 1).
    """
    _check_level(level)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise ValueError(f"seeds: expected some in common, got {sorted(a)} and {sorted(b)}.")
    first, second = _finite((a[s] for s in seeds), "a"), _finite((b[s] for s in seeds), "b")
    d = first - second
    n, mean = len(d), float(d.mean())
    flips = sign_flip(d) if n <= MOST_PAIRS else None
    if n == 1:
        return Paired(mean, None, 1, None, None, flips)
    stderr = float(d.std(ddof=1)) / math.sqrt(n)
    if stderr <= 10 * np.finfo(np.float64).eps * max(np.abs(first).max(), np.abs(second).max()):
        return Paired(mean, stderr, n, None, None, flips)
    p_value = 2 * float(stats.t.sf(abs(mean) / stderr, n - 1))
    return Paired(mean, stderr, n, p_value, _t_interval(mean, stderr, n, level), flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: adjusted p-values of a family of tests, in the order given.

    Rejecting where the adjusted value is at most q keeps the chance of any false rejection in the family at most q,
    however the tests depend on each other (Holm 1979). Over few seeds little survives it: the smallest sign-flip
    p-value of five seeds, times the size of the family.

    Args:
        p_values: one per test of the family.

    Raises:
        ValueError: if one is not in [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values: expected numbers in [0, 1], got {list(p_values)}.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def is_clear(found: Paired | None) -> bool:
    """True if there is a difference and its 95 % interval leaves out zero.

    Args:
        found: the difference; `None` if it was not measured.
    """
    return found is not None and found.clear


def by_seed(entries: Iterable[Entry], metric: str) -> dict[int, float]:
    """One metric of one network trained with several seeds, for `paired_difference`.

    Args:
        entries: of one hash; those without the metric are passed over.
        metric: key, such as "corrupted/mean".

    Raises:
        ValueError: if entries of different training settings have it, or two of one seed with different values.
    """
    found: dict[int, float] = {}
    hashes: dict[str, str] = {}
    for entry in entries:
        if metric not in entry.metrics:
            continue
        hashes.setdefault(entry.hash, entry.recipe)
        if len(hashes) > 1:
            named = ", ".join(f"{key} ({recipe})" for key, recipe in hashes.items())
            raise ValueError(f"entries: expected one set of training settings, got {named}; select one of them.")
        value = entry.metrics[metric]
        if found.setdefault(entry.seed, value) != value:
            raise ValueError(
                f"{metric}: expected one value for seed {entry.seed} of {entry.recipe}, got {found[entry.seed]} and "
                f"{value} (suite {entry.suite}); select one suite."
            )
    return dict(sorted(found.items()))
