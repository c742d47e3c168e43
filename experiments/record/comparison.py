"""Statistics over seeds: the mean of one scheme with its interval, the difference of two schemes, families of tests.

With three to five seeds, as in the papers, all of this is weak. The interval is 1.4 times as wide as the normal one for
five seeds, and 2.2 times for three. The sign-flip test of five pairs cannot give less than 2/2⁵ = 0.0625. A large
p-value then says little. And the seed is not all that could vary: data and settings are the same in all runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # `scipy.stats` has them too, but takes a second to import

from .entry import Entry

#: The largest number of pairs for which all 2ⁿ signs are tried.
MOST_PAIRS = 20
#: Probability that an interval covers what it is for.
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """One quantity over several seeds.

    Attributes:
        mean: mean of the values.
        min: smallest value.
        max: largest value.
        n: number of values.
        stderr: standard error of the mean, from the sample standard deviation; `None` for one value.
        interval: Student's interval (low, high) for the mean; `None` for one value.
    """

    mean: float
    min: float
    max: float
    n: int
    stderr: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Paired:
    """The difference of two schemes over their common seeds, first minus second.

    Attributes:
        difference: mean difference over the seeds.
        stderr: standard error of the difference; `None` for one seed.
        n: number of common seeds.
        p_value: p-value of the two-sided paired t-test; `None` for one seed, and if all differences are the same up to
            rounding, since there is no t statistic then.
        interval: Student's interval (low, high); `None` if `p_value` is.
        sign_flip_p_value: p-value of the exact two-sided sign-flip test; `None` for more than `MOST_PAIRS` seeds.
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


def _t_interval(mean: float, stderr: float, n: int) -> tuple[float, float]:
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stderr
    return mean - half, mean + half


def summarize(values: Iterable[float]) -> Summary:
    r"""Mean, extremes and Student's interval $\bar x \pm t_{n-1}\, s/\sqrt n$ of independent values.

    If the values are normal, the interval covers the mean over all seeds with probability 0.95. With three to five
    seeds this cannot be checked, and the interval is wide. The NoisyMix paper prints mean (min / max) of five (§4.3).

    Args:
        values: one number per seed.

    Raises:
        ValueError: if there is no value, or one is not finite.
    """
    x = _finite(values, "values")
    n = len(x)
    # The mean of equal values can lie an ulp outside of them.
    mean = float(np.clip(x.mean(), x.min(), x.max()))
    if n == 1:
        return Summary(mean, mean, mean, 1, None, None)
    stderr = float(x.std(ddof=1)) / math.sqrt(n)
    return Summary(mean, float(x.min()), float(x.max()), n, stderr, _t_interval(mean, stderr, n))


def sign_flip(differences: Iterable[float]) -> float:
    """Exact two-sided p-value of the sign-flip test: the share of all 2ⁿ signs that give a mean at least as large.

    The test does not assume a normal law, only that each difference could have had the other sign just as well. Its
    p-value is never below 2/2ⁿ: 0.25 for three pairs, 0.0625 for five.

    Args:
        differences: one difference for each pair, at most `MOST_PAIRS`.

    Raises:
        ValueError: if there are none, too many, or one is not finite.
    """
    d = _finite(differences, "differences")
    if len(d) > MOST_PAIRS:
        raise ValueError(f"differences: expected at most {MOST_PAIRS}, got {len(d)}; use the t-test of that many.")
    sums = np.zeros(1)
    for value in np.abs(d):
        sums = np.concatenate([sums + value, sums - value])
    # Equal sums may differ by rounding
    slack = 1e-12 * np.abs(d).sum()
    return float(np.mean(np.abs(sums) >= abs(d.sum()) - slack))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Compare two schemes on the seeds that both have, by a paired t-test and by sign flips.

    Pairs help only if a seed means the same for both schemes, such as the same order of the data or the same initial
    weights. With three to five seeds both tests find only large differences.

    Args:
        a: the value of the first scheme for each seed.
        b: the value of the second scheme for each seed.

    Raises:
        ValueError: if no seed is common, or a value is not finite.
    """
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
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / stderr))
    return Paired(mean, stderr, n, p_value, _t_interval(mean, stderr, n), flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the adjusted p-values of a family of tests, in the order given.

    If all tests with an adjusted value of at most q are rejected, the chance of any false rejection is at most q,
    however the tests depend on each other (Holm 1979). With few seeds little survives: the smallest sign-flip p-value
    of five seeds is multiplied by the size of the family.

    Args:
        p_values: the p-value of each test in the family.

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
    """True if there is a difference and its 95 % interval leaves out zero."""
    return found is not None and found.clear


def by_seed(entries: Iterable[Entry], metric: str) -> dict[int, float]:
    """One metric of one recipe by seed, for `paired_difference`.

    Args:
        entries: lines of the ledger with one hash; those without the metric are ignored.
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
