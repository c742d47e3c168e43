"""What a recipe is: frozen settings of a training and its evaluation, with a hash, and what is our own choice in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass

from nfm_theory import Law

#: Sizes of a recipe, from seconds to the tables of the papers.
SIZES = ("toy", "digits", "small", "paper")
#: Options by name, as pairs, so that recipes stay hashable.
Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Scheme:
    """A training scheme: what one step does with a batch.

    Attributes:
        name: id, the same in the published tables, recipes and ledger.
        alpha: Beta(α, α) of λ; 0 for no mixing.
        layers: `"input"`, or `"eligible"` for one of the network's eligible layers, drawn uniformly for each batch.
        add_noise: σ_add.
        mult_noise: σ_mult.
        noise: `"released"` (levels rescaled by Beta(2, 5) in each call) or `"normal"` (as in the theory).
        sparsity: share of the noise set to zero, released code of NoisyMix.
        view_noise: factors of σ_add for the clean and the augmented views.
        jsd: γ, weight of the Jensen-Shannon divergence between one clean and two augmented views; 0 for one view.
        label_smoothing: s.
        patch: `""`, `"cutmix"` or `"puzzlemix"`.
        probability: share of the batches on which `patch` acts.
        radius: l∞ radius of free adversarial training, pixels in [0, 1]; 0 for none.
        replays: steps on each batch in free adversarial training; the number of epochs is divided by it.
        terms: names of the regularizers that are added to the plain loss (Taylor schemes); they stand for the exact
            step with the same `alpha`, `layers` and noise.
        eps: scale of these regularizers, or of mixing and noise in an exact step with unmixed labels.
        form: `"mixed"` labels in an exact step, as in the papers, or `"unmixed"` ones, as in the theory.
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

    @property
    def views(self) -> int:
        """Versions of each image in a batch."""
        return 3 if self.jsd else 1

    @property
    def law(self) -> Law:
        """The law of mixing and noise."""
        levels = {"alpha": self.alpha, "add_noise": self.add_noise, "mult_noise": self.mult_noise}
        return Law.released(sparsity=self.sparsity, **levels) if self.noise == "released" else Law(**levels)


@dataclass(frozen=True)
class Training:
    """Everything that decides the weights but the seed.

    Attributes:
        data: name of the data set.
        model: name of the network.
        scheme: what a step does.
        epochs: passes over the data.
        batch_size: images in a step, over all processes.
        learning_rate: at the start.
        model_options: of the network.
        data_options: of the data set.
        samples: the first so many training images; `None` for all.
        augmentation: `"none"`, `"crop_flip"`, `"flip_crop"` or `"resized_crop"`.
        views: how the views of an image are made: `""` (copies), `"augmix"`, `"autoaugment"`.
        image_size: side to which images are brought, in training by `"resized_crop"`, in tests by a central crop; 0
            leaves them as they are.
        pretrained: hash of the training whose weights it starts from, all but the classifier's; `""` for none.
        optimiser: `"sgd"` or `"adam"`.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: of all parameters.
        schedule: `"constant"`, `"steps"` (a tenth after each milestone) or `"cosine"` (each step, to `final_rate`).
        milestones: epochs after which the rate falls.
        final_rate: end of the cosine.
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
        """Settings for JSON."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def hash(self) -> str:
        """16 hex digits of the settings: two rows of different tables with one hash are one training.

        Settings at their defaults do not count, so that a new one leaves the hashes of finished results alone; nor
        does the name of the scheme, which does nothing.
        """
        settings = _changed(self)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _changed(record) -> dict:
    """Fields that are not at their defaults."""
    changed = {}
    for part in fields(record):
        value = getattr(record, part.name)
        if is_dataclass(value):
            changed[part.name] = _changed(value)
        elif value != part.default and (part.name != "name"):
            changed[part.name] = value
    return changed


@dataclass(frozen=True)
class Recipe:
    """One row of a table: a training, and what is measured on it.

    Attributes:
        name: `table/row`.
        size: `"toy"`, `"digits"`, `"small"` or `"paper"`.
        training: what decides the weights.
        suites: names of the measurements, see `experiments.evaluate`.
        seeds: seeds that the table is made of.
        choices: settings that no source states or where sources differ, and why they are as they are.
        note: what keeps the row from being run, if anything.
    """

    name: str
    size: str
    training: Training
    suites: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    choices: tuple[tuple[str, str], ...] = field(default=())
    note: str = ""

    def __post_init__(self):
        """Refuse an unknown size."""
        if self.size not in SIZES:
            raise ValueError(f"size: expected one of {SIZES}, got {self.size!r}.")

    @property
    def hash(self) -> str:
        """That of the training."""
        return self.training.hash
