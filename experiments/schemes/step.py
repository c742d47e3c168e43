"""One training step of a scheme: from a batch to a loss, and what happens after the backward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nfm_theory as nt

from ..augment.cutmix import cutmix
from ..augment.puzzlemix import PuzzleOptions, puzzlemix, saliency
from ..recipes.recipe import Scheme


class Step:
    """Plain cross entropy, with label smoothing if asked; the other steps build on it.

    A step draws from `generator` only, which the training loop seeds anew for each step.

    Args:
        scheme: settings.
        model: network.
        layers: eligible layers of the network, `""` for the input.
        classes: K.
        generator: source of everything random.

    Attributes:
        forward: what is called for the logits: the model, or a wrapper around it (compiled, several processes).
        repeats: optimiser steps on one batch.
    """

    repeats = 1

    def __init__(
        self, scheme: Scheme, model: nn.Module, *, layers: tuple[str, ...], classes: int, generator: torch.Generator
    ):
        self.scheme, self.model, self.classes, self.generator = scheme, model, classes, generator
        self.forward = model
        self.layers = layers if scheme.layers == "eligible" else ("",)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            x: normalised images, `(views * n, C, H, W)`, the clean views first.
            y: class indices, `(n,)`.
        """
        return F.cross_entropy(self.forward(x), y, label_smoothing=self.scheme.label_smoothing)

    def after_backward(self) -> None:
        """Called between the backward pass and the optimiser."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a later step needs of the earlier ones."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()`."""

    def close(self) -> None:
        """Take everything off the model that was put on it."""


class MixingStep(Step):
    """Mixup, Manifold Mixup, their noisy versions and NFM, each with or without the divergence between views.

    One implementation of the step, the library's `NoisyFeatureMixup`. With three views the cross entropy is that of
    the clean views (NoisyMix, protocol of the released code), and λ, partners and layer are shared.
    """

    def __init__(self, scheme: Scheme, model: nn.Module, *, layers, classes, generator):
        super().__init__(scheme, model, layers=layers, classes=classes, generator=generator)
        self.consistency = nt.JSDConsistency(gamma=scheme.jsd)
        self.mixing = nt.NoisyFeatureMixup(
            model, self.layers, scheme.law, num_classes=classes, label_smoothing=scheme.label_smoothing,
            view_noise=scheme.view_noise or None, eps=scheme.eps, form=scheme.form, generator=generator,
        )  # fmt: skip

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mixed-label cross entropy, and γ times the divergence."""
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
    """CutMix and PuzzleMix: patches of two images, labels by area.

    Args:
        scheme: settings.
        model: network.
        layers: not used.
        classes: K.
        generator: source of everything random.
        mean: of each channel; PuzzleMix works on pixels in [0, 1].
        std: of each channel.
    """

    def __init__(self, scheme: Scheme, model: nn.Module, *, layers, classes, generator, mean, std):
        super().__init__(scheme, model, layers=layers, classes=classes, generator=generator)
        self.normalisation = {"mean": mean, "std": std}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy with the labels of the patched images."""
        scheme = self.scheme
        if scheme.patch == "cutmix":
            mixed, targets = cutmix(
                x, y, generator=self.generator, alpha=scheme.alpha, probability=scheme.probability,
                num_classes=self.classes,
            )  # fmt: skip
        else:
            # a cell of at least two pixels: small images have fewer of them
            options = PuzzleOptions(grids=tuple(g for g in PuzzleOptions.grids if 2 * g <= x.shape[-1]))
            mixed, targets = puzzlemix(
                x, y, saliency(self.model, x, y), generator=self.generator, num_classes=self.classes, options=options,
                **self.normalisation,
            )  # fmt: skip
        return F.cross_entropy(self.forward(mixed), targets)


class FreeAdversarialStep(Step):
    """Adversarial training for free: every batch several times, each time with the perturbation the last one found.

    Source: Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, algorithm 1: the gradient of the loss in
    the input, which the backward pass gives anyway, moves the perturbation by the radius and clips it there. The
    perturbation is carried over to the next batch.

    Args:
        scheme: settings.
        model: network.
        layers: not used.
        classes: K.
        generator: not used.
        std: of each channel; radii are in pixels, inputs are normalised.
    """

    def __init__(self, scheme: Scheme, model: nn.Module, *, layers, classes, generator, std: tuple[float, ...]):
        super().__init__(scheme, model, layers=layers, classes=classes, generator=generator)
        self.repeats = scheme.replays
        self.radius = scheme.radius / torch.tensor(std)[:, None, None]
        self.delta: Tensor | None = None
        self._input: Tensor | None = None

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy at the perturbed images."""
        if self.delta is None or self.delta.shape[1:] != x.shape[1:] or len(self.delta) < len(x):
            self.delta = torch.zeros_like(x)
        self._input = (x + self.delta[: len(x)]).requires_grad_()
        return F.cross_entropy(self.forward(self._input), y)

    def after_backward(self) -> None:
        """Move the perturbation along the sign of the gradient."""
        n, radius = len(self._input), self.radius.to(self._input)
        moved = self.delta[:n] + radius * self._input.grad.sign()
        self.delta = torch.cat([moved.clamp(-radius, radius), self.delta[n:]])
        self._input = None

    def state_dict(self) -> dict[str, Tensor]:
        """The perturbation."""
        return {} if self.delta is None else {"delta": self.delta}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with this perturbation."""
        self.delta = state.get("delta")
