"""Logits of a network on images in memory, and the accuracy of its predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.images import ImageData, ImageSet

Predict = Callable[[Tensor], Tensor]


def check_evaluating(model: Predict) -> None:
    """Refuse a network if any of its modules is in training mode, where BatchNorm couples the images of a batch."""
    if not isinstance(model, nn.Module):
        return
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"model: expected evaluation mode, but {training[0]} is in training mode; call model.eval() first."
        )


def device_of(model: Predict, device: str | torch.device | None) -> torch.device:
    """The given device, otherwise the device of the parameters, otherwise the CPU."""
    if device is not None:
        return torch.device(device)
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def logits_of(
    model: Predict,
    images: ImageSet | Tensor,
    data: ImageData,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    channels_last: bool = False,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits of all images in their order, `(n, K)`, float32, on the CPU.

    Args:
        model: network in evaluation mode; maps normalized float32 images `(b, C, H, W)` to logits `(b, K)`.
        images: the images, or only their bytes `(n, C, H, W)`.
        data: data set whose mean and standard deviation normalize the images.
        batch_size: number of images in a forward pass.
        device: device of the model; `None` for the device of its parameters.
        channels_last: True to pass the images to the model in this memory format.
        transform: function applied to each normalized batch, such as noise; the batches come in order.
    """
    check_evaluating(model)
    pixels = images.images if isinstance(images, ImageSet) else images
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or len(pixels) == 0:
        raise ValueError(
            f"images: expected at least one image, as bytes (n, C, H, W), got {pixels.dtype} of shape "
            f"{tuple(pixels.shape)}."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size: expected >= 1, got {batch_size}.")
    device, found = device_of(model, device), []
    with torch.inference_mode():
        for batch in pixels.split(batch_size):
            x = data.normalize(batch.to(device))
            x = x if transform is None else transform(x)
            logits = model(x.contiguous(memory_format=torch.channels_last) if channels_last else x)
            if logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
                raise ValueError(
                    f"model: expected logits ({len(x)}, K) with K >= 2 classes, got shape {tuple(logits.shape)}."
                )
            found.append(logits.float().cpu())
    return torch.cat(found).clone()  # a tensor made in inference mode could not be used with autograd later


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is at the label, in [0, 1]. Of several largest logits, the first one counts.

    Args:
        logits: logits `(n, K)`; NaN, as from a diverged network, is refused.
        labels: class indices, `(n,)`.

    Example:
        >>> accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [1.0, 0.0]]), torch.tensor([0, 1, 0, 1]))
        0.5
    """
    if logits.ndim != 2 or len(logits) == 0 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits: expected (n, K) with one label for each of n >= 1 images, got {tuple(logits.shape)} and labels "
            f"{tuple(labels.shape)}."
        )
    if logits.isnan().any():
        raise ValueError("logits: expected numbers, got NaN; the network has diverged, so it has no accuracy.")
    return int((logits.argmax(1) == labels.to(logits.device)).sum()) / len(logits)
