"""The columns of the published tables: what each measures, on which data, and its key in the ledger.

| printed | key in the ledger |
|---|---|
| clean accuracy | `clean` |
| white noise σ, salt and pepper γ | `white_noise/σ`, `salt_pepper/γ` |
| -C, mean and without noise | `corrupted/mean`, `corrupted/mean_without_noise` |
| -C, one corruption | `corrupted/NAME`, or the mean of `corrupted/NAME/1` to `/5` |
| -P relative to AlexNet | `flip_rate/mean`, `flip_rate/mean_without_noise`, `flip_rate/NAME` |
| -P flip probability | `flip_probability/mean`, `flip_probability/NAME` |
| ImageNet-R | `imagenet_r/clean` |
| calibration on ImageNet-R | `imagenet_r/rms_calibration_error`, `imagenet_r/aurra` |

Values are shares in [0, 1] in the ledger, and percent in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..metrics.corruption import CATEGORIES, CORRUPTIONS, SEVERITIES
from ..metrics.flips import PERTURBATIONS

NOISES, BLURS, WEATHER, DIGITAL = CATEGORIES.values()
_DATA = {"imagenet": "ImageNet", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_LOWER = ("flip_", "imagenet_r/rms_calibration_error")
_SHORT = {"gaussian_noise": "White", "jpeg_compression": "JPEG", "brightness": "Bright", "elastic_transform": "Elastic"}
_WITHOUT = {
    "imagenet_c/excl_noise": "corrupted/mean_without_noise",
    "imagenet_p/excl_noise": "flip_rate/mean_without_noise",
}
_LEVELS = {"white_noise_sigma": ("white_noise", "σ"), "salt_pepper_gamma": ("salt_pepper", "γ")}
_PARTS = {"first": "mean", "second": "noise", "third": "mean_without_noise"}


@dataclass(frozen=True)
class Column:
    """A column of a published table.

    Attributes:
        id: name in the CSV file; a level or a sub-column follows after `/`.
        heading: short text for readers.
        data: data set on which the network was trained or fine-tuned; columns with different data belong to different
            networks.
        metric: key in the ledger.
        minus: row whose value is subtracted; empty if none is.
    """

    id: str
    heading: str
    data: str
    metric: str
    minus: str = ""

    @property
    def higher_is_better(self) -> bool:
        """True if large values are good."""
        return not self.metric.startswith(_LOWER)


def metric_key(table: str, column: str, *, data: str) -> Column:
    """Find the measurement behind a column.

    Args:
        table: id such as `"noisymix-table2"`.
        column: id of the column, see `Column`.
        data: data set of the table, for columns that do not name their own.

    Returns:
        The column with its data set and its key in the ledger.

    Raises:
        ValueError: if the column is not known.

    Example:
        >>> metric_key("noisymix-table2", "cifar100_c", data="cifar10, cifar100").metric
        'corrupted/mean'
        >>> metric_key("nfm-table1", "white_noise_sigma/0.1", data="cifar10").metric
        'white_noise/0.1'
    """
    head, _, tail = column.partition("/")
    if column in ("clean", "accuracy"):
        return Column(column, "Clean", data, "clean")
    if head in _LEVELS:
        name, symbol = _LEVELS[head]
        return Column(column, f"{name.replace('_', ' ').capitalize()} {symbol} = {tail}", data, f"{name}/{tail}")
    if column in _WITHOUT:
        return Column(column, f"ImageNet-{column[9].upper()} without noise", "imagenet", _WITHOUT[column])
    if column == "robustness_gain":
        return Column(column, "Gain", "cifar100", "corrupted/mean", minus="baseline")
    if column in ("rms_calibration_error", "aurra"):
        heading = {"aurra": "AURRA"}.get(column, "RMS calibration error")
        return Column(column, heading, data, f"imagenet_r/{column}")
    perturbed = {"noisymix-table12": "flip_rate", "noisymix-table13": "flip_probability"}
    perturbed["noisymix-table14"] = "flip_probability"
    if table in perturbed and column in (*PERTURBATIONS, "mfr"):
        heading = "Mean" if column == "mfr" else _heading(column)
        return Column(column, heading, data, f"{perturbed[table]}/{'mean' if column == 'mfr' else column}")
    if column in CORRUPTIONS:
        return Column(column, _heading(column), data, f"corrupted/{column}")
    trained, _, test = column.partition("_")
    if trained in _DATA:
        name = _DATA[trained]
        if not test:
            return Column(column, name, trained, "clean")
        if test in ("c", "r", "p"):
            key = {"c": "corrupted/mean", "r": "imagenet_r/clean", "p": "flip_rate/mean"}[test]
            return Column(column, f"{name}-{test.upper()}", trained, key)
        kind, _, part = test.partition("_")
        if kind == "c" and part in _PARTS:
            words = {"first": "", "second": " noise", "third": " without noise"}[part]
            return Column(column, f"{name}-C{words}", trained, f"corrupted/{_PARTS[part]}")
    raise ValueError(f"{table}: expected a column named in published/README.md, got {column!r}.")


def _heading(column: str) -> str:
    return _SHORT.get(column, column.replace("_noise", "").replace("_blur", "").capitalize())


def measured(metrics: Mapping[str, float], key: str) -> float | None:
    """Find a value in the metrics of the ledger. The value of a corruption is the mean over its five severities.

    Args:
        metrics: metrics of one line of the ledger.
        key: key in the ledger, as in `Column.metric`.

    Returns:
        A share in [0, 1], or `None` if it was not measured.
    """
    if key in metrics:
        return float(metrics[key])
    if key == "corrupted/noise":
        parts = [measured(metrics, f"corrupted/{name}") for name in NOISES]
        return None if None in parts else sum(parts) / len(parts)
    levels = [f"{key}/{severity}" for severity in SEVERITIES]
    if key.startswith("corrupted/") and all(level in metrics for level in levels):
        return sum(float(metrics[level]) for level in levels) / len(levels)
    return None
