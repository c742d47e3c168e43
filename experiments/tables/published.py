"""The printed values of both papers, read from the CSV files in `experiments/published`. Nothing is corrected."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .metrics_map import Column, metric_key
from .registry import TABLES, TableInfo, table_info

PUBLISHED = Path(__file__).parent.parent / "published"
SUBMISSIONS_FILE = "extra_robustbench_noisymix.csv"
BENCHMARK_FILE = "extra_robustbench_imagenet_c.csv"
#: Columns of the files that say which row it is.
_ROW_COLUMNS = ("scheme", "label", "ref", "alpha", "epochs")
SWITCHES = ("augmentations", "feature_mixing", "noise_injections", "jsd_loss")
#: The scheme of each row of the ablation, by its four switches.
ABLATION = {
    (0, 0, 0, 0): "baseline",
    (0, 0, 1, 0): "noise",
    (0, 1, 0, 0): "manifold_mixup",
    (0, 1, 1, 0): "nfm",
    (1, 0, 0, 0): "augmix_no_jsd",
    (1, 0, 1, 1): "augmix_noise",
    (1, 0, 0, 1): "augmix",
    (1, 1, 1, 0): "noisymix_no_jsd",
    (1, 1, 0, 1): "augmix_manifold_mixup",
    (1, 1, 1, 1): "noisymix",
}


@dataclass(frozen=True)
class PublishedValue:
    """One printed number.

    Attributes:
        table: id in `TABLES`.
        row: id of the row: the scheme, followed by alpha or epochs if a scheme has several rows.
        column: id of the column, see `metrics_map.Column`.
        scheme: id of the training scheme.
        label: label of the row as printed.
        data: data set on which the network was trained.
        network: name of the network in the paper.
        metric: key of the measurement in the ledger.
        level: level of the noise, if the column has one.
        text: the number as printed.
        value: the number, in percent.
        minimum: minimum over the seeds in percent, if printed.
        maximum: maximum over the seeds in percent, if printed.
        bold: True if printed bold; `None` if the file does not say.
        alpha: parameter of the Beta law, if printed.
        epochs: number of epochs, if printed.
    """

    table: str
    row: str
    column: str
    scheme: str
    label: str
    data: str
    network: str
    metric: str
    level: float | None
    text: str
    value: float
    minimum: float | None = None
    maximum: float | None = None
    bold: bool | None = None
    alpha: float | None = None
    epochs: int | None = None

    @property
    def decimals(self) -> int:
        """Number of printed digits after the point."""
        return len(self.text.partition(".")[2])


@dataclass(frozen=True)
class Submission:
    """A network as its authors or a benchmark measured it, outside of the papers.

    Attributes:
        data: data set of the training.
        corrupted_data: corrupted version of the data set.
        network: architecture as submitted.
        clean: accuracy in percent.
        corrupted: mean accuracy on the corrupted version, in percent.
        who: who measured it, and on which images.
        source: where the measurement is recorded.
    """

    data: str
    corrupted_data: str
    network: str
    clean: float
    corrupted: float
    who: str
    source: str


@dataclass(frozen=True)
class Benchmark:
    """A network of a table on one corruption of ImageNet-C, as RobustBench measured it on 5000 images.

    Attributes:
        row: id of the row of NoisyMix Table 6 that shows the same network.
        network: its name at RobustBench.
        view: `"published"` for the images as they are published, with 224 pixels, or `"resized"` for images that were
            resized to 256 and cropped to 224, as RobustBench did until May 2022.
        corruption: name of the corruption.
        accuracies: accuracy at severities 1 to 5, in percent.
        source: where the measurement is recorded.
    """

    row: str
    network: str
    view: str
    corruption: str
    accuracies: tuple[float, ...]
    source: str

    @property
    def mean(self) -> float:
        """Mean over the severities, in percent."""
        return sum(self.accuracies) / len(self.accuracies)


@dataclass(frozen=True)
class Published:
    """All printed values, which can be found by table, row and column."""

    values: tuple[PublishedValue, ...]
    submissions: tuple[Submission, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()

    def __post_init__(self):
        """Index the values."""
        index: dict[str, dict[str, dict[str, PublishedValue]]] = {}
        for value in self.values:
            index.setdefault(value.table, {}).setdefault(value.row, {})[value.column] = value
        object.__setattr__(self, "_index", index)

    def tables(self) -> tuple[str, ...]:
        """The ids of the tables, in the order of the papers."""
        return tuple(self._index)

    def rows(self, table: str) -> dict[str, dict[str, PublishedValue]]:
        """The rows of a table in printed order; each maps columns to values."""
        return self._index.get(table, {})

    def columns(self, table: str) -> tuple[Column, ...]:
        """The columns of a table in printed order."""
        seen = dict.fromkeys(column for row in self.rows(table).values() for column in row)
        return tuple(column_of(table, name) for name in seen)

    def get(self, table: str, row: str, column: str) -> PublishedValue | None:
        """A value, or `None` if the table has none there."""
        return self.rows(table).get(row, {}).get(column)

    def number(self, table: str, row: str, column: str) -> float | None:
        """A value in percent, or `None`."""
        cell = self.get(table, row, column)
        return None if cell is None else cell.value

    def amend(self, table: str, row: str, column: str, text: str, **changes) -> Published:
        """A copy in which one number is printed differently, to ask what would follow.

        Raises:
            KeyError: if there is no such number.
        """
        old = self._index[table][row][column]
        new = replace(old, text=text, value=float(text), **changes)
        return replace(self, values=tuple(new if value is old else value for value in self.values))


def column_of(table: str, column: str) -> Column:
    """A column of a table; see `metrics_map.metric_key`."""
    return metric_key(table, column, data=table_info(table).data[0])


def read_table(table: str, *, folder: Path = PUBLISHED) -> tuple[PublishedValue, ...]:
    """Read the values of one table.

    Returns:
        The values in printed order; empty cells are left out.

    Raises:
        ValueError: if the id is not known or a cell is no number.
    """
    info = table_info(table)
    with open(Path(folder) / info.file, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = _row_ids(lines)
    return tuple(
        _value(info, row, line, column, text, extra)
        for row, line in zip(rows, lines, strict=True)
        for column, text, extra in _cells(line)
        if text
    )


def _row_ids(lines: list[dict[str, str]]) -> list[str]:
    """The ids of the rows: the scheme, and what tells two rows of one scheme apart."""
    for line in lines:
        if "scheme" not in line:
            line["scheme"] = ABLATION[tuple(int(line[name]) for name in SWITCHES)]
            line["label"] = " + ".join(name.replace("_", " ") for name in SWITCHES if line[name] == "1") or "none"
    kinds: dict[str, set[tuple[str, str]]] = {}
    for line in lines:
        kinds.setdefault(line["scheme"], set()).add((line.get("alpha", ""), line.get("epochs", "")))
    ids = []
    for line in lines:
        several = kinds[line["scheme"]]
        parts = [line["scheme"]]
        for position, name in enumerate(("alpha", "epochs")):
            if len({kind[position] for kind in several}) > 1:
                parts.append(f"{name}={line[name]}")
        ids.append("/".join(parts))
    return ids


def _cells(line: Mapping[str, str]) -> Iterable[tuple[str, str, dict]]:
    """The column, the text and other fields of each number in a line of the file."""
    if "metric" not in line:
        for name, text in line.items():
            if name not in (*_ROW_COLUMNS, *SWITCHES):
                yield name, text, {}
        return
    extra: dict = {}
    if line.get("min"):
        extra = {"minimum": float(line["min"]), "maximum": float(line["max"])}
    if "bold" in line:
        extra["bold"] = line["bold"] == "1"
    level = line.get("level", "")
    yield f"{line['metric']}/{level}" if level else line["metric"], line["value"], extra
    if line.get("value_excl_noise"):
        yield f"{line['metric']}/excl_noise", line["value_excl_noise"], {}


def _value(info: TableInfo, row: str, line: Mapping[str, str], name: str, text: str, extra: dict) -> PublishedValue:
    column = column_of(info.id, name)
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{info.file}, {row}, {name}: expected a number, got {text!r}.") from None
    level, alpha, epochs = (line.get(key) for key in ("level", "alpha", "epochs"))
    return PublishedValue(
        info.id, row, name, line["scheme"], line["label"], column.data, info.network, column.metric,
        float(level) if level else None, text, value, alpha=float(alpha) if alpha else None,
        epochs=int(epochs) if epochs else None, **extra,
    )  # fmt: skip


def read_submissions(*, folder: Path = PUBLISHED) -> tuple[Submission, ...]:
    """NoisyMix networks as their authors submitted them to RobustBench, and as RobustBench measured them."""
    with open(Path(folder) / SUBMISSIONS_FILE, encoding="utf-8", newline="") as file:
        return tuple(
            Submission(
                line["dataset"], line["corrupted_dataset"], line["architecture"], float(line["clean"]),
                float(line["corrupted"]), line["who"], line["source"],
            )
            for line in csv.DictReader(file)
        )  # fmt: skip


def read_benchmarks(*, folder: Path = PUBLISHED) -> tuple[Benchmark, ...]:
    """Networks of NoisyMix Table 6 as RobustBench measured them, by corruption and severity."""
    with open(Path(folder) / BENCHMARK_FILE, encoding="utf-8", newline="") as file:
        return tuple(
            Benchmark(
                line["scheme"], line["network"], line["view"], line["corruption"],
                tuple(float(line[severity]) for severity in "12345"), line["source"],
            )
            for line in csv.DictReader(file)
        )  # fmt: skip


@cache
def load_published(folder: Path = PUBLISHED) -> Published:
    """Read every table of `TABLES`, the submissions and the benchmark."""
    values = tuple(value for table in TABLES for value in read_table(table, folder=folder))
    return Published(values, read_submissions(folder=folder), read_benchmarks(folder=folder))
