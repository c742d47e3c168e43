"""How much of the effect of NFM is its second-order theory, from the ledger and from the study `decomposition`.

Gains are differences from the baseline in points, paired over the seeds. What was not run is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..recipes.taylor_terms import ALONE, SCALES, SOURCES
from ..record.comparison import Paired, holm
from .study import Study, is_clear, lower_is_better

#: The network of a study, by the end of the study's name.
NETWORKS = {"": "ReLU", "-smooth": "SiLU"}
#: The exact schemes in `digits-terms/...`, and the part of the expansion that each is compared with.
EXACT = {"nfm": "NFM", "manifold_mixup": "Manifold Mixup", "feature_noise": "noise at a random layer"}
AGAINST = {"nfm": "taylor_nfm", "manifold_mixup": "data", "feature_noise": "noise"}
TERM_TITLES = {
    "R2": "R2", "R2_add": "R2, additive noise", "R3_add": "R3, additive noise",
    "R2_mult": "R2, multiplicative noise", "R3_mult": "R3, multiplicative noise", "data": "all data terms",
    "noise": "all noise terms", "taylor_nfm": "all terms",
}  # fmt: skip
#: The sums of terms that the figures of the decomposition show.
GROUPS = {
    "standard": ("standard",), "R1": ("R1",), "R2": ("R2",), "R3": ("R3",), "additive noise": ("R2_add", "R3_add"),
    "multiplicative noise": ("R2_mult", "R3_mult"),
}  # fmt: skip


def metrics_of(*studies: Study) -> list[str]:
    """The metrics that sum up some studies, with noise and attacks at their second strongest level."""
    found = []
    for one in studies:
        wanted = ("clean", one.strong("white_noise"), one.strong("pgd_linf"), "corrupted/mean")
        found += [key for key in wanted if key and any(one.values(row, key) for row in one.run)]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Gains:
    """The gain of an exact scheme over the baseline, and how much of it the expansion of the scheme has.

    Attributes:
        exact: the exact scheme minus the baseline, in points.
        taylor: its expansion minus the baseline.
        rest: the exact scheme minus its expansion.
    """

    exact: Paired | None
    taylor: Paired | None
    rest: Paired | None

    @property
    def share(self) -> float | None:
        """The share of the expansion, `taylor / exact`; `None` if the gain of the exact scheme is not clear."""
        known = is_clear(self.exact) and self.taylor is not None
        return self.taylor.difference / self.exact.difference if known else None


def gains(one: Study, exact: str, metric: str, taylor: str = "") -> Gains:
    """The gains of a scheme and of its expansion, `taylor_SCHEME` unless another is named."""
    taylor = taylor or f"taylor_{exact}"
    pairs = ((exact, "baseline"), (taylor, "baseline"), (exact, taylor))
    return Gains(*(one.gain(first, second, metric) for first, second in pairs))


def by_scale(one: Study, metric: str) -> dict[float, Gains]:
    """The gains of the exact loss and of its expansion at each ε of `digits-eps/...` that was run."""
    found = {eps: gains(one, f"nfm-{eps:g}", metric) for eps in SCALES}
    return {eps: some for eps, some in found.items() if some.exact is not None or some.taylor is not None}


def terms_of(one: Study, metric: str) -> dict[str, Paired]:
    """The gain of each scheme of `digits-terms/...` that was run, single terms first."""
    rows = (*ALONE, *SOURCES, "taylor_nfm", *EXACT)
    found = {row: one.gain(row, "baseline", metric) for row in rows if row in one.recipes}
    return {row: gain for row, gain in found.items() if gain is not None}


def clear_scales(found: Mapping[float, Gains]) -> list[float]:
    """The ε at which the exact loss and its expansion clearly differ, without a correction for several tests."""
    return [eps for eps, some in found.items() if is_clear(some.rest)]


def corrected(tests: Mapping[object, Paired | None], level: float = 0.05) -> dict[object, float]:
    """Holm's adjusted p-values in a family of paired tests, those that are at most `level`.

    Args:
        tests: differences by name; those without a p-value (one seed) do not count as tests.
        level: largest chance of any false rejection.
    """
    known = {name: found.p_value for name, found in tests.items() if found is not None and found.p_value is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True)) if known else {}
    return {name: p for name, p in adjusted.items() if p <= level}


def verdict(found: Mapping[float, Gains]) -> str:
    """Up to which ε does the expansion explain the effect of training with the exact loss?

    Returns:
        `"not run"`, `"undecided: ..."` with fewer than two seeds, `"no clear difference at any ε"`, or the scales.
    """
    judged = {eps: some.rest for eps, some in found.items() if some.rest is not None}
    if not judged:
        return "not run"
    if all(rest.n < 2 for rest in judged.values()):
        return "undecided: one seed has no interval"
    apart = clear_scales(found)
    if not apart:
        return "no clear difference at any ε"
    # From the first such scale on, if there is no exception above it
    above = [eps for eps in judged if eps >= apart[0]]
    if apart == above and len(above) > 1:
        return f"clearly different from ε = {apart[0]:g} on"
    return f"clearly different at ε = {', '.join(f'{eps:g}' for eps in apart)}"


def better(gain: Paired, metric: str) -> bool:
    """True if a difference is an improvement."""
    return (gain.difference < 0) == lower_is_better(metric) and gain.difference != 0


def strongest(one: Study, metric: str) -> tuple[str, Paired] | None:
    """The single term with the largest improvement and its gain; `None` if none was run."""
    found = {row: gain for row, gain in terms_of(one, metric).items() if row in ALONE}
    if not found:
        return None
    sign = -1 if lower_is_better(metric) else 1
    return max(found.items(), key=lambda pair: sign * pair[1].difference)


# Decomposition --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The NFM loss at one epoch and its parts, as means over the seeds.

    Attributes:
        epoch: number of finished epochs.
        loss: L_NFM(1).
        stderr: Monte Carlo standard error of the mean loss.
        groups: value of each group of terms in `GROUPS`.
        remainder: what the second-order expansion leaves out.
    """

    epoch: int
    loss: float
    stderr: float
    groups: Mapping[str, float]
    remainder: float

    @property
    def rise(self) -> float:
        """What mixing and noise add to the plain loss."""
        return self.loss - self.groups["standard"]

    @property
    def rise_explained(self) -> float:
        """The share of the rise that the second-order terms have; above 1 if they overshoot."""
        return (self.rise - self.remainder) / self.rise if self.rise else math.nan


def decomposition(records: Iterable[dict], activation: str, scheme: str) -> list[Parts]:
    """The parts of the loss at each epoch, as means over the seeds."""
    by_epoch: dict[int, list[dict]] = {}
    for record in records:
        if (record["activation"], record["scheme"]) == (activation, scheme):
            by_epoch.setdefault(record["epoch"], []).append(record)
    return [_mean(epoch, some) for epoch, some in sorted(by_epoch.items())]


def _mean(epoch: int, records: Sequence[dict]) -> Parts:
    n = len(records)
    groups = {
        group: math.fsum(r["terms"][name] for r in records for name in names) / n for group, names in GROUPS.items()
    }
    loss, remainder = (math.fsum(r[name] for r in records) / n for name in ("loss", "remainder"))
    return Parts(epoch, loss, math.sqrt(math.fsum(r["stderr"] ** 2 for r in records)) / n, groups, remainder)
