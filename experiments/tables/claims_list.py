"""What the two papers claim with their tables, each claim in our words.

`kind="text"` marks what the text of a paper says about a table. The other claims are what the table is there to show.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from .claims import Claim, Comparison, better, better_on_average, no_worse
from .metrics_map import BLURS, CORRUPTIONS, DIGITAL, NOISES, PERTURBATIONS, WEATHER
from .published import Published, load_published

_NFM_DATA = {1: "CIFAR-10", 2: "CIFAR-100", 3: "ImageNet"}
#: By how many points a clean accuracy may fall and still count as kept.
KEPT = 0.1
#: Id and words of a claim, and what must hold.
Stated = tuple[str, str, tuple[Comparison, ...]]


def _claims(table: str, source: str, stated: Iterable[Stated], **options) -> list[Claim]:
    return [Claim(name, words, source, table, holds, **options) for name, words, holds in stated]


def _columns(published: Published, table: str, prefix: str = "") -> list[str]:
    return [column.id for column in published.columns(table) if column.id.startswith(prefix)]


def _nfm(published: Published, n: int) -> list[Claim]:
    """The claims that are made with each of NFM's tables."""
    table, data = f"nfm-table{n}", _NFM_DATA[n]
    rows, clean, base = list(published.rows(table)), ["clean"], ["baseline"]
    white, pepper = _columns(published, table, "white"), _columns(published, table, "salt")
    # Of the two rows on ImageNet the paper prints one bold for white noise, the other for salt and pepper
    nfm, peppered = ("nfm/alpha=0.2", "nfm/alpha=1.0") if n == 3 else ("nfm", "nfm")
    stated: list[Stated] = [
        ("nfm-white", "NFM is the most robust to white noise", better(nfm, rows, white)),
        ("nfm-pepper", "NFM is the most robust to salt and pepper", better(peppered, rows, pepper)),
        ("nfm-clean", "NFM costs no clean accuracy", no_worse(nfm, base, clean)),
        ("nfm-manifold", "NFM is more robust to white noise than Manifold Mixup, which it extends by noise",
         better(nfm, ["manifold_mixup"], white)),
        ("manifold-clean", "Manifold Mixup improves clean accuracy", better("manifold_mixup", base, clean)),
    ]  # fmt: skip
    if "baseline_noise" in rows:
        noise = "baseline_noise"
        stated += [
            ("noise-clean", "Noise injection alone costs clean accuracy", better("baseline", [noise], clean)),
            ("noise-white", "Noise injection alone helps against white noise", better(noise, base, white)),
            ("mixup-clean", "Mixup improves clean accuracy", better("mixup", base, clean)),
            ("cutmix-white", "CutMix is less robust to white noise than the baseline",
             better("baseline", ["cutmix"], white)),
        ]  # fmt: skip
    if n > 1:
        stated.append(("nfm-clean-best", "NFM has the best clean accuracy", better(nfm, rows, clean)))
    named = [(f"{name}-{n}", f"{words} ({data})", holds) for name, words, holds in stated]
    return _claims(table, f"NFM, Table {n}", named)


def _nfm_single(published: Published) -> list[Claim]:
    """The claims of NFM that are made once."""
    one, two, toy = "nfm-table1", "nfm-table2", "nfm-figure-toy"
    rows, clean, white = list(published.rows(one)), ["clean"], _columns(published, two, "white")
    short, long = "puzzlemix/epochs=200", "puzzlemix/epochs=1200"
    return [
        *_claims(one, "NFM, Table 1", [
            ("patches-clean-1", "CutMix and PuzzleMix share the best clean accuracy (CIFAR-10)",
             no_worse("cutmix", rows, clean) + no_worse("puzzlemix", rows, clean)),
            ("smoothing-1", "Label smoothing improves clean and noisy accuracy (CIFAR-10)",
             better("label_smoothing", ["baseline"], _columns(published, one))),
        ]),
        *_claims(two, "NFM, Table 2", [
            ("noisy-mixup-2", "NFM is better than Noisy Mixup, which mixes inputs only (CIFAR-100)",
             better("nfm", ["noisy_mixup"], _columns(published, two))),
            ("puzzlemix-long-2",
             "Training PuzzleMix for longer improves clean accuracy but costs robustness to white noise (CIFAR-100)",
             better(long, [short], clean) + better(short, [long], white)),
        ]),
        *_claims(toy, "NFM, Figures 2-3", [
            ("nfm-toy", "NFM has the best test accuracy on the toy problem",
             better("nfm", published.rows(toy), ["accuracy"])),
        ]),
        *_claims(two, "NFM, figures only", [
            ("nfm-star", "NFM with stronger noise is more robust still, at some cost in clean accuracy", ()),
        ]),
    ]  # fmt: skip


def _imagenet(published: Published) -> list[Claim]:
    table = "noisymix-table1"
    rows, base = list(published.rows(table)), ["baseline"]
    return _claims(table, "NoisyMix, Table 1", [
        *(
            (f"noisymix-imagenet-{kind}", f"NoisyMix is the most robust on ImageNet-{kind.upper()}",
             better("noisymix", rows, [f"imagenet_{kind}"]))
            for kind in "crp"
        ),
        ("noisymix-without-noise", "NoisyMix stays the most robust on ImageNet-C and -P when noise is left out",
         better("noisymix", rows, ["imagenet_c/excl_noise", "imagenet_p/excl_noise"])),
        ("noisymix-imagenet", "NoisyMix improves clean accuracy", better("noisymix", base, ["imagenet"])),
        ("adversarial", "Adversarial training costs accuracy, clean and on -C, but lowers the flip rate",
         better("baseline", ["adversarial"], ["imagenet", "imagenet_c"]) + better("adversarial", base, ["imagenet_p"])),
        ("cutmix-r", "CutMix is less robust on ImageNet-R than the baseline",
         better("baseline", ["cutmix"], ["imagenet_r"])),
    ])  # fmt: skip


def _cifar(published: Published, n: int) -> list[Claim]:
    table = f"noisymix-table{n}"
    rows = [row for row in published.rows(table) if row != "augmax"]
    claims = []
    for data, name in (("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")):
        best = better("noisymix", rows, [f"{data}_c"])
        if "augmax" in published.rows(table):
            best += better("noisymix", ["augmax"], [f"{data}_c"], quoted=True)
        claims += _claims(table, f"NoisyMix, Table {n}", [
            (f"noisymix-{data}-c-{n}", f"NoisyMix has the best accuracy on {name}-C", best),
            (f"noisymix-{data}-clean-{n}", f"NoisyMix costs no clean accuracy on {name}",
             no_worse("noisymix", ["baseline"], [data], margin=KEPT)),
            (f"nfm-{data}-c-{n}", f"NFM is more robust on {name}-C than Mixup and Manifold Mixup",
             better("nfm", ["mixup", "manifold_mixup"], [f"{data}_c"])),
        ])  # fmt: skip
        words = f"PuzzleMix has the best accuracy on the clean test set of {name}"
        spoken: list[Stated] = [(f"puzzlemix-{data}-{n}", words, better("puzzlemix", rows, [data]))]
        claims += _claims(table, f"NoisyMix, text on Table {n}", spoken, kind="text")
    return claims


def _ablation(published: Published) -> list[Claim]:
    table, clean, robust = "noisymix-table4", ["cifar100"], ["cifar100_c"]
    rows, base, full = list(published.rows(table)), ["baseline"], "noisymix"
    single = ("noise", "manifold_mixup")
    stated: list[Stated] = [
        ("full", "All four parts together are the most robust", better(full, rows, robust)),
        ("noise", "Noise injection alone improves robustness", better("noise", base, robust)),
        ("mixing", "Feature mixing alone improves robustness", better("manifold_mixup", base, robust)),
        ("mixing-clean", "Feature mixing alone improves clean accuracy", better("manifold_mixup", base, clean)),
        ("nfm", "Mixing with noise is more robust than either alone", better("nfm", single, robust)),
        ("augmentation", "Augmentation is the single part that gains most", better("augmix_no_jsd", single, robust)),
        ("jsd", "The JSD loss adds robustness to augmentation", better("augmix", ["augmix_no_jsd"], robust)),
        ("jsd-full", "Without the JSD loss NoisyMix is less robust", better(full, ["noisymix_no_jsd"], robust)),
        ("noise-full", "Without noise NoisyMix is less robust", better(full, ["augmix_manifold_mixup"], robust)),
        ("mixing-full", "Without feature mixing NoisyMix is less robust", better(full, ["augmix_noise"], robust)),
        ("mixing-jsd", "Feature mixing adds robustness to AugMix", better("augmix_manifold_mixup", ["augmix"], robust)),
        ("clean", "All parts but noise give the best clean accuracy", better("augmix_manifold_mixup", rows, clean)),
    ]
    return _claims(table, "NoisyMix, Table 4", [(f"ablation-{name}", *rest) for name, *rest in stated])


def _details(published: Published) -> list[Claim]:
    rows = {table: list(published.rows(table)) for table in published.tables()}
    five, six, eleven, twelve = (f"noisymix-table{number}" for number in (5, 6, 11, 12))
    rms, aurra = ["rms_calibration_error"], ["aurra"]
    claims = _claims(five, "NoisyMix, Table 5", [
        ("transfer-c", "Fine-tuned on CIFAR, NoisyMix is the most robust on both corrupted sets",
         better("noisymix", rows[five], ["cifar10_c_first", "cifar100_c_first"])),
        ("transfer-clean", "Fine-tuned on CIFAR, NoisyMix improves clean accuracy",
         better("noisymix", ["baseline"], ["cifar10", "cifar100"])),
    ])  # fmt: skip
    claims += _claims(six, "NoisyMix, text on Table 6", [
        ("imagenet-c-9", "NoisyMix dominates on 9 of the 15 corruptions", better("noisymix", rows[six], CORRUPTIONS)),
    ], count=9, kind="text")  # fmt: skip
    claims += _claims(twelve, "NoisyMix, text on Table 12", [
        ("imagenet-p-6", "NoisyMix dominates on 6 of the 10 perturbations",
         better("noisymix", rows[twelve], PERTURBATIONS)),
    ], count=6, kind="text")  # fmt: skip
    for name, columns in {"noise": NOISES, "weather": WEATHER, "digital": DIGITAL, "blur": BLURS}.items():
        best, label = ("augmix", "AugMix") if name == "blur" else ("noisymix", "NoisyMix")
        words = f"Over the {name} corruptions of ImageNet-C {label} is the most robust on average"
        holds = better_on_average(best, rows[six], columns)
        claims += _claims(six, "NoisyMix, Table 6 by category", [(f"imagenet-c-{name}", words, holds)])
    claims += _claims(eleven, "NoisyMix, Table 11", [
        ("calibration-rms", "NoisyMix has the lowest RMS calibration error", better("noisymix", rows[eleven], rms)),
        ("calibration-aurra", "NoisyMix has the highest AURRA", better("noisymix", rows[eleven], aurra)),
        ("manifold-rms", "Manifold Mixup is better calibrated", better("manifold_mixup", ["baseline"], rms)),
    ])  # fmt: skip
    for n, data in ((12, "ImageNet-P"), (13, "CIFAR-10-P, ResNet-18"), (14, "CIFAR-10-P, Wide-ResNet-28")):
        table, words = f"noisymix-table{n}", f"NoisyMix has the lowest mean flip rate ({data})"
        holds = better("noisymix", rows[table], ["mfr"])
        claims += _claims(table, f"NoisyMix, Table {n}", [(f"flips-{n}", words, holds)])
    for n in (7, 8, 9, 10):
        table, words = f"noisymix-table{n}", "NoisyMix is the most robust on each of the three noise corruptions"
        holds = better("noisymix", rows[table], NOISES)
        claims += _claims(table, f"NoisyMix, Table {n}", [(f"noise-columns-{n}", words, holds)])
    figure, words = "noisymix-figure4", "NoisyMix has the best test accuracy on the toy problem"
    toy = better("noisymix", rows[figure], ["accuracy"])
    return claims + _claims(figure, "NoisyMix, Figure 4", [("noisymix-toy", words, toy)])


def claims_about(published: Published) -> tuple[Claim, ...]:
    """Every claim, stated for the rows and columns of these tables."""
    nfm = [claim for n in _NFM_DATA for claim in _nfm(published, n)] + _nfm_single(published)
    cifar = [claim for n in (2, 3) for claim in _cifar(published, n)]
    return (*nfm, *_imagenet(published), *cifar, *_ablation(published), *_details(published))


@cache
def all_claims() -> tuple[Claim, ...]:
    """Every claim, stated for the tables as printed."""
    return claims_about(load_published())
