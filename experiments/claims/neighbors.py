"""The central claims of the neighbors of this theory, each on small networks of our own: recipes `neighbours/...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..recipes.neighbors import MATCHED, NOISE, SERIES, K
from ..record.comparison import Paired, paired_difference
from ..studies.study import Study, study
from . import verdicts
from .evidence import Records
from .statement import (
    IN_PART,
    NOT_REPRODUCED,
    NOT_RUN,
    REFUTED,
    REPRODUCED,
    UNDECIDED,
    VERIFIED,
    Judge,
    Statement,
    Verdict,
)

STUDY, SIZE, WITHIN_NOISE, ONE_SEED = "neighbours", "small networks", "within noise", "one seed"
#: Metrics of which a small value is good.
LOWER = ("nll", "mixed_distance")
_LEDGER = "experiments/results/experiments.jsonl"


@dataclass(frozen=True)
class Pair:
    """One scheme should be better than another in a metric of the study.

    Attributes:
        first: row that should be better.
        second: row that should be worse.
        metric: key of the metric.
    """

    first: str
    second: str
    metric: str

    def gain(self, one: Study) -> Paired | None:
        """How much better the first is on the common seeds, positive if it is; `None` if they have none."""
        a, b = (one.values(row, self.metric) for row in (self.first, self.second))
        if not a.keys() & b.keys():
            return None
        sign = -1 if self.metric in LOWER else 1
        return paired_difference({s: sign * v for s, v in a.items()}, {s: sign * v for s, v in b.items()})

    def told(self, gain: Paired) -> str:
        """The gain in words, with Student's interval."""
        low_high = "the same for all seeds" if gain.interval is None else "{:+.3f} to {:+.3f}".format(*gain.interval)
        return f"{self.first} over {self.second}, {self.metric}: {gain.difference:+.3f} ({low_high})"


def is_sure(gain: Paired) -> bool:
    """True if the interval leaves out zero, or if all of several seeds have the same difference, which is not zero."""
    return gain.clear or (gain.interval is None and gain.n > 1 and gain.difference != 0)


def better(*pairs: Pair, within: str = STUDY, size: str = SIZE) -> Judge:
    """The verdict on an order of rows: reproduced if every difference is clear and has the right sign.

    Args:
        *pairs: what should be better than what.
        within: name of the study.
        size: size of its networks, in words.
    """

    def verdict(records: Records) -> Verdict:
        one = study(records.entries, within)
        found = [(pair, gain) for pair in pairs if (gain := pair.gain(one)) is not None]
        if len(found) < len(pairs):
            return Verdict(NOT_RUN, f"the ledger has {len(found)} of {len(pairs)} comparisons")
        seeds = min(gain.n for _, gain in found)
        good = [gain for _, gain in found if is_sure(gain) and gain.difference > 0]
        bad = [gain for _, gain in found if is_sure(gain) and gain.difference < 0]
        word = REPRODUCED if len(good) == len(found) else IN_PART if good else NOT_REPRODUCED
        weakness = ONE_SEED if seeds == 1 else WITHIN_NOISE if not good and not bad else ""
        detail = (
            f"clearly better in {len(good)} of {len(found)}, clearly worse in {len(bad)}, {seeds} seeds; gains, "
            "positive if better: " + "; ".join(pair.told(gain) for pair, gain in found)
        )
        return Verdict(word, detail, size, weakness, seeds)

    return verdict


def _matched_pairs(other: str, metrics: Sequence[str]) -> tuple[Pair, ...]:
    return tuple(Pair(f"{data}-k{K}", f"{data}-{other}", metric) for data in MATCHED for metric in metrics)


def matched_expansions(records: Records) -> Verdict:
    """Is the expansion right on every network trained with k-mixup, with the law of its partners, and does R2 fall?"""
    one = study(records.entries, STUDY)
    rows = [f"{data}-k{k}" for data in ("spirals", "digits") for k in MATCHED[data] if k <= K]
    found = {
        row: {key: one.values(row, f"expansion/{key}") for key in ("holds", "ratio", "R2", "length")} for row in rows
    }
    if not all(values["holds"] for values in found.values()):
        return Verdict(NOT_RUN, "the ledger lacks networks trained with k-mixup")
    holds = [value for row in rows for value in found[row]["holds"].values()]
    ratio = max(abs(value - 1) for row in rows for value in found[row]["ratio"].values())

    def mean(row: str, key: str) -> float:
        return sum(found[row][key].values()) / len(found[row][key])

    falls = "; ".join(
        f"{data}, k = 1 to {K}: mean squared length {mean(f'{data}-k1', 'length'):.3g} to "
        f"{mean(f'{data}-k{K}', 'length'):.3g}, R2 {mean(f'{data}-k1', 'R2'):.3g} to {mean(f'{data}-k{K}', 'R2'):.3g}"
        for data in ("spirals", "digits")
    )
    share = f"verified on {sum(map(int, holds))} of {len(holds)} trained networks"
    detail = f"{share}, coefficient within {100 * ratio:.1f} %; {falls}"
    return Verdict(VERIFIED if all(holds) else UNDECIDED if any(holds) else REFUTED, detail)


def _rows(*rows: tuple) -> tuple[Statement, ...]:
    found = []
    for name, kind, number, words, judge, *command in rows:
        again = command[0] if command else f"python -m experiments sweep 'neighbours/{name.split('-')[0]}*'"
        evidence = (_LEDGER, "experiments/recipes/neighbors.py", "tests/experiments/test_neighbors.py")
        found.append(Statement(name, "neighbors", kind, number, words, "neighbors", "", evidence, again, judge))
    return tuple(found)


_SWEEP = "python -m experiments sweep 'neighbours/{}'"
NEIGHBORS = _rows(
    (
        "kmixup-structure", "claim", "k-mixup, abstract",
        "k-mixup preserves cluster and manifold structures: its mixed samples are closer to the data than those of "
        "Mixup, and both parts more often have the same class.",
        better(*_matched_pairs("k1", ("mixed_distance", "same_class"))), _SWEEP.format("*-k*"),
    ),
    (
        "kmixup-generalizes", "claim", "k-mixup, abstract",
        "k-mixup generalizes better than Mixup (here k = 16: accuracy and negative log-likelihood on test data).",
        better(*_matched_pairs("k1", ("clean", "nll"))), _SWEEP.format("*-k*"),
    ),
    (
        "kmixup-over-erm", "claim", "k-mixup, abstract",
        "k-mixup generalizes better than plain training, also where Mixup does not (here k = 16).",
        better(*_matched_pairs("erm", ("clean", "nll"))), _SWEEP.format("*-k*"),
    ),
    (
        "kmixup-regularizer", "proposition", "k-mixup, abstract",
        "The theory of Mixup extends to k-mixup (here: the expansion with the law of its partners, on the networks "
        "that it trained).",
        matched_expansions, _SWEEP.format("*-k*"),
    ),
    (
        "midpoint-features", "claim", "Midpoint Mixup, abstract",
        "With two features per class, training with Midpoint Mixup learns both features of more classes than plain "
        "training, on a two-layer convolutional network.",
        better(Pair("features-midpoint", "features-erm", "learned_both")), _SWEEP.format("features-*"),
    ),
    (
        "midpoint-over-mixup", "claim", "our question",
        "Midpoint Mixup learns both features of more classes than plain Mixup.",
        better(Pair("features-midpoint", "features-mixup", "learned_both")), _SWEEP.format("features-*"),
    ),
    (
        "mixup-empirical-loss", "claim", "data dependency, abstract",
        "There are data on which Mixup training does not minimize the empirical loss (here: the alternating line, in "
        "closed form), and conditions under which it does.",
        verdicts.checked("alternating-line"), "python -m experiments claims mixup-empirical-loss",
    ),
    (
        "mixup-linear", "claim", "data dependency, abstract",
        "For linear models and data that can be separated, Mixup and plain training give the same classifier.",
        verdicts.checked("linear-direction"), "python -m experiments claims mixup-linear",
    ),
    (
        "mixup-margins", "claim", "data dependency, abstract",
        "Mixup classifiers keep a larger distance from the training data to the decision boundary than plain training "
        "(two moons: mean and least distance).",
        better(*(Pair("moons-mixup", "moons-erm", f"margin/{which}") for which in ("mean", "least"))),
        _SWEEP.format("moons-*"),
    ),
    (
        "dpmix-naive", "claim", "DP-Mix, abstract",
        "Mixup between samples fails in private training: at ε = 1, 2 and 8 it is worse than DP-SGD without it.",
        better(*(Pair(f"dp-{e}-plain", f"dp-{e}-mixup", "clean") for e in NOISE)), _SWEEP.format("dp-*"),
    ),
    (
        "dpmix-self", "claim", "DP-Mix, abstract",
        "DP-Mix self, mixing among the augmented copies of a sample, is better than the copies alone at ε = 1, 2, 8. "
        "(Here on a small fully connected network. The paper's best results need pretrained networks and images of a "
        "diffusion model, which are out of reach.)",
        better(*(Pair(f"dp-{e}-self_mixed", f"dp-{e}-self_augmented", "clean") for e in NOISE)), _SWEEP.format("dp-*"),
    ),
    *(
        (
            f"series-{name}", "claim", "physiological time series, abstract",
            f"{words} is consistently better than plain training (here: test accuracy on four sets of time series that "
            "a package ships; none is physiological in the narrow sense).",
            better(*(Pair(f"series_{data}-{row}", f"series_{data}-erm", "clean") for data in SERIES)),
            _SWEEP.format("series_*"),
        )
        for name, row, words in (
            ("mixup", "mixup", "Mixup"), ("cutmix", "cutmix", "CutMix"),
            ("manifold-mixup", "manifold", "Manifold Mixup"),
        )
    ),
)  # fmt: skip
