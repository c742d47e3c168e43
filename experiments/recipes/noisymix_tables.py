"""Rows of the NoisyMix paper: Tables 1 to 14.

Several tables show the same networks: Tables 2, 7, 8 and 13 those of CIFAR with PreActResNet-18, Tables 3, 9, 10 and
14 those with WRN-28, Tables 1, 6, 11 and 12 those of ImageNet. Such recipes share one hash and one training.
"""

from __future__ import annotations

from dataclasses import replace

from .recipe import Recipe, Scheme, Training
from .schemes import AUTOAUGMENT, CHOICES, PROCESSES, SCHEMES, VIEWS

_CIFAR = Training(
    data="cifar10", model="preactresnet18", scheme=Scheme("baseline"), epochs=200, batch_size=128, learning_rate=0.1,
    model_options=(("shortcut", "released"),), data_options=(("normalisation", "half"),), augmentation="flip_crop",
    nesterov=True, weight_decay=5e-4, schedule="cosine", final_rate=1e-6,
)  # fmt: skip
_WRN = replace(_CIFAR, model="wideresnet28", model_options=(("widen", 4),))
_IMAGENET = replace(
    _CIFAR, data="imagenet", model="resnet50", batch_size=256, model_options=(), data_options=(),
    augmentation="resized_crop", weight_decay=1e-4,
)  # fmt: skip
_FAMILY = ("baseline", "mixup", "manifold_mixup", "nfm", "cutmix", "puzzlemix", "augmix", "noisymix")
_TRAINED_ELSEWHERE = {
    "baseline": "the trained network that comes with the library",
    "adversarial": "a network by Salman et al.",
    "stylized_imagenet": "a network that Geirhos et al. trained on stylized and natural ImageNet",
    "autoaugment": "a network by the authors of Fast AutoAugment",
    "mixup": "what seems to be a network by the CutMix authors",
    "manifold_mixup": "NFM's own network with α = 0.2, to judge by the equal numbers",
    "cutmix": "a network by the CutMix authors, trained for 300 epochs",
    "puzzlemix": "a network by the PuzzleMix authors, trained for 300 epochs",
    "augmix": "a network by the AugMix authors, trained for 180 epochs",
}
_WIDTH = (("model_options.widen", "4, as in every version of the code; the text says 2"),)
_VIEW_NOISE = ("view_noise", "(1, 2, 3), as in the released code; the text has one level for all views")
_JSD = ("jsd", "12, as in the released code; the text gives only a symbol")
_RELEASED_MIX = (_VIEW_NOISE, ("sparsity", "0.65, as in the released commands; the text does not mention it"), _JSD)
#: Settings of the schemes on ImageNet that differ from those on CIFAR.
_IMAGENET_SETTINGS = {
    "noisymix": {"add_noise": 0.4, "mult_noise": 0.4},
    "manifold_mixup": {"alpha": 0.2},
    "cutmix": {"probability": 1.0},
    "puzzlemix": {"loss": "cross_entropy"},
    "adversarial": {"radius": 4 / 255, "replays": 4},
}
_IMAGENET_CHOICES = {
    "adversarial": (
        ("radius", "4/255: the published accuracy, 63.9, belongs to a network trained with this radius"),
        ("replays", "4, as the authors of the method use on ImageNet; the paper's network was trained with PGD"),
    ),
    "autoaugment": (
        (
            "views",
            f"the ImageNet policy of AutoAugment; the paper's network was trained with another policy; {AUTOAUGMENT}",
        ),
    ),
    "manifold_mixup": (("alpha", "0.2, as in NFM Table 3, since the row seems to show that network"),),
    "cutmix": (
        ("alpha", "1.0: nowhere stated for the baselines of this paper"),
        ("probability", "1, as in CutMix's own code for ImageNet: nowhere stated for these tables"),
    ),
    "puzzlemix": (
        ("alpha", "1.0, as in PuzzleMix's own code: nowhere stated for the baselines of this paper"),
        ("loss", "cross_entropy, and whole cells are moved, as in PuzzleMix's own code for ImageNet"),
        (
            "transport",
            "patches choose until every place has one; the authors' code stops after as many rounds as a side "
            "has cells",
        ),
        ("augmentation", "without the color jitter and the lighting of PuzzleMix's own code"),
    ),
    "noisymix": (
        _VIEW_NOISE,
        ("sparsity", "0.65, as in the released commands for CIFAR: nowhere stated for ImageNet"),
        _JSD,
        ("epochs", "200, the default of the code: nowhere stated"),
    ),
}


def _choices(name: str) -> tuple[tuple[str, str], ...]:
    alphas = ("mixup", "manifold_mixup", "cutmix", "puzzlemix", "nfm")
    alpha = (("alpha", "1.0: nowhere stated for the baselines of this paper"),) if name in alphas else ()
    if name == "puzzlemix":
        own = "as for the other rows; PuzzleMix's own code has batches of 100, a rate in steps, and a padding of 2"
        alpha += (("batch_size, schedule, augmentation", own),)
    return (*alpha, *(_RELEASED_MIX if name == "noisymix" else ()), *CHOICES.get(name, ()))


def _training(base: Training, name: str, data: str) -> Training:
    return replace(base, data=data, scheme=SCHEMES[name], views=VIEWS.get(name, ""))


def _cifar_tables():
    plans = {
        "noisymix-table2": (_CIFAR, ("cifar10", "cifar100"), ("clean", "corrupted"), ()),
        "noisymix-table3": (_WRN, ("cifar10", "cifar100"), ("clean", "corrupted"), _WIDTH),
        "noisymix-table7": (_CIFAR, ("cifar10",), ("corrupted",), ()),
        "noisymix-table8": (_CIFAR, ("cifar100",), ("corrupted",), ()),
        "noisymix-table9": (_WRN, ("cifar10",), ("corrupted",), _WIDTH),
        "noisymix-table10": (_WRN, ("cifar100",), ("corrupted",), _WIDTH),
        "noisymix-table13": (_CIFAR, ("cifar10",), ("flips",), ()),
        "noisymix-table14": (_WRN, ("cifar10",), ("flips",), _WIDTH),
    }
    for table, (base, sets, suites, choices) in plans.items():
        for data in sets:
            for name in _FAMILY:
                yield Recipe(
                    f"{table}/{data}-{name}" if len(sets) > 1 else f"{table}/{name}", "paper",
                    _training(base, name, data), suites, choices=(*choices, *_choices(name)),
                )  # fmt: skip


def _ablation():
    """Table 4: augmentation, feature mixing, noise and JSD, each on (1) or off (0)."""
    rows = ("0000", "0010", "0100", "0110", "1000", "1001", "1011", "1101", "1110", "1111")
    full = SCHEMES["noisymix"]
    for row in rows:
        augmented, mixed, noisy, divergence = (switch == "1" for switch in row)
        scheme = Scheme(
            f"ablation_{row}", alpha=full.alpha if mixed else 0.0, layers="eligible" if mixed or noisy else "input",
            add_noise=full.add_noise if noisy else 0.0, mult_noise=full.mult_noise if noisy else 0.0,
            sparsity=full.sparsity if noisy else 0.0, jsd=full.jsd if divergence else 0.0,
            view_noise=full.view_noise if noisy and divergence else (),
        )  # fmt: skip
        acts = {"view_noise": bool(scheme.view_noise), "sparsity": noisy, "jsd": divergence}
        choices = (*_WIDTH, *(choice for choice in _RELEASED_MIX if acts[choice[0]]))
        if noisy and not mixed:
            choices = (*choices, ("layers", "noise at a random eligible layer: nowhere stated"))
        training = replace(_WRN, data="cifar100", scheme=scheme, views="augmix" if augmented else "")
        yield Recipe(f"noisymix-table4/{row}", "paper", training, ("clean", "corrupted"), choices=choices)


def _imagenet_training(name: str) -> Training:
    """The training of NoisyMix's authors for every scheme, including AugMix, whose published network had another."""
    scheme = replace(SCHEMES.get(name, Scheme(name)), **_IMAGENET_SETTINGS.get(name, {}))
    # This row cannot be run. The option makes its hash different from that of the baseline.
    options = (("stylized", True),) if name == "stylized_imagenet" else ()
    return replace(_IMAGENET, scheme=scheme, views=VIEWS.get(name, ""), data_options=options)


def _imagenet_tables():
    names = (
        *("baseline", "adversarial", "stylized_imagenet", "autoaugment", "mixup", "manifold_mixup", "cutmix"),
        *("puzzlemix", "augmix", "noisymix"),
    )
    plans = {
        "noisymix-table1": ("clean", "corrupted", "renditions", "flips"),
        "noisymix-table6": ("corrupted",),
        "noisymix-table11": ("renditions", "calibration"),
        "noisymix-table12": ("flips",),
    }
    for table, suites in plans.items():
        for name in names:
            choices = (*_IMAGENET_CHOICES.get(name, _choices(name)), PROCESSES)
            if name in _TRAINED_ELSEWHERE:
                choices = (*choices, ("training", f"trained here; the paper's row shows {_TRAINED_ELSEWHERE[name]}"))
            note = "needs stylized images, which are not part of ImageNet" if name == "stylized_imagenet" else ""
            yield Recipe(
                f"{table}/{name}", "paper", _imagenet_training(name), suites, seeds=(1,), choices=choices, note=note
            )


def _transfer():
    """Table 5: the networks of Table 1, fine-tuned on CIFAR at 224 pixels."""
    for data in ("cifar10", "cifar100"):
        for name in ("baseline", "autoaugment", "mixup", "puzzlemix", "augmix", "noisymix"):
            normalisation = {"cifar10": "nfm_preprint", "cifar100": "transfer_cifar100"}[data]
            training = replace(
                _IMAGENET, data=data, scheme=Scheme(f"transfer_{name}"), epochs=150, batch_size=64,
                learning_rate=0.001, weight_decay=5e-4, nesterov=False, schedule="steps", milestones=(49, 99),
                data_options=(("normalisation", normalisation),), image_size=224,
                pretrained=_imagenet_training(name).hash,
            )  # fmt: skip
            row = f"noisymix-table5/{data}-{name}"
            yield Recipe(row, "paper", training, ("clean", "corrupted"), seeds=(1,), choices=(
                ("epochs", "150, the last epoch: it is nowhere stated which epoch was reported"),
                ("freezing", "none: the printed numbers agree best with fine-tuning of all layers"),
            ))  # fmt: skip


def recipes() -> list[Recipe]:
    """The recipes of all rows."""
    return [*_cifar_tables(), *_ablation(), *_imagenet_tables(), *_transfer()]
