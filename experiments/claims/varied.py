"""What becomes of a comparison that failed at the compact size, if the training is varied."""

from __future__ import annotations

from collections.abc import Iterable

from ..recipes.variations import VARIATIONS
from ..record.comparison import Paired, paired_difference
from ..record.entry import Entry
from ..studies.study import format_gain, lower_is_better, study
from ..tables.claims import Outcome

#: Studies in which all rows of another one are varied alike, and what differs.
_WHOLE = {
    "fashion-compact": {
        "fashion-long": "24 epochs, with crop and flip",
        "fashion-preact": "PreActResNet-18 of width 8, 15 epochs, with crop and flip",
    },
}


def gaps(entries: Iterable[Entry], outcome: Outcome) -> dict[str, Paired]:
    """The least gap of an outcome in every variation that was run for one of its two rows.

    A row that a variation does not have stays as it is: PuzzleMix with another loss is compared with NFM itself.

    Returns:
        By the words of the variation: by how many points the row is better that should be. Empty if the least gap is
        positive, is a mean over several columns, or was judged on a study without variations.
    """
    one, entries = outcome.least, list(entries)
    variations = [variation for variation in VARIATIONS if variation.base == outcome.study]
    if not variations or one is None or one.holds or len(one.metrics) != 1:
        return {}
    (metric,), rows = one.metrics, (one.comparison.row, one.comparison.other)
    base, changed = study(entries, variations[0].base), study(entries, variations[0].study)
    sides = {
        variation.words: [
            changed.values(f"{row}-{variation.name}", metric) if row in variation.rows else base.values(row, metric)
            for row in rows
        ]
        for variation in variations
        if set(rows) & set(variation.rows)
    }
    for name, words in _WHOLE.get(outcome.study, {}).items():
        whole = study(entries, name)
        sides[words] = [whole.values(row, metric) for row in rows]
    sign = -100 if lower_is_better(metric) else 100
    return {
        words: paired_difference(*({seed: sign * value for seed, value in side.items()} for side in both))
        for words, both in sides.items()
        if both[0].keys() & both[1].keys()
    }


def in_words(entries: Iterable[Entry], outcome: Outcome) -> str:
    """The gaps of the variations as the end of a sentence; empty if there are none."""
    found = [f"{words}: {format_gain(gap)}" for words, gap in gaps(entries, outcome).items()]
    return f"; that gap if the training is varied: {', '.join(found)}" if found else ""
