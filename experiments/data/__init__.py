"""Data sets: real images that are at hand, images that a user downloads, and toy problems in the plane."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .imagenet import ImageNet
    from .images import ImageData
    from .toy_sets import ToyData

NAMES = (
    "digits", "fashion_mnist", "cifar10", "cifar100", "toy_rings", "toy_band", "toy_spirals", "toy_moons",
    "toy_features", "series_basic_motions", "series_gun_point", "series_japanese_vowels", "series_wiimote", "imagenet",
)  # fmt: skip


def load_data(name: str, **options) -> ImageData | ImageNet | ToyData:
    """A data set by the name that recipes use.

    Args:
        name: one of `NAMES`.
        **options: options of `load_fashion`, `load_cifar` (without `classes`), `nfm_rings`,
            `noisymix_band`, `spirals`, `moons`, `two_features` or `load_imagenet`; sequences have none.

    Returns:
        Images in memory; images on disk for `"imagenet"`; points for the toy problems; sequences.

    Raises:
        DataError: if files are missing or damaged. It is a `ValueError`, like the error for an unknown name.

    Example:
        >>> load_data("digits").train.images.shape
        torch.Size([1347, 1, 8, 8])
    """
    if name == "digits":
        from .digits_images import digits_images

        return digits_images(**options)
    if name == "fashion_mnist":
        from .fashion import load_fashion

        return load_fashion(**options)
    if name in ("cifar10", "cifar100"):
        from .cifar import load_cifar

        return load_cifar(int(name.removeprefix("cifar")), **options)
    if name in ("toy_rings", "toy_band"):
        from .toy_sets import nfm_rings, noisymix_band

        return nfm_rings(**options) if name == "toy_rings" else noisymix_band(**options)
    if name in ("toy_spirals", "toy_moons", "toy_features"):
        from . import neighbor_sets

        made = {"spirals": neighbor_sets.spirals, "moons": neighbor_sets.moons, "features": neighbor_sets.two_features}
        return made[name.removeprefix("toy_")](**options)
    if name.startswith("series_"):
        from .series import load_series

        return load_series(name.removeprefix("series_"), **options)
    if name == "imagenet":
        from .imagenet import load_imagenet

        return load_imagenet(**options)
    raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}.")
