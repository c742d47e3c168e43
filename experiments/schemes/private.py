"""The step of differentially private training: plain, with Mixup, with augmented views, and DP-Mix self."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nfm_theory.training.private import private_gradient, self_mixed

from ..augment.cutmix import mix_labels, soft_labels
from ..recipes.recipe import Scheme
from .step import Step


def shifted_copies(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Copies of each image, each moved by at most one pixel to every side: `(n, count, C, H, W)`.

    What comes in at the border has the smallest value of the image.
    """
    n, _, height, width = x.shape
    blank = x.flatten(1).amin(1).reshape(n, 1, 1, 1)
    padded = blank.expand(n, x.shape[1], height + 2, width + 2).clone()
    padded[:, :, 1:-1, 1:-1] = x
    top, left = torch.randint(3, (2, n, count), generator=generator, device=generator.device).to(x.device)
    rows = top[..., None] + torch.arange(height, device=x.device)
    columns = left[..., None] + torch.arange(width, device=x.device)
    sample = torch.arange(n, device=x.device).reshape(n, 1, 1, 1)
    return padded[sample, :, rows[..., None], columns[..., None, :]].movedim(-1, 2)


class PrivateStep(Step):
    """DP-SGD. With `alpha` and no copies it is Mixup between samples, which needs twice the noise; else DP-Mix self.

    The sampled batches are those of `training.batches.batch_indices`. `batch_size` of the recipe is their mean size.
    """

    def __init__(self, scheme: Scheme, model: nn.Module, *, batch_size: int, **options):
        super().__init__(scheme, model, **options)
        self.batch_size = batch_size

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss, as a function of the parameters whose gradient is the private one."""
        scheme, targets, scale = self.scheme, soft_labels(y, self.classes, dtype=x.dtype), 1.0
        if scheme.copies:
            views = shifted_copies(x, scheme.copies, self.generator)
            inputs, labels = self_mixed(views, targets, scheme.mixtures, law=scheme.law, generator=self.generator)
        else:
            if scheme.alpha:  # each sample is in two rows of the batch
                lam = scheme.law.mixing.sample((len(x), 1), unmixed=False, generator=self.generator, dtype=x.dtype)
                index = torch.randperm(len(x), generator=self.generator).to(x.device)
                lam, scale = lam.to(x.device), 2.0
                weight = lam.reshape(-1, *[1] * (x.ndim - 1))
                x, targets = weight * x + (1 - weight) * x[index], mix_labels(targets, index, lam)
            inputs, labels = x[:, None], targets[:, None]
        losses = private_gradient(
            self.model, inputs, labels, clip_norm=scheme.clip_norm, noise_multiplier=scale * scheme.noise_multiplier,
            batch_size=self.batch_size, generator=self.generator,
        )  # fmt: skip
        linear = sum((p * p.grad).sum() for p in self.model.parameters() if p.grad is not None)
        for parameter in self.model.parameters():  # the loop adds the gradient of the linear function
            parameter.grad = None
        return losses.mean() + linear - linear.detach()
