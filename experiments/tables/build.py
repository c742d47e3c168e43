"""A published table with our own values beside the printed ones.

A line of the ledger belongs to a recipe if the hashes of their training settings agree, so that rows of several tables
can share one training. `join` says which recipes belong to a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..recipes import Recipe, in_bfloat16
from ..record.entry import ELSEWHERE
from .claims import (
    NOT_RUN,
    NOT_SUPPORTED,
    REPRODUCED,
    SUPPORTED,
    Claim,
    Judgement,
    Outcome,
    judge_ours,
    judge_published,
)
from .claims_list import all_claims
from .hardness import Level, matched_levels
from .join import SIZES, own_studies, recipes_of
from .metrics_map import Column, measured
from .published import Published, column_of, load_published
from .registry import table_info
from .table import Group, LedgerEntry, Network, OurValue, Table

__all__ = ["SIZES", "Group", "OurValue", "Table", "build_table", "judge_claims"]


def build_table(
    table: str,
    entries: Iterable[LedgerEntry],
    sizes: Sequence[str] | None = None,
    *,
    published: Published | None = None,
) -> Table:
    """Join a published table with the ledger.

    Args:
        table: id in `registry.TABLES`.
        entries: lines of the ledger.
        sizes: sizes of our recipes to show; `None` for all.
        published: the printed values; by default those of both papers.

    Returns:
        The table. A cell that was not run is absent from its group.

    Raises:
        ValueError: if there is no such table.
    """
    info = table_info(table)
    published = load_published() if published is None else published
    entries, by_hash = list(entries), {}
    for entry in entries:
        by_hash.setdefault(entry.hash, []).append(entry)
    rows, columns = published.rows(table), published.columns(table)
    recipes: dict[str, dict[tuple[str, str], Recipe]] = {}
    for row in rows:
        for data in dict.fromkeys(column.data for column in columns):
            for recipe in recipes_of(table, row, data):
                recipes.setdefault(recipe.name.partition("/")[0], {})[row, data] = recipe
    groups = []
    for study, some in recipes.items():
        low = {place: other for place, one in some.items() if (other := in_bfloat16(one)) is not one}
        for variant in (some, low):
            lines = {place: by_hash[hash_] for place, one in variant.items() if (hash_ := one.hash) in by_hash}
            if lines:
                groups.append(_group(published, table, study, variant, lines))
        groups += _groups_elsewhere(published, table, study, some, entries)
    shown = [group for group in groups if group.cells and group.size in (sizes or SIZES)]
    labels = tuple((row, next(iter(line.values())).label) for row, line in rows.items())
    printed = {(row, column): value for row, line in rows.items() for column, value in line.items()}
    return Table(info, columns, labels, printed, tuple(sorted(shown, key=lambda group: SIZES.index(group.size))))


def _groups_elsewhere(
    published: Published,
    table: str,
    study: str,
    recipes: Mapping[tuple[str, str], Recipe],
    entries: Iterable[LedgerEntry],
) -> list[Group]:
    """The networks that were trained elsewhere and measured with recipes of a study, a group for each view."""
    by_view: dict[bool, dict[str, dict[str, list[LedgerEntry]]]] = {}
    for entry in entries:
        if entry.size == ELSEWHERE:
            view = by_view.setdefault(bool(entry.settings.get("resize_corrupted")), {})
            view.setdefault(entry.settings["recipe"], {}).setdefault(entry.hash, []).append(entry)
    found = []
    for resized, networks in by_view.items():
        lines = {
            place: [
                Network(number, line.metrics)
                for number, some in enumerate(networks[hash_].values(), 1)
                for line in some
            ]
            for place, recipe in recipes.items()
            if (hash_ := recipe.hash) in networks
        }
        if lines:
            group = _group(published, table, study, recipes, lines)
            some = [recipes[place] for place in lines]
            kinds = [" and ".join(dict.fromkeys(getattr(r.training, name) for r in some)) for name in ("data", "model")]
            view = ["ImageNet-C resized to 256 and cropped to 224 pixels"] if resized else []
            heading = ", ".join([f"trained elsewhere: {kinds[0]}", kinds[1], *view])
            found.append(replace(group, size=ELSEWHERE, heading=heading))
    return found


def _group(
    published: Published,
    table: str,
    study: str,
    recipes: Mapping[tuple[str, str], Recipe],
    lines: Mapping[tuple[str, str], Sequence[LedgerEntry | Network]],
) -> Group:
    """The values of one study in the cells of a table."""
    columns = published.columns(table)

    def value(row: str, column: Column, metric: str) -> OurValue | None:
        found = {} if row == column.minus else _by_seed(lines.get((row, column.data), ()), metric)
        if column.minus and found:
            base = _by_seed(lines.get((column.minus, column.data), ()), metric)
            found = {seed: found[seed] - base[seed] for seed in found.keys() & base.keys()}
        return OurValue(tuple(sorted(found.items()))) if found else None

    def table_of(metrics: Mapping[str, str]) -> dict[tuple[str, str], OurValue]:
        cells = {
            (row, column.id): value(row, column, metrics.get(column.id, column.metric))
            for row in published.rows(table)
            for column in columns
        }
        return {place: one for place, one in cells.items() if one is not None}

    size = next(iter(recipes.values())).size
    levels: dict[str, Level] = {}
    for data in dict.fromkeys(column.data for column in columns):
        base = () if size == "paper" else lines.get(("baseline", data), ())
        levels |= matched_levels(published, table, data, [line.metrics for line in base])
    cells = table_of({})
    judged = table_of({column: level.metric for column, level in levels.items()}) if levels else cells
    return Group(study, size, _heading([recipes[place] for place in lines]), cells, levels, judged)


def _by_seed(entries: Iterable[LedgerEntry | Network], metric: str) -> dict[int, float]:
    values = [(entry.seed, measured(entry.metrics, metric)) for entry in entries]
    return {seed: 100 * value for seed, value in values if value is not None}


def _heading(recipes: Sequence[Recipe]) -> str:
    """What was trained: size, data, network, and the settings that say how large the training is."""

    def values(name: str) -> str:
        found = dict.fromkeys(dict(r.training.model_options).get(name, getattr(r.training, name, "")) for r in recipes)
        return " and ".join("all" if value is None else str(value) for value in found)

    sizes = [f"{name} {values(name)}" for name in ("width", "samples", "epochs") if values(name)]
    low = recipes[0].size == "paper" and recipes[0].training.precision == "bfloat16"
    sizes += ["bfloat16 instead of float32"] if low else []
    return ", ".join([f"{recipes[0].size}: {values('data')}", values("model"), *sizes])


def judge_claims(
    entries: Iterable[LedgerEntry],
    sizes: Sequence[str] | None = None,
    *,
    published: Published | None = None,
) -> tuple[Judgement, ...]:
    """Judge every claim on the printed numbers and, at each size, on our own.

    Args:
        entries: lines of the ledger.
        sizes: sizes of our recipes; `None` for all.
        published: the printed values; by default those of both papers.

    Returns:
        One judgement per claim, in their order. `ours` lacks the sizes at which nothing can be said. Of several studies
        of one size that on the data of the claim counts if it has half of the comparisons, otherwise the one with most
        comparisons; one seed counts only if there is nothing else. Networks that were trained elsewhere are judged
        apart, in `elsewhere`.
    """
    entries, published = list(entries), load_published() if published is None else published
    tables: dict[str, Table] = {}
    judgements = []
    for claim in all_claims():
        if claim.table not in tables:
            tables[claim.table] = build_table(claim.table, entries, sizes, published=published)
        ours: dict[str, Outcome] = {}
        for group in tables[claim.table].groups:
            outcome = _judge_group(claim, group)
            if outcome.word != NOT_RUN and _weight(claim, outcome) > _weight(claim, ours.get(group.size)):
                ours[group.size] = outcome
        other = ours.pop(ELSEWHERE, None)
        if other is not None:
            other = replace(other, word=SUPPORTED if other.word == REPRODUCED else NOT_SUPPORTED, weakness="")
        judgements.append(Judgement(claim, judge_published(claim, published), ours, other))
    return tuple(judgements)


def _weight(claim: Claim, outcome: Outcome | None) -> tuple[bool, bool, int]:
    if outcome is None:
        return (False, False, 0)
    _, trained, _ = own_studies().get(outcome.study, ("", "", ()))
    data = {column_of(claim.table, name).data for comparison in claim.comparisons for name in comparison.columns}
    return (outcome.seeds > 1, trained in data and 2 * outcome.judged >= outcome.total, outcome.judged)


def _judge_group(claim: Claim, group: Group) -> Outcome:
    def lookup(row: str, column: str) -> dict[int, float]:
        value = group.judged.get((row, column))
        return {} if value is None else dict(value.by_seed)

    return judge_ours(claim, lookup, group.size, study=group.study, levels=group.levels)
