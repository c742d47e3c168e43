"""Which noise does it: what the theory predicts for an intervention, and what training shows; recipes `*where*/...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..recipes.where import FULL, LARGE, LAYERS, METRIC, SMALL, interventions
from ..record.comparison import Paired, paired_difference
from ..record.entry import Entry
from ..studies.study import study
from ..studies.where import DURING, FILE, predictions
from .evidence import Records
from .neighbors import ONE_SEED, WITHIN_NOISE, Pair, better, is_sure
from .statement import IN_PART, NOT_REPRODUCED, NOT_RUN, REPRODUCED, UNDECIDED, Judge, Statement, Verdict

#: A measured share counts as predicted if its interval lies within this distance of the prediction.
CLOSE = 0.25
#: The studies that were run, the large one first, and the size of each in words.
SIZES = {LARGE: "all of Fashion-MNIST", SMALL: "small networks, Fashion-MNIST"}
_PLAIN, _UNMIXED, _NFM = "manifold_mixup", "no-mixing", "nfm"


@dataclass(frozen=True)
class Share:
    """The share of NFM's gain that an intervention has.

    Attributes:
        predicted: its share of NFM's second-order terms.
        measured: its mean gain, divided by that of NFM.
        miss: measured minus predicted share by seed, with Student's interval, for the mean gain of NFM.
    """

    predicted: float
    measured: float
    miss: Paired

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval around the measured share; both are that share if there is none."""
        low, high = self.miss.interval or (self.miss.difference, self.miss.difference)
        return self.predicted + low, self.predicted + high


def shares(
    entries: tuple[Entry, ...],
    records: tuple[dict, ...],
    study_name: str,
    *,
    metric: str = METRIC,
    when: str = DURING,
    mixing: bool = False,
) -> dict[str, Share]:
    """Predicted and measured share of each intervention that mixes like NFM at every layer, by its name.

    It is the share of NFM's gain over Manifold Mixup, predicted from the noise terms. With `mixing` it is that of each
    intervention with the noise of NFM at every layer: the share of NFM's gain over noise without mixing, predicted from
    R2. There are none if NFM is no better on the common seeds.

    Args:
        entries: lines of the ledger.
        records: records of the study `where`.
        study_name: the study whose networks gain.
        metric: key of the metric in which networks gain.
        when: networks of the prediction, see `studies.where`.
        mixing: True for interventions on the mixing instead of the noise.
    """
    one, found = study(entries, study_name), {}
    without, same = (_UNMIXED, slice(1, 3)) if mixing else (_PLAIN, slice(0, 1))
    plain, full = (one.values(row, metric) for row in (without, _NFM))
    known = any(record["study"] == study_name for record in records)
    predicted = predictions(records, study_name, when, mixing=mixing) if known else {}
    for row in interventions(study_name):
        fits = all(row.levels(layer)[same] == FULL[same] for layer in LAYERS)
        values = one.values(row.name, metric)
        seeds = sorted(values.keys() & plain.keys() & full.keys())
        whole = sum(full[s] - plain[s] for s in seeds)
        if row.name in (without, _NFM) or not fits or whole <= 0 or row.name not in predicted:
            continue
        whole /= len(seeds)
        share = predicted[row.name]
        gains = {s: (values[s] - plain[s]) / whole for s in seeds}
        expected: Mapping[int, float] = {s: share * (full[s] - plain[s]) / whole for s in seeds}
        found[row.name] = Share(share, sum(gains.values()) / len(seeds), paired_difference(gains, expected))
    return found


def _standing(one: Share) -> str:
    """`"near"` or `"far"` if the interval lies inside or outside of the allowed distance, `"open"` otherwise."""
    if one.miss.n == 1:
        return "open"
    low, high = (end - one.predicted for end in one.interval)
    return "near" if low >= -CLOSE and high <= CLOSE else "far" if low > CLOSE or high < -CLOSE else "open"


def largest(judge: Callable[[str], Judge]) -> Judge:
    """The verdict at the largest size that was run.

    Args:
        judge: gives the verdict of a study, by its name.
    """

    def verdict(records: Records) -> Verdict:
        found = [judge(name)(records) for name in SIZES]
        return next((one for one in found if one.word != NOT_RUN), found[-1])

    return verdict


def predicted_shares(study_name: str, *, mixing: bool = False) -> Judge:
    """The verdict on whether the share of NFM's gain is that of the second-order terms, see `shares`.

    Args:
        study_name: the study whose networks gain.
        mixing: True for interventions on the mixing instead of the noise.
    """

    def verdict(records: Records) -> Verdict:
        without = _UNMIXED if mixing else _PLAIN
        whole = Pair(_NFM, without, METRIC).gain(study(records.entries, study_name))
        if whole is not None and whole.n > 1 and not (is_sure(whole) and whole.difference > 0):
            return Verdict(
                UNDECIDED,
                f"NFM has no clear gain over {without}, so that it has no shares",
                SIZES[study_name],
                WITHIN_NOISE,
                whole.n,
            )
        found = shares(records.entries, records.where, study_name, mixing=mixing)
        if not found:
            return Verdict(NOT_RUN, f"the ledger lacks nfm, {without} and an intervention with one seed")
        standing = {name: _standing(one) for name, one in found.items()}
        near, far = (sum(word == wanted for word in standing.values()) for wanted in ("near", "far"))
        word = IN_PART if near and far else NOT_REPRODUCED if far else REPRODUCED if near == len(found) else UNDECIDED
        seeds = min(one.miss.n for one in found.values())
        rows = [f"{name}: predicted {one.predicted:.2f}, measured {one.measured:.2f}" for name, one in found.items()]
        told = f"{near} of {len(found)} within {CLOSE:g} of the prediction, {far} clearly not, {seeds} or more seeds"
        weakness = ONE_SEED if seeds == 1 else "" if near or far else WITHIN_NOISE
        return Verdict(word, "; ".join((told, *rows)), SIZES[study_name], weakness, seeds)

    return verdict


_LEDGER, _RECORD = "experiments/results/experiments.jsonl", f"experiments/results/{FILE}"
_SWEEP = f"python -m experiments sweep '{SMALL}/*' '{LARGE}/*'"
_EVIDENCE = (_LEDGER, _RECORD, "experiments/recipes/where.py", "tests/experiments/test_where.py")


def _row(name: str, words: str, judge: Judge, command: str = _SWEEP) -> Statement:
    return Statement(name, "here", "claim", "our question", words, "where", "", _EVIDENCE, command, judge)


def _ordered(first: str, second: str) -> Judge:
    return largest(lambda name: better(Pair(first, second, METRIC), within=name, size=SIZES[name]))


_LAYERS_SAY = (
    "With mixing everywhere, noise at the input alone makes a network more robust to white noise than noise at the "
    "hidden layers alone"
)
WHERE = (
    _row("where-input", f"{_LAYERS_SAY}.", _ordered("noise-input", "noise-hidden")),
    _row(
        "where-additive",
        "With mixing everywhere, additive noise alone makes a network more robust to white noise than multiplicative "
        "noise alone.",
        _ordered("additive", "multiplicative"),
    ),
    _row(
        "where-share",
        r"The share of NFM's gain over Manifold Mixup that an intervention has is its share of NFM's "
        r"$R_2^{\mathrm{add}}+R_2^{\mathrm{mult}}$ on a plainly trained network.",
        largest(predicted_shares),
    ),
    _row(
        "where-mixing-share",
        "The share of NFM's gain over noise without mixing that an intervention on the mixing has is its share of "
        "NFM's $R_2$ on a plainly trained network.",
        largest(lambda name: predicted_shares(name, mixing=True)),
    ),
    _row(
        "where-mixing",
        "Noise everywhere without mixing makes a network more robust to white noise than mixing everywhere without "
        "noise.",
        _ordered("no-mixing", "manifold_mixup"),
    ),
    _row(
        "where-levels",
        r"Levels with the same $R_2^{\mathrm{add}}$ at every layer make a network more robust to white noise than "
        "NFM's.",
        _ordered("equal", "nfm"),
    ),
    *(
        _row(
            f"where-{name}", f"{_LAYERS_SAY}: the same on {words}.",
            better(Pair("noise-input", "noise-hidden", METRIC), within=within, size=words),
            f"python -m experiments sweep '{within}/*'",
        )
        for name, within, words in (
            ("small", SMALL, SIZES[SMALL]), ("preact", "fashion-where-preact", "PreActResNet-18"),
            ("cifar10", "cifar10-where", "CIFAR-10"),
        )
    ),
)  # fmt: skip
