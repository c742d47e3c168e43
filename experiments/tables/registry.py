"""The published tables: where their values are, and how the networks in them were made."""

from __future__ import annotations

from dataclasses import dataclass

NFM = "Noisy Feature Mixup (ICLR 2022)"
NOISYMIX = "NoisyMix (arXiv 2202.01263)"


@dataclass(frozen=True)
class TableInfo:
    """What is known of a table.

    Attributes:
        id: ours.
        file: in `experiments/published`.
        title: what it shows, in our words.
        paper: whose table it is.
        data: data sets that networks were trained on.
        network: as the paper names it.
        networks: names of networks in `experiments.models` that may stand in its columns.
        width: of the first stage, where the network's name leaves it open.
        seeds: networks per cell; `None` where not said.
        columns: what the columns are.
        epochs: of training, where the table's rows differ in it.
        points: test points, where few and known.
        perturbation: unit of the flips, if any.
        inferred: what was not said in the paper and is inferred.
    """

    id: str
    file: str
    title: str
    paper: str
    data: tuple[str, ...]
    network: str
    networks: tuple[str, ...]
    columns: str
    seeds: int | None = None
    width: int | None = None
    epochs: int | None = None
    points: int | None = None
    inferred: str = ""


_LEVELS = "accuracy on clean images, under white noise of level σ and under salt and pepper of level γ"
_FOUR = "accuracy on the test set and its corrupted version, mean of the seeds (minimum, maximum)"
_EACH = "accuracy for each of 15 corruptions, mean of 5 severities"
_PREACT, _WRN, _RESNET = ("preactresnet18",), ("wideresnet28",), ("resnet50",)
_NFM_TOY, _MIX_TOY = ("nfm_toy",), ("noisymix_toy",)
_C10, _C100, _IN = ("cifar10",), ("cifar100",), ("imagenet",)
_BOTH = ("cifar10", "cifar100")


def _nfm(number: int, title: str, data: tuple[str, ...], network: str, networks: tuple[str, ...], **more) -> TableInfo:
    name = f"nfm-table{number}"
    return TableInfo(name, f"nfm_table{number}.csv", title, NFM, data, network, networks, _LEVELS, **more)


def _mix(number: int, title: str, data: tuple[str, ...], network: str, columns: str, **more) -> TableInfo:
    networks = {"PreAct ResNet-18": _PREACT, "Wide-ResNet-28x2": _WRN, "ResNet-50": _RESNET}[network]
    name = f"noisymix-table{number}"
    return TableInfo(name, f"noisymix_table{number}.csv", title, NOISYMIX, data, network, networks, columns, **more)


_ALL = (
    _nfm(1, "CIFAR-10 under noise", _C10, "PreAct ResNet-18", _PREACT, seeds=5, width=64),
    _nfm(
        2, "CIFAR-100 under noise", _C100, "Wide-ResNet-18", ("wideresnet18", *_PREACT), seeds=5, width=128, epochs=200
    ),
    _nfm(3, "ImageNet under noise", _IN, "ResNet-50", _RESNET),
    TableInfo(
        *("nfm-figure-toy", "nfm_figure_toy.csv", "Decision boundaries on two rings", NFM, ("toy_rings",)),
        *("fully connected network", _NFM_TOY, "test accuracy"),
        **{"seeds": 1, "points": 200, "inferred": "200 test points: every value is a multiple of 0.5"},
    ),
    _mix(1, "ImageNet and its variants", _IN, "ResNet-50", "accuracy; for -P mean flip rate, AlexNet = 100", seeds=1),
    _mix(2, "CIFAR and its corrupted versions", _BOTH, "PreAct ResNet-18", _FOUR, seeds=5, width=64),
    _mix(3, "CIFAR and its corrupted versions", _BOTH, "Wide-ResNet-28x2", _FOUR, seeds=5),
    _mix(4, "Ablation of NoisyMix", _C100, "Wide-ResNet-28x2", "accuracy, and gain over the first row in points"),
    _mix(
        *(5, "ImageNet networks fine-tuned on CIFAR", _BOTH, "ResNet-50"),
        "accuracy; corrupted: all, noise, all but noise",
        inferred="the third number of each corrupted column",
    ),
    _mix(6, "ImageNet-C by corruption", _IN, "ResNet-50", _EACH, seeds=1),
    _mix(7, "CIFAR-10-C by corruption", _C10, "PreAct ResNet-18", _EACH, seeds=5, width=64),
    _mix(8, "CIFAR-100-C by corruption", _C100, "PreAct ResNet-18", _EACH, seeds=5, width=64),
    _mix(9, "CIFAR-10-C by corruption", _C10, "Wide-ResNet-28x2", _EACH, seeds=5),
    _mix(10, "CIFAR-100-C by corruption", _C100, "Wide-ResNet-28x2", _EACH, seeds=5),
    _mix(11, "Calibration on ImageNet-R", _IN, "ResNet-50", "RMS calibration error (lower), AURRA (higher)", seeds=1),
    _mix(12, "ImageNet-P by perturbation", _IN, "ResNet-50", "flip rate, AlexNet = 100, and its mean", seeds=1),
    _mix(
        *(13, "CIFAR-10-P by perturbation", _C10, "PreAct ResNet-18", "flip probability, and its mean"),
        **{"width": 64, "inferred": "the network, and that the flips are not relative to AlexNet"},
    ),
    _mix(
        *(14, "CIFAR-10-P by perturbation", _C10, "Wide-ResNet-28x2", "flip probability, and its mean"),
        inferred="the network, and that the flips are not relative to AlexNet",
    ),
    TableInfo(
        *("noisymix-figure4", "noisymix_figure4.csv", "Decision boundaries, U-shaped class", NOISYMIX, ("toy_band",)),
        *("shallow fully connected network", _MIX_TOY, "test accuracy"),
        **{"seeds": 1, "points": 250},
    ),
)
TABLES: dict[str, TableInfo] = {info.id: info for info in _ALL}

#: Tables with a value per corruption or perturbation, the table with their mean, its columns (all; without noise).
DETAILS: tuple[tuple[str, str, str, str | None], ...] = (
    ("noisymix-table6", "noisymix-table1", "imagenet_c", "imagenet_c/excl_noise"),
    ("noisymix-table7", "noisymix-table2", "cifar10_c", None),
    ("noisymix-table8", "noisymix-table2", "cifar100_c", None),
    ("noisymix-table9", "noisymix-table3", "cifar10_c", None),
    ("noisymix-table10", "noisymix-table3", "cifar100_c", None),
    ("noisymix-table12", "noisymix-table1", "imagenet_p", "imagenet_p/excl_noise"),
)


def table_info(table: str) -> TableInfo:
    """A table by id.

    Raises:
        ValueError: if there is no such table.
    """
    if table not in TABLES:
        raise ValueError(f"table: expected one of {', '.join(TABLES)}; got {table!r}.")
    return TABLES[table]
