"""Printed values beside our own: a table is joined with the ledger by size, data set, network, scheme and alpha.

Our networks stand in column groups of their own, one for each way of training (data, network, samples, epochs and so
on), and are never averaged across groups. What was not run has no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .claims import Claim, Judgement, Outcome, judge_ours, judge_published
from .claims_list import all_claims
from .metrics_map import Column, measured
from .published import ABLATION, Published, PublishedValue, load_published
from .registry import TableInfo, table_info

#: Names of one scheme in different tables.
ALIASES = {"noise_injection": "baseline_noise", "noise": "baseline_noise"}
#: Scheme ids that belong to a table of their own: the ablation's switches, and fine-tuned networks.
ABLATED = {f"ablation_{''.join(map(str, switches))}": scheme for switches, scheme in ABLATION.items()}
#: Rows of the ablation that are trainings of the other tables too, and may stand in the ledger under either id.
SHARED = tuple(f"ablation_{switches}" for switches in ("0000", "0100", "1001", "1111"))
TRANSFERRED, TRANSFER_TABLE, ABLATION_TABLE = "transfer_", "noisymix-table5", "noisymix-table4"
#: Settings that belong to the scheme, not to the column group.
_SCHEME_KEYS = ("scheme", "scheme_options", "views", "pretrained", "name", "seed")
_SHOWN_KEYS = ("data", "model", "width", "samples", "epochs")
PAPER_SIZE = "paper"


class LedgerEntry(Protocol):
    """What a line of the ledger must have."""

    recipe: str
    hash: str
    size: str
    scheme: str
    seed: int
    suite: str
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class OurValue:
    """Our networks' value of one cell, in percent.

    Attributes:
        by_seed: value by seed.
    """

    by_seed: tuple[tuple[int, float], ...]

    @property
    def seeds(self) -> int:
        """Number of networks."""
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return math.fsum(value for _, value in self.by_seed) / self.seeds

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean, `None` for one seed."""
        if self.seeds < 2:
            return None
        mean = self.mean
        return math.sqrt(math.fsum((v - mean) ** 2 for _, v in self.by_seed) / (self.seeds - 1) / self.seeds)

    @property
    def minimum(self) -> float:
        """Over the seeds."""
        return min(value for _, value in self.by_seed)

    @property
    def maximum(self) -> float:
        """Over the seeds."""
        return max(value for _, value in self.by_seed)


@dataclass(frozen=True)
class Group:
    """A column group: networks of one size that were trained in one way.

    Attributes:
        size: of the recipes.
        heading: what was run.
        cells: our values by row and column.
    """

    size: str
    heading: str
    cells: Mapping[tuple[str, str], OurValue]


@dataclass(frozen=True)
class Table:
    """A table of a paper beside ours.

    Attributes:
        info: what is known of it.
        columns: in printed order.
        rows: id and printed label.
        printed: the paper's values by row and column.
        groups: ours; empty if nothing was run.
        notes: rows that could not be joined, and why.
    """

    info: TableInfo
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, str], ...]
    printed: Mapping[tuple[str, str], PublishedValue]
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the scheme's, one level deep: lists of pairs, as in a recipe's options, are opened.

    Example:
        >>> flatten({"data": "cifar10", "model_options": [["width", 8]], "scheme": {"name": "nfm"}})
        {'data': 'cifar10', 'width': 8}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _SCHEME_KEYS:
            continue
        if isinstance(value, Mapping) and "name" in value:
            flat[key] = value["name"]
            flat |= flatten(value)
        elif isinstance(value, Mapping):
            flat |= flatten(value)
        elif key.endswith("_options") and isinstance(value, Sequence) and not isinstance(value, str):
            flat |= dict(value)
        else:
            flat[key] = tuple(value) if isinstance(value, list) else value
    return flat


def _scheme_option(entry: LedgerEntry, name: str) -> Any:
    for key in ("scheme_options", "scheme"):
        options = entry.settings.get(key)
        if isinstance(options, Mapping) and name in options:
            return options[name]
        if isinstance(options, Sequence) and not isinstance(options, str):
            pairs = {pair[0]: pair[1] for pair in options}
            if name in pairs:
                return pairs[name]
    return None


def _plain(name: object) -> str:
    return "".join(character for character in str(name).lower() if character.isalnum())


def build_table(
    table: str,
    entries: Iterable[LedgerEntry],
    size: str | Sequence[str] | None = None,
    *,
    published: Published | None = None,
    stand_ins: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Join a published table with ours.

    Args:
        table: id in `registry.TABLES`.
        entries: lines of the ledger.
        size: of the recipes, one or several; `None` for all.
        published: printed values; by default those of both papers.
        stand_ins: data sets or networks that may stand in for a published one, such as
            `{"imagenet": ["cifar10"], "resnet50": ["preactresnet18"]}`; never at the paper's size.

    Returns:
        The table. A cell that was not run is absent from its group.

    Raises:
        ValueError: if there is no such table.
    """
    info = table_info(table)
    published = load_published() if published is None else published
    sizes = None if size is None else ((size,) if isinstance(size, str) else tuple(size))
    rows, columns = published.rows(table), published.columns(table)
    data = {column.data for column in columns}
    pool: dict[tuple[str, tuple], list[LedgerEntry]] = {}
    for entry in entries:
        if (sizes is None or entry.size in sizes) and _belongs(entry, info, data, stand_ins or {}):
            setup = flatten(entry.settings)
            # Columns of one table may differ in data, and a setting may itself be one of its schemes (weight decay).
            dropped = {"data", *(cell.scheme for row in rows.values() for cell in row.values())}
            key = tuple(sorted((name, repr(value)) for name, value in setup.items() if name not in dropped))
            pool.setdefault((entry.size, key), []).append(entry)
    headings = _headings(pool)
    groups, notes = [], []
    for key in sorted(pool, key=lambda key: (key[0], headings[key])):
        cells = {}
        for row, printed in rows.items():
            for column in columns:
                value, clash = _join(next(iter(printed.values())), rows, column, pool[key], info, stand_ins or {})
                if value is not None:
                    cells[row, column.id] = value
                if clash:
                    notes.append(f"{row}, {column.data}: several recipes fit ({clash}); not shown.")
        groups.append(Group(key[0], headings[key], cells))
    return Table(
        info,
        columns,
        tuple((row, next(iter(cells.values())).label) for row, cells in rows.items()),
        {(row, column): value for row, cells in rows.items() for column, value in cells.items()},
        tuple(group for group in groups if group.cells),
        tuple(dict.fromkeys(notes)),
    )


def _allowed(wanted: Iterable[str], entry: LedgerEntry, stand_ins: Mapping[str, Sequence[str]]) -> list[str]:
    wanted = list(wanted)
    extra = [] if entry.size == PAPER_SIZE else [name for key in wanted for name in stand_ins.get(key, ())]
    return [_plain(name) for name in (*wanted, *extra)]


def _belongs(entry: LedgerEntry, info: TableInfo, data: Iterable[str], stand_ins: Mapping[str, Sequence[str]]) -> bool:
    """Whether an entry's data and network are those of the table; at the paper's size its width too."""
    setup = flatten(entry.settings)
    if _plain(setup.get("data")) not in _allowed(data, entry, stand_ins):
        return False
    if "activation" in setup:  # all published networks have ReLU; another activation is another network
        return False
    model = _plain(setup.get("model"))
    if not model.startswith(tuple(_allowed(info.networks, entry, stand_ins))):
        return False
    if entry.size != PAPER_SIZE or not info.width:
        return True
    default = info.width if model.startswith(_plain(info.networks[0])) else None
    return setup.get("width", default) == info.width


def _headings(pool: Mapping[tuple[str, tuple], list[LedgerEntry]]) -> dict[tuple[str, tuple], str]:
    """What was run: the usual settings, and whatever else tells two groups of one size apart."""
    headings = {}
    for size, key in pool:
        mine = dict(key)
        others = [dict(other) for other_size, other in pool if other_size == size]
        differing = [name for name in mine if any(other.get(name) != mine[name] for other in others)]
        names = dict.fromkeys([name for name in _SHOWN_KEYS if name in mine] + differing)
        trained = sorted({str(flatten(entry.settings).get("data")) for entry in pool[size, key]})
        words = [mine[name].strip("'") if name == "model" else f"{name} {_value(mine[name])}" for name in names]
        headings[size, key] = ", ".join([f"{size}: {' and '.join(trained)}", *words])
    return headings


def _value(text: str) -> str:
    return "all" if text == "None" else text.strip("'")


def _join(
    row: PublishedValue,
    rows: Mapping[str, Mapping[str, PublishedValue]],
    column: Column,
    entries: Iterable[LedgerEntry],
    info: TableInfo,
    stand_ins: Mapping[str, Sequence[str]],
) -> tuple[OurValue | None, str]:
    """Our value of one cell, or the recipes that compete for it."""
    by_hash: dict[str, dict[int, float]] = {}
    names: dict[str, str] = {}
    for entry in entries:
        if not _fits(row, rows, entry, info):
            continue
        if _plain(flatten(entry.settings).get("data")) not in _allowed([column.data], entry, stand_ins):
            continue
        value = measured(entry.metrics, column.metric)
        if value is not None:
            by_hash.setdefault(entry.hash, {})[entry.seed] = 100 * value  # of two equal runs the later
            names[entry.hash] = entry.recipe
    if len(by_hash) > 1:  # the ledger names a recipe after the table that it was written for
        named = {key: seeds for key, seeds in by_hash.items() if names[key].startswith(f"{info.id}/")}
        by_hash = named if len(named) == 1 else by_hash
    if len(by_hash) > 1:
        return None, ", ".join(sorted(f"{names[key]} {key}" for key in by_hash))
    return (OurValue(tuple(sorted(next(iter(by_hash.values())).items()))) if by_hash else None), ""


def _scheme_in(table: str, scheme: str) -> str:
    """The scheme that a recipe's stands for in this table."""
    if table == ABLATION_TABLE or scheme in SHARED:
        scheme = ABLATED.get(scheme, scheme)
    if table == TRANSFER_TABLE:
        scheme = scheme.removeprefix(TRANSFERRED)
    return ALIASES.get(scheme, scheme)


def _fits(row: PublishedValue, rows: Mapping, entry: LedgerEntry, info: TableInfo) -> bool:
    """Same scheme, same alpha where the paper gives one, and same epochs where its rows differ in them."""
    if ALIASES.get(row.scheme, row.scheme) != _scheme_in(info.id, entry.scheme):
        return False
    alpha = _scheme_option(entry, "alpha")
    if row.alpha is not None and alpha is not None and not math.isclose(alpha, row.alpha):
        return False
    twins = [other for cells in rows.values() if (other := next(iter(cells.values()))).scheme == row.scheme]
    if row.alpha is not None and alpha is None and len({twin.alpha for twin in twins}) > 1:
        return False
    if len({twin.epochs for twin in twins}) > 1:
        epochs = flatten(entry.settings).get("epochs")
        longer = {twin.epochs for twin in twins} - {info.epochs}
        return epochs not in longer if row.epochs == info.epochs else epochs == row.epochs
    return True


def judge_claims(
    entries: Iterable[LedgerEntry],
    size: str | Sequence[str] | None = None,
    *,
    claims: Iterable[Claim] | None = None,
    published: Published | None = None,
    stand_ins: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Judgement, ...]:
    """Every claim with its verdict in print and, for each column group, in ours.

    Args:
        entries: lines of the ledger.
        size: of the recipes, one or several; `None` for all.
        claims: by default all.
        published: printed values; by default those of both papers.
        stand_ins: see `build_table`.

    Returns:
        One judgement per claim, in their order; `ours` is empty where nothing of the table was run.
    """
    entries, published = list(entries), load_published() if published is None else published
    tables: dict[str, Table] = {}
    judgements = []
    for claim in all_claims() if claims is None else claims:
        if claim.table not in tables:
            tables[claim.table] = build_table(claim.table, entries, size, published=published, stand_ins=stand_ins)
        ours = {group.heading: _judge_group(claim, group) for group in tables[claim.table].groups}
        judgements.append(Judgement(claim, judge_published(claim, published), ours))
    return tuple(judgements)


def _judge_group(claim: Claim, group: Group) -> Outcome:
    def lookup(row: str, column: str) -> dict[int, float]:
        value = group.cells.get((row, column))
        return {} if value is None else dict(value.by_seed)

    return judge_ours(claim, lookup)
