"""The published tables: where their values are, and what is known about the networks in them."""

from __future__ import annotations

from dataclasses import dataclass

NFM = "Noisy Feature Mixup (ICLR 2022)"
NOISYMIX = "NoisyMix (arXiv 2202.01263)"


@dataclass(frozen=True)
class TableInfo:
    """What is known about a table.

    Attributes:
        id: our name of the table.
        file: file name in `experiments/published`.
        title: what it shows, in our words.
        paper: the paper that it belongs to.
        data: data sets on which the networks were trained.
        network: name of the network in the paper.
        columns: what the columns are.
        seeds: number of networks per cell; `None` if the paper does not say.
        points: number of test points, if there are few.
        inferred: what the paper does not say and we infer.
    """

    id: str
    file: str
    title: str
    paper: str
    data: tuple[str, ...]
    network: str
    columns: str
    seeds: int | None = None
    points: int | None = None
    inferred: str = ""


_LEVELS = "accuracy on clean images, under white noise of level σ and under salt and pepper of level γ"
_FOUR = "accuracy on the test set and its corrupted version, mean of the seeds (minimum, maximum)"
_EACH = "accuracy for each of 15 corruptions, mean of 5 severities"
_C10, _C100, _IN = ("cifar10",), ("cifar100",), ("imagenet",)
_BOTH = ("cifar10", "cifar100")


def _nfm(number: int, title: str, data: tuple[str, ...], network: str, **more) -> TableInfo:
    name = f"nfm-table{number}"
    return TableInfo(name, f"nfm_table{number}.csv", title, NFM, data, network, _LEVELS, **more)


def _mix(number: int, title: str, data: tuple[str, ...], network: str, columns: str, **more) -> TableInfo:
    name = f"noisymix-table{number}"
    return TableInfo(name, f"noisymix_table{number}.csv", title, NOISYMIX, data, network, columns, **more)


_ALL = (
    _nfm(1, "CIFAR-10 under noise", _C10, "PreAct ResNet-18", seeds=5),
    _nfm(2, "CIFAR-100 under noise", _C100, "Wide-ResNet-18", seeds=5),
    _nfm(3, "ImageNet under noise", _IN, "ResNet-50"),
    TableInfo(
        *("nfm-figure-toy", "nfm_figure_toy.csv", "Decision boundaries on two rings", NFM, ("toy_rings",)),
        *("fully connected network", "test accuracy"),
        **{"seeds": 1, "points": 200, "inferred": "200 test points: every value is a multiple of 0.5"},
    ),
    _mix(1, "ImageNet and its variants", _IN, "ResNet-50", "accuracy; for -P mean flip rate, AlexNet = 100", seeds=1),
    _mix(2, "CIFAR and its corrupted versions", _BOTH, "PreAct ResNet-18", _FOUR, seeds=5),
    _mix(3, "CIFAR and its corrupted versions", _BOTH, "Wide-ResNet-28x2", _FOUR, seeds=5),
    _mix(4, "Ablation of NoisyMix", _C100, "Wide-ResNet-28x2", "accuracy, and gain over the first row in points"),
    _mix(
        *(5, "ImageNet networks fine-tuned on CIFAR", _BOTH, "ResNet-50"),
        "accuracy; corrupted: all, noise, all but noise",
        inferred="the third number of each corrupted column",
    ),
    _mix(6, "ImageNet-C by corruption", _IN, "ResNet-50", _EACH, seeds=1),
    _mix(7, "CIFAR-10-C by corruption", _C10, "PreAct ResNet-18", _EACH, seeds=5),
    _mix(8, "CIFAR-100-C by corruption", _C100, "PreAct ResNet-18", _EACH, seeds=5),
    _mix(9, "CIFAR-10-C by corruption", _C10, "Wide-ResNet-28x2", _EACH, seeds=5),
    _mix(10, "CIFAR-100-C by corruption", _C100, "Wide-ResNet-28x2", _EACH, seeds=5),
    _mix(11, "Calibration on ImageNet-R", _IN, "ResNet-50", "RMS calibration error (lower), AURRA (higher)", seeds=1),
    _mix(12, "ImageNet-P by perturbation", _IN, "ResNet-50", "flip rate, AlexNet = 100, and its mean", seeds=1),
    _mix(
        *(13, "CIFAR-10-P by perturbation", _C10, "PreAct ResNet-18", "flip probability, and its mean"),
        inferred="the network, and that the flips are not relative to AlexNet",
    ),
    _mix(
        *(14, "CIFAR-10-P by perturbation", _C10, "Wide-ResNet-28x2", "flip probability, and its mean"),
        inferred="the network, and that the flips are not relative to AlexNet",
    ),
    TableInfo(
        *("noisymix-figure4", "noisymix_figure4.csv", "Decision boundaries, U-shaped class", NOISYMIX, ("toy_band",)),
        *("shallow fully connected network", "test accuracy"),
        **{"seeds": 1, "points": 250},
    ),
)
TABLES: dict[str, TableInfo] = {info.id: info for info in _ALL}

#: Tables with a value for each corruption or perturbation, the table with their mean, and its columns: the mean over
#: all, and without noise.
DETAILS: tuple[tuple[str, str, str, str | None], ...] = (
    ("noisymix-table6", "noisymix-table1", "imagenet_c", "imagenet_c/excl_noise"),
    ("noisymix-table7", "noisymix-table2", "cifar10_c", None),
    ("noisymix-table8", "noisymix-table2", "cifar100_c", None),
    ("noisymix-table9", "noisymix-table3", "cifar10_c", None),
    ("noisymix-table10", "noisymix-table3", "cifar100_c", None),
    ("noisymix-table12", "noisymix-table1", "imagenet_p", "imagenet_p/excl_noise"),
)


def table_info(table: str) -> TableInfo:
    """What is known about a table.

    Raises:
        ValueError: if there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"table: expected one of {', '.join(TABLES)}; got {table!r}.")
    return TABLES[table]
