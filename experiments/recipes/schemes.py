"""The schemes of the papers with their levels, and two schemes of our own.

Levels are those of the released commands (protocol, sections 1 and 2).
"""

from __future__ import annotations

from .recipe import Scheme

#: All regularizers of the exact step's expansion.
TAYLOR_TERMS = ("R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")
_MIX = {"alpha": 1.0}
_FEATURES = {**_MIX, "layers": "eligible"}
_NFM = {**_FEATURES, "add_noise": 0.4, "mult_noise": 0.2}
#: NoisyMix as released: sparse noise whose level grows with the view, and γ = 12, for which the text gives no value.
_NOISYMIX = {
    **_FEATURES, "add_noise": 0.5, "mult_noise": 0.5, "sparsity": 0.65, "view_noise": (1.0, 2.0, 3.0), "jsd": 12.0,
}  # fmt: skip

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("baseline"),
        Scheme("baseline_noise", add_noise=0.2),
        Scheme("label_smoothing", label_smoothing=0.1),
        Scheme("mixup", **_MIX),
        Scheme("cutmix", alpha=1.0, patch="cutmix", probability=0.5),
        Scheme("puzzlemix", alpha=1.0, patch="puzzlemix", loss="binary"),
        Scheme("manifold_mixup", **_FEATURES),
        Scheme("noisy_mixup", **_MIX, add_noise=0.2, mult_noise=0.1),
        Scheme("nfm", **_NFM),
        Scheme("augmix_no_jsd"),
        Scheme("augmix", jsd=12.0),
        Scheme("noisymix", **_NOISYMIX),
        Scheme("adversarial", radius=8 / 255, replays=8, clamp=True),
        Scheme("autoaugment"),
        Scheme("taylor_nfm", **_NFM, terms=TAYLOR_TERMS),
        Scheme("taylor_noisymix", **_NOISYMIX, terms=TAYLOR_TERMS),
    )
}

#: How the views of a scheme are made; copies if it is not listed.
VIEWS = {
    **{"augmix": "augmix", "augmix_no_jsd": "augmix", "noisymix": "augmix", "taylor_noisymix": "augmix"},
    "autoaugment": "autoaugment",
}

#: What the ImageNet recipes do when several processes share a batch.
PROCESSES = (
    "processes",
    "with several, each draws its own layer, weight and partners for its part of a batch; the released code "
    "draws them once for the whole batch, as one process does here",
)
#: How our AutoAugment differs from the two codes of its authors.
AUTOAUGMENT = (
    "strengths are nine equal steps of the paper's ranges, so solarize has the threshold 256 (1 - index / 9); the code "
    "of the authors has 256 - int(25.6 index) for CIFAR and int(25.6 index) for ImageNet; enhancement goes in both "
    "directions from 1, and a translation is a share of the side"
)
#: Settings of a scheme that no source states.
CHOICES: dict[str, tuple[tuple[str, str], ...]] = {
    "label_smoothing": (("label_smoothing", "0.1: nowhere stated"),),
    "cutmix": (("probability", "0.5, as in CutMix's own code for CIFAR: nowhere stated for these tables"),),
    "puzzlemix": (
        ("loss", "binary, of the softmax: that of PuzzleMix's own code for CIFAR; the papers do not say"),
        (
            "transport",
            "patches choose until every place has one; the authors' code for CIFAR stops after one round and leaves "
            "places black",
        ),
    ),
    "adversarial": (
        ("radius", "8/255: neither paper has this row on CIFAR"),
        ("replays", "8, as the authors of the method use: neither paper has this row on CIFAR"),
    ),
    "autoaugment": (("views", f"the CIFAR-10 policy: neither paper has this row on CIFAR; {AUTOAUGMENT}"),),
    "taylor_nfm": (("terms", "all: no paper has this scheme"), ("eps", "1, the scale of NFM itself")),
    "taylor_noisymix": (("terms", "all: no paper has this scheme"), ("eps", "1, the scale of NoisyMix itself")),
}
