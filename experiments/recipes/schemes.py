"""The schemes of the papers with their levels, and two that no paper has.

Levels are those of the released commands (protocol, sections 1 and 2). "Our choice" marks what no source states.
"""

from __future__ import annotations

from .recipe import Scheme

#: Everything that the expansion of the exact step consists of.
TAYLOR_TERMS = ("R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")
_MIX = {"alpha": 1.0}
_FEATURES = {**_MIX, "layers": "eligible"}
_NFM = {**_FEATURES, "add_noise": 0.4, "mult_noise": 0.2}
#: NoisyMix as released: sparse noise, its level growing with the view; γ = 12 in code, a symbol in the text.
_NOISYMIX = {
    **{**_FEATURES, "add_noise": 0.5, "mult_noise": 0.5, "sparsity": 0.65},
    **{"view_noise": (1.0, 2.0, 3.0), "jsd": 12.0},
}

SMOOTHING = Scheme("label_smoothing", label_smoothing=0.1)
CUTMIX = Scheme("cutmix", alpha=1.0, patch="cutmix", probability=0.5)
PUZZLEMIX = Scheme("puzzlemix", alpha=1.0, patch="puzzlemix")
ADVERSARIAL = Scheme("adversarial", radius=8 / 255, replays=8)

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("baseline"),
        Scheme("baseline_noise", add_noise=0.2),
        SMOOTHING,
        Scheme("mixup", **_MIX),
        CUTMIX,
        PUZZLEMIX,
        Scheme("manifold_mixup", **_FEATURES),
        Scheme("noisy_mixup", **_MIX, add_noise=0.2, mult_noise=0.1),
        Scheme("nfm", **_NFM),
        Scheme("augmix_no_jsd"),
        Scheme("augmix", jsd=12.0),
        Scheme("noisymix", **_NOISYMIX),
        ADVERSARIAL,
        Scheme("autoaugment"),
        Scheme("taylor_nfm", **_NFM, terms=TAYLOR_TERMS),
        Scheme("taylor_noisymix", **_NOISYMIX, terms=TAYLOR_TERMS),
    )
}

#: How the views of a scheme are made.
VIEWS = {
    **{"augmix": "augmix", "augmix_no_jsd": "augmix", "noisymix": "augmix", "taylor_noisymix": "augmix"},
    "autoaugment": "autoaugment",
}

#: What a scheme takes that no source states.
CHOICES: dict[str, tuple[tuple[str, str], ...]] = {
    "label_smoothing": (("label_smoothing", "0.1: nowhere stated"),),
    "cutmix": (("probability", "0.5, as CutMix's own code on CIFAR: nowhere stated for these tables"),),
    "adversarial": (
        ("radius", "8/255: no paper trains one on CIFAR"),
        ("replays", "8, as the authors of the method: no paper trains one on CIFAR"),
    ),
    "autoaugment": (("views", "the CIFAR-10 policy: no paper trains one on CIFAR"),),
    "taylor_nfm": (("terms", "all: no paper has this scheme"), ("eps", "1, at which NFM trains")),
    "taylor_noisymix": (("terms", "all: no paper has this scheme"), ("eps", "1, at which NoisyMix trains")),
}
