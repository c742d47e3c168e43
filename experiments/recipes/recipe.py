"""Recipes: the frozen settings of a training and its evaluation, their hash, and the choices that are our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property

from nfm_theory import Law

#: Sizes of a recipe, from trainings of seconds to the tables of the papers.
SIZES = ("toy", "digits", "compact", "paper")
#: Losses of a scheme with patches.
LOSSES = ("cross_entropy", "binary")
#: Pairs of an option's name and value. Unlike a dict they are hashable.
Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Scheme:
    """A training scheme: what one step does with a batch.

    Attributes:
        name: name in the published tables, recipes and ledger.
        alpha: parameter α of the law Beta(α, α) of λ; 0 for no mixing.
        layers: `"input"`, or `"eligible"` for one of the network's eligible layers, drawn uniformly for each batch.
        add_noise: level σ_add of the additive noise.
        mult_noise: level σ_mult of the multiplicative noise.
        noise: `"released"` (each call rescales the levels by a Beta(2, 5) draw) or `"normal"` (as in the theory).
        sparsity: share of the noise that is set to zero, as in the released code of NoisyMix.
        view_noise: factors of σ_add for the clean and the augmented views.
        jsd: weight γ of the Jensen-Shannon divergence between one clean and two augmented views; 0 for a single view.
        label_smoothing: amount of label smoothing.
        patch: `""`, `"cutmix"` or `"puzzlemix"`.
        probability: share of the batches on which `patch` acts.
        loss: `"cross_entropy"`, or `"binary"` for the binary cross entropy of the softmax (only with `patch`).
        radius: l∞ radius of free adversarial training, for pixels in [0, 1]; 0 for none.
        clamp: True to cut the perturbed pixels to [0, 1].
        lam: a fixed λ instead of the Beta law; 1/2 is midpoint Mixup, `None` the Beta law.
        matching: k of k-mixup, the number of samples whose partners are matched at once; 1 is Mixup.
        clip_norm: norm to which private training clips the gradient of each sample; 0 for training without privacy.
        noise_multiplier: standard deviation of the noise of private training, in units of `clip_norm`.
        copies: number of shifted copies of each image in private training; 0 takes the image as it is.
        mixtures: number of mixtures of these copies besides them, in private training (DP-Mix self).
        levels: (layer, α, σ_add, σ_mult) of each layer that has others than those above; see `laws`.
        replays: steps on each batch in free adversarial training; the number of epochs is divided by it.
        terms: names of the regularizers that are added to the plain loss (Taylor schemes). They replace the exact step
            with the same `alpha`, `layers` and noise.
        eps: scale of these regularizers, or of mixing and noise in an exact step with unmixed labels.
        form: `"mixed"` labels in an exact step, as in the papers, or `"unmixed"` labels, as in the theory.
    """

    name: str
    alpha: float = 0.0
    layers: str = "input"
    add_noise: float = 0.0
    mult_noise: float = 0.0
    noise: str = "released"
    sparsity: float = 0.0
    view_noise: tuple[float, ...] = ()
    jsd: float = 0.0
    label_smoothing: float = 0.0
    patch: str = ""
    probability: float = 1.0
    radius: float = 0.0
    replays: int = 1
    terms: tuple[str, ...] = ()
    eps: float = 1.0
    form: str = "mixed"
    loss: str = "cross_entropy"
    clamp: bool = False
    lam: float | None = None
    matching: int = 1
    clip_norm: float = 0.0
    noise_multiplier: float = 0.0
    copies: int = 0
    mixtures: int = 0
    levels: tuple[tuple[str, float, float, float], ...] = ()

    @property
    def views(self) -> int:
        """Number of views of each image in a batch."""
        return 3 if self.jsd else 1

    @property
    def law(self) -> Law:
        """The law of mixing and noise."""
        if self.lam is not None:
            return Law(lam=self.lam, add_noise=self.add_noise, mult_noise=self.mult_noise, noise=self.noise)
        levels = {"alpha": self.alpha, "add_noise": self.add_noise, "mult_noise": self.mult_noise}
        return Law.released(sparsity=self.sparsity, **levels) if self.noise == "released" else Law(**levels)

    def laws(self, layers: Sequence[str]) -> dict[str, Law]:
        """The law of each layer: the one of `levels` if it has the layer, else `law`.

        Args:
            layers: names of the layers, `""` for the input.

        Raises:
            ValueError: if `levels` has a layer that is none of these.
        """
        own = {
            layer: replace(self, levels=(), alpha=alpha, add_noise=add, mult_noise=mult).law
            for layer, alpha, add, mult in self.levels
        }
        if unknown := own.keys() - set(layers):
            raise ValueError(f"levels: expected layers among {list(layers)}, got {min(unknown)!r}.")
        return {layer: own.get(layer, self.law) for layer in layers}


@dataclass(frozen=True)
class Training:
    """All settings that determine the weights, except the seed.

    Attributes:
        data: name of the data set.
        model: name of the network.
        scheme: what a step does with a batch.
        epochs: passes over the data.
        batch_size: images in a step, over all processes.
        learning_rate: initial learning rate.
        model_options: options of the network.
        data_options: options of the data set.
        samples: number of training images, counted from the first; `None` for all.
        augmentation: `"none"`, `"crop_flip"`, `"flip_crop"` or `"resized_crop"`.
        views: how the views of an image are made: `""` (copies), `"augmix"`, `"autoaugment"`.
        image_size: side in pixels to which images are resized, in training by `"resized_crop"`, in tests by a central
            crop; 0 keeps their size.
        pretrained: hash of the training whose weights it starts from, without the classifier; `""` for none.
        optimiser: `"sgd"` or `"adam"`.
        momentum: momentum of SGD.
        nesterov: True for Nesterov momentum.
        weight_decay: weight decay of all parameters.
        schedule: `"constant"`, `"steps"` (a tenth after each milestone) or `"cosine"` (to `final_rate`, every step).
        milestones: epochs after which the learning rate falls.
        final_rate: learning rate at the end of the cosine.
        precision: `"float32"`, `"float64"` or `"bfloat16"` (autocast).
    """

    data: str
    model: str
    scheme: Scheme
    epochs: int
    batch_size: int
    learning_rate: float
    model_options: Options = ()
    data_options: Options = ()
    samples: int | None = None
    augmentation: str = "none"
    views: str = ""
    image_size: int = 0
    pretrained: str = ""
    optimiser: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    final_rate: float = 0.0
    precision: str = "float32"

    def to_dict(self) -> dict:
        """The settings as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @cached_property
    def hash(self) -> str:
        """The settings as 16 hexadecimal digits. Rows of different tables with the same hash are the same training.

        Settings with default values do not enter the hash, so a new setting does not change the hashes of finished
        results. The name of the scheme does not enter either, since it has no effect.
        """
        settings = _changed(self)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _changed(record) -> dict:
    """Fields that differ from their defaults."""
    changed = {}
    for part in fields(record):
        value = getattr(record, part.name)
        if is_dataclass(value):
            changed[part.name] = _changed(value)
        elif value != part.default and (part.name != "name"):
            changed[part.name] = value
    return changed


def with_defaults(settings: dict) -> dict:
    """Settings as a ledger has them, with the default of each setting that was added since.

    Args:
        settings: those of `Training.to_dict`, now or in the past.
    """
    scheme = settings.get("scheme")
    found = _defaults(Training) | settings
    return found | ({"scheme": _defaults(Scheme) | scheme} if isinstance(scheme, dict) else {})


@cache
def _defaults(record: type) -> dict:
    """The default values of a dataclass as JSON values."""
    return json.loads(json.dumps({part.name: part.default for part in fields(record) if part.default is not MISSING}))


@dataclass(frozen=True)
class Evaluation:
    """How a trained network is measured. The settings that act on a suite are written into its line of the ledger.

    Attributes:
        white_noise: levels σ of white noise, in normalized units.
        salt_pepper: levels γ of salt and pepper noise.
        radii: l∞ radii of the attacks, for pixels in [0, 1].
        images: number of test images under attacks and corruptions, counted from the first; `None` for all.
        sequences: number of sequences for flips, counted from the first; `None` for all.
        corruptions: names of further corruptions besides the fifteen of the benchmark.
        batch_size: images in a forward pass.
        precision: `"float32"` or `"bfloat16"` (autocast).
    """

    white_noise: tuple[float, ...] = (0.1, 0.2, 0.3)
    salt_pepper: tuple[float, ...] = (0.02, 0.04, 0.1)
    radii: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    images: int | None = None
    sequences: int | None = None
    corruptions: tuple[str, ...] = ()
    batch_size: int = 64
    precision: str = "float32"


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a training and its measurements.

    Attributes:
        name: `table/row`.
        size: a name of `SIZES`.
        training: settings that determine the weights.
        suites: names of the measurements, see `experiments.evaluation`.
        seeds: random seeds of the networks in the table.
        choices: settings that no source states or on which sources differ, with a reason.
        note: reason why the row cannot be run, or `""`.
        evaluation: levels, number of images and precision of the measurements.
    """

    name: str
    size: str
    training: Training
    suites: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    choices: tuple[tuple[str, str], ...] = field(default=())
    note: str = ""
    evaluation: Evaluation = Evaluation()

    def __post_init__(self):
        """Refuse an unknown size."""
        if self.size not in SIZES:
            raise ValueError(f"size: expected one of {SIZES}, got {self.size!r}.")

    @property
    def hash(self) -> str:
        """Hash of the training."""
        return self.training.hash
