"""What a published table with our own values consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .hardness import Level
from .metrics_map import Column
from .published import PublishedValue
from .registry import TableInfo


class LedgerEntry(Protocol):
    """What the tables read from a line of the ledger."""

    hash: str
    seed: int
    size: str
    settings: Mapping
    suite_settings: Mapping
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Network:
    """A line of the ledger of a network that was trained elsewhere, with the number of the network as its seed."""

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
    """Our values of one study, as a group of columns.

    Attributes:
        study: name of the study; the id of the table if its own recipes were run.
        size: the size of the recipes, or `"elsewhere"` for networks that were trained elsewhere.
        heading: what was trained, in words.
        cells: our values by row and column.
        levels: where the baseline has lost as much as in the paper, by column (see `hardness`). At the papers' size
            there are none, as printed levels count there.
        judged: our values by row and column at these levels.
    """

    study: str
    size: str
    heading: str
    cells: Mapping[tuple[str, str], OurValue]
    levels: Mapping[str, Level] = field(default_factory=dict)
    judged: Mapping[tuple[str, str], OurValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A published table with ours beside it.

    Attributes:
        info: what is known about the table.
        columns: the columns in printed order.
        rows: the id and the printed label of each row.
        printed: the printed values by row and column.
        groups: our values, one group for each study that was run, in the order of `SIZES`.
    """

    info: TableInfo
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, str], ...]
    printed: Mapping[tuple[str, str], PublishedValue]
    groups: tuple[Group, ...] = ()
