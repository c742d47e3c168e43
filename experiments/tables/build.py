"""A published table with our own values beside the printed ones.

A row of a table and a line of the ledger meet in a recipe. The recipe of a row is named `table/row`, and a line belongs
to it if the hashes of their training settings agree, so that rows of several tables can share one training. At our own
sizes a study such as `digits/...` stands for a table: `OUR_STUDIES` says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..recipes import Recipe, all_recipes
from .claims import NOT_RUN, Claim, Judgement, judge_ours, judge_published
from .claims_list import all_claims
from .metrics_map import Column, measured
from .published import ABLATION, Published, PublishedValue, load_published
from .registry import TableInfo, table_info

#: The sizes of our recipes, the papers' own first.
SIZES = ("paper", "small", "digits", "toy")
_CIFAR10, _CIFAR100 = ("cifar10-small", "digits"), ("cifar100-small",)
#: The studies that stand for a published table, by the data set of its columns. Their rows are named after the schemes.
OUR_STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    "nfm-table1": {"cifar10": _CIFAR10},
    "nfm-table2": {"cifar100": _CIFAR100},
    "noisymix-table2": {"cifar10": _CIFAR10, "cifar100": _CIFAR100},
    "noisymix-table7": {"cifar10": _CIFAR10},
    "noisymix-table8": {"cifar100": _CIFAR100},
    "noisymix-table13": {"cifar10": _CIFAR10},
}
#: Printed rows that have another name in our studies.
OUR_ROWS = {"puzzlemix/epochs=200": "puzzlemix"}
#: Printed rows of the ablation, whose recipes are named after its four switches.
_SWITCHES = {scheme: "".join(map(str, switches)) for switches, scheme in ABLATION.items()}
#: Tables whose columns belong to networks of several data sets; their recipes are named `table/data-row`.
_BY_DATA = ("noisymix-table2", "noisymix-table3", "noisymix-table5")


class LedgerEntry(Protocol):
    """What the tables read from a line of the ledger."""

    hash: str
    seed: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class OurValue:
    """Our value of one cell, in percent.

    Attributes:
        by_seed: pairs of seed and value.
    """

    by_seed: tuple[tuple[int, float], ...]

    @property
    def seeds(self) -> int:
        """Number of trained networks."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return math.fsum(value for _, value in self.by_seed) / self.seeds

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean, or `None` for one seed."""
        if self.seeds < 2:
            return None
        squares = math.fsum((value - self.mean) ** 2 for _, value in self.by_seed)
        return math.sqrt(squares / (self.seeds - 1) / self.seeds)


@dataclass(frozen=True)
class Group:
    """Our values at one size, as a group of columns.

    Attributes:
        size: the size of the recipes.
        heading: what was trained, in words.
        cells: our values by row and column.
    """

    size: str
    heading: str
    cells: Mapping[tuple[str, str], OurValue]


@dataclass(frozen=True)
class Table:
    """A published table with ours beside it.

    Attributes:
        info: what is known about the table.
        columns: the columns in printed order.
        rows: the id and the printed label of each row.
        printed: the printed values by row and column.
        groups: our values, one group for each size at which something was run.
    """

    info: TableInfo
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, str], ...]
    printed: Mapping[tuple[str, str], PublishedValue]
    groups: tuple[Group, ...] = ()


def recipes_of(table: str, row: str, data: str) -> list[Recipe]:
    """The recipes behind a row of a published table: its own, and those of our studies that stand for it.

    Args:
        table: id of the table.
        row: id of the row.
        data: the data set on which the networks of a column were trained.

    Returns:
        At most one recipe of each size.

    Example:
        >>> [recipe.name for recipe in recipes_of("nfm-table1", "nfm", "cifar10")]
        ['nfm-table1/nfm', 'cifar10-small/nfm', 'digits/nfm']
    """
    own = _SWITCHES[row] if table == "noisymix-table4" else row.replace("/", "-").replace("=", "")
    names = [f"{table}/{data}-{own}" if table in _BY_DATA else f"{table}/{own}"]
    names += [f"{study}/{OUR_ROWS.get(row, row)}" for study in OUR_STUDIES.get(table, {}).get(data, ())]
    known = all_recipes()
    return [known[name] for name in names if name in known]


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
    by_hash: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        by_hash.setdefault(entry.hash, []).append(entry)
    rows, columns = published.rows(table), published.columns(table)
    cells: dict[str, dict[tuple[str, str], OurValue]] = {}
    trained: dict[str, list[Recipe]] = {}
    for row in rows:
        for column in columns:
            for recipe in recipes_of(table, row, column.data):
                value = _value(by_hash.get(recipe.hash, ()), column.metric)
                if value is not None:
                    cells.setdefault(recipe.size, {})[row, column.id] = value
                    trained.setdefault(recipe.size, []).append(recipe)
    groups = [Group(size, _heading(trained[size]), cells[size]) for size in sizes or SIZES if size in cells]
    labels = tuple((row, next(iter(line.values())).label) for row, line in rows.items())
    printed = {(row, column): value for row, line in rows.items() for column, value in line.items()}
    return Table(info, columns, labels, printed, tuple(groups))


def _value(entries: Iterable[LedgerEntry], metric: str) -> OurValue | None:
    values = [(entry.seed, measured(entry.metrics, metric)) for entry in entries]
    found = {seed: 100 * value for seed, value in values if value is not None}
    return OurValue(tuple(sorted(found.items()))) if found else None


def _heading(recipes: Sequence[Recipe]) -> str:
    """What was trained: size, data, network, and the settings that say how large the training is."""

    def values(name: str) -> str:
        found = dict.fromkeys(dict(r.training.model_options).get(name, getattr(r.training, name, "")) for r in recipes)
        return " and ".join("all" if value is None else str(value) for value in found)

    sizes = [f"{name} {values(name)}" for name in ("width", "samples", "epochs") if values(name)]
    return ", ".join([f"{recipes[0].size}: {values('data')}", values("model"), *sizes])


def judge_claims(
    entries: Iterable[LedgerEntry],
    sizes: Sequence[str] | None = None,
    *,
    claims: Iterable[Claim] | None = None,
    published: Published | None = None,
) -> tuple[Judgement, ...]:
    """Judge every claim on the printed numbers and, at each size, on our own.

    Args:
        entries: lines of the ledger.
        sizes: sizes of our recipes; `None` for all.
        claims: the claims; by default all of them.
        published: the printed values; by default those of both papers.

    Returns:
        One judgement per claim, in their order. `ours` lacks the sizes at which nothing can be said.
    """
    entries, published = list(entries), load_published() if published is None else published
    tables: dict[str, Table] = {}
    judgements = []
    for claim in all_claims() if claims is None else claims:
        if claim.table not in tables:
            tables[claim.table] = build_table(claim.table, entries, sizes, published=published)
        ours = {group.size: _judge_group(claim, group) for group in tables[claim.table].groups}
        ours = {size: outcome for size, outcome in ours.items() if outcome.word != NOT_RUN}
        judgements.append(Judgement(claim, judge_published(claim, published), ours))
    return tuple(judgements)


def _judge_group(claim: Claim, group: Group):
    def lookup(row: str, column: str) -> dict[int, float]:
        value = group.cells.get((row, column))
        return {} if value is None else dict(value.by_seed)

    return judge_ours(claim, lookup, group.size)
