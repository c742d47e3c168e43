"""One training step of a scheme: the loss of a batch, and what happens after the backward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nfm_theory as nt

from ..augment.cutmix import cutmix, cutmix_series
from ..augment.puzzlemix import puzzlemix, saliency
from ..recipes.recipe import Scheme


class Step:
    """Plain cross entropy, with label smoothing if the scheme has it. The other steps are built on it.

    A step draws only from `generator`, which the training loop seeds anew for each step.

    Args:
        scheme: settings of the scheme.
        model: network.
        layers: names of the network's eligible layers, `""` for the input.
        classes: K, the number of classes.
        generator: source of all randomness.

    Attributes:
        layers: names of the layers at which the scheme acts.
        laws: law of mixing and noise at each of them, by name.
        forward: function for the logits: the model, or a wrapper around it (compiled, or for several processes).
        repeats: number of optimiser steps on one batch.
    """

    repeats = 1

    def __init__(
        self, scheme: Scheme, model: nn.Module, *, layers: tuple[str, ...], classes: int, generator: torch.Generator
    ):
        self.scheme, self.model, self.classes, self.generator = scheme, model, classes, generator
        self.forward = model
        self.layers = layers if scheme.layers == "eligible" else ("",)
        self.laws = scheme.laws(self.layers)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            x: normalized images, `(views * n, C, H, W)`, the clean views first.
            y: class indices, `(n,)`.
        """
        return F.cross_entropy(self.forward(x), y, label_smoothing=self.scheme.label_smoothing)

    def after_backward(self) -> None:
        """Called between the backward pass and the optimiser's step."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state that later steps need."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of `state_dict()`."""

    def close(self) -> None:
        """Remove all hooks from the model."""


class MixingStep(Step):
    """Mixup, Manifold Mixup, their noisy versions and NFM, each with or without the divergence between views.

    The library's `NoisyFeatureMixup` implements all of them. With three views the cross entropy is that of the clean
    views (NoisyMix, protocol of the released code), and the views share λ, partners and layer.
    """

    def __init__(self, scheme: Scheme, model: nn.Module, **options):
        super().__init__(scheme, model, **options)
        self.consistency = nt.JSDConsistency(gamma=scheme.jsd)
        self.mixing = nt.NoisyFeatureMixup(
            model, self.laws, num_classes=self.classes, label_smoothing=scheme.label_smoothing,
            view_noise=scheme.view_noise or None, eps=scheme.eps, form=scheme.form,
            matching=scheme.matching, generator=self.generator,
        )  # fmt: skip

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mixed-label cross entropy, plus γ times the divergence."""
        inputs, targets = self.mixing(x, y, views=self.scheme.views)
        logits = self.forward(inputs)
        if self.scheme.views == 1:
            return F.cross_entropy(logits, targets)
        views = logits.chunk(self.scheme.views)
        return F.cross_entropy(views[0], targets) + self.consistency(*views)

    def close(self) -> None:
        """Remove the hooks."""
        self.mixing.remove()


class PatchStep(Step):
    """CutMix and PuzzleMix: patches of two images, labels mixed by area. PuzzleMix needs pixels, so mean and std."""

    def __init__(self, scheme: Scheme, model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], **options):
        super().__init__(scheme, model, **options)
        self.normalisation = {"mean": mean, "std": std}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the patched images with their mixed labels."""
        scheme = self.scheme
        if scheme.patch == "cutmix" and x.ndim == 3:
            mixed, targets = cutmix_series(
                x, y, generator=self.generator, alpha=scheme.alpha, probability=scheme.probability,
                num_classes=self.classes,
            )  # fmt: skip
        elif scheme.patch == "cutmix":
            mixed, targets = cutmix(
                x, y, generator=self.generator, alpha=scheme.alpha, probability=scheme.probability,
                num_classes=self.classes,
            )  # fmt: skip
        else:
            mixed, targets = puzzlemix(
                x, y, saliency(self.model, x, y), generator=self.generator, num_classes=self.classes,
                **self.normalisation,
            )  # fmt: skip
        logits = self.forward(mixed)
        return binary_loss(logits, targets) if scheme.loss == "binary" else F.cross_entropy(logits, targets)


def binary_loss(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Binary cross entropy of the softmax, mean over samples and classes, as in PuzzleMix's own code for CIFAR.

    $$ -\frac1{nK} \sum_{i,k} t_{ik} \log p_{ik} + (1 - t_{ik}) \log(1 - p_{ik}), \qquad p_i = softmax(z_i) $$

    Computed in at least single precision, also under autocast. Logarithms are cut at -100, as PyTorch does.

    Args:
        logits: z, `(n, K)`.
        targets: label weights t, `(n, K)`, in [0, 1].
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.binary_cross_entropy(logits.softmax(1), targets.to(logits.dtype))


class FreeAdversarialStep(Step):
    """Free adversarial training: every batch is used several times, each time with the latest perturbation.

    Source: Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, algorithm 1, and its authors' code. The
    backward pass also gives the gradient of the loss in the perturbation. Its sign times the radius is added to the
    perturbation, which is then clipped to the radius. The next batch starts with the last perturbation. Radii refer to
    pixels in [0, 1], so they are divided by `std`. With `scheme.clamp` the perturbed pixels are cut to [0, 1], as in
    the authors' code; a pixel that was cut has no gradient, so its perturbation stays.
    """

    def __init__(self, scheme: Scheme, model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], **options):
        super().__init__(scheme, model, **options)
        self.repeats = scheme.replays
        # Computed like the normalized images, so that a black or white pixel is not cut by rounding
        shift, scale = (torch.tensor(v)[:, None, None] for v in (mean, std))
        self.radius, self.low, self.high = scheme.radius / scale, (0 - shift) / scale, (1 - shift) / scale
        self.delta: Tensor | None = None
        self._leaf: Tensor | None = None

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy at the perturbed images."""
        if self.delta is None or self.delta.shape[1:] != x.shape[1:] or len(self.delta) < len(x):
            self.delta = torch.zeros_like(x)
        self._leaf = self.delta[: len(x)].clone().requires_grad_()
        perturbed = x + self._leaf
        if self.scheme.clamp:
            perturbed = perturbed.clamp(self.low.to(x), self.high.to(x))
        return F.cross_entropy(self.forward(perturbed), y)

    def after_backward(self) -> None:
        """Move the perturbation along the sign of the gradient."""
        n, radius = len(self._leaf), self.radius.to(self._leaf)
        moved = self.delta[:n] + radius * self._leaf.grad.sign()
        self.delta = torch.cat([moved.clamp(-radius, radius), self.delta[n:]])
        self._leaf = None

    def state_dict(self) -> dict[str, Tensor]:
        """The perturbation."""
        return {} if self.delta is None else {"delta": self.delta}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the perturbation."""
        self.delta = state.get("delta")
