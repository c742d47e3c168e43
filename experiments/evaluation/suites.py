"""Suites of measurements on a trained network. The result of one suite is one entry of the ledger.

Metrics are a flat dict with keys such as `"clean"`, `"white_noise/0.1"` and `"corrupted/fog/3"`. Accuracies lie in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..corruptions import STANDARD
from ..corruptions.sequences import CIFAR_P
from ..data.corrupted import CorruptedSet, PerturbedSet
from ..data.imagenet import ImageNet
from ..data.integrity import DataError
from ..data.toy_sets import ToyData
from ..metrics.accuracy import accuracy
from ..metrics.attack_accuracy import attack_curve, fgsm_curve
from ..metrics.calibration import calibration_summary
from ..metrics.corruption import corruption_summary
from ..metrics.flips import flip_probability, flip_summary, is_noise
from ..metrics.noise_accuracy import noise_curve
from . import sets
from .imagenet_sets import IMAGENET_SUITES
from .neighbors import NEIGHBOR_SUITES
from .subject import SEED, Measured, Subject

#: A corruption of NFM Figure 6 that is not among the fifteen of the benchmark.
EXTRA = ("speckle_noise",)


def clean(subject: Subject) -> Measured:
    """Accuracy on the test set."""
    if isinstance(subject.data, ToyData):
        device = next(subject.model.parameters()).device
        with torch.inference_mode():
            logits = subject.network(subject.data.x_test.to(device, torch.float32))
        return {"clean": accuracy(logits.cpu(), subject.data.y_test)}, {}
    test = subject.data.test
    return {"clean": accuracy(subject.predict(test), test.labels)}, {"images": len(test)}


def _curve(subject: Subject, kind: str, levels: tuple[float, ...], variant: str) -> dict[float, float]:
    return noise_curve(
        subject.network, subject.data, kind, levels, seed=SEED, variant=variant, channels_last=True, **subject.options
    )


def white_noise(subject: Subject) -> Measured:
    """Accuracy under white noise added to the normalized images."""
    levels = subject.evaluation.white_noise
    curve = _curve(subject, "white_noise", levels, "released")
    return {f"white_noise/{level:g}": value for level, value in curve.items()}, {"levels": list(levels)}


def salt_pepper(subject: Subject) -> Measured:
    """Accuracy under salt and pepper noise, as in the released code (one channel only) and in the standard form."""
    found, levels = {}, subject.evaluation.salt_pepper
    for prefix, variant in (("salt_pepper", "released"), ("salt_pepper_standard", "standard")):
        curve = _curve(subject, "salt_pepper", levels, variant)
        found |= {f"{prefix}/{level:g}": value for level, value in curve.items()}
    return found, {"levels": list(levels)}


def attacks(subject: Subject) -> Measured:
    """Accuracy under FGSM and under PGD with 7 steps."""
    radii, limit = subject.evaluation.radii, subject.evaluation.images
    found, options = {}, {"limit": limit, **subject.options}
    for name, curve in (
        ("fgsm_linf", fgsm_curve(subject.network, subject.data, radii, **options)),
        ("pgd_linf", attack_curve(subject.network, subject.data, radii, steps=7, seed=SEED, **options)),
    ):
        found |= {f"{name}/{radius:.4g}": value for radius, value in curve.items()}
    settings = {"radii": [round(r, 6) for r in radii], "steps": 7, "norm": "linf"}
    return found, settings | ({} if limit is None else {"images": limit})


def _corrupted_set(subject: Subject) -> tuple[CorruptedSet, dict]:
    if subject.size == "paper":
        name = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}[subject.data.name]
        return CorruptedSet(sets.published_folder(name)), {"set": name}
    asked = subject.evaluation
    made = sets.generated_corrupted(
        subject.data, workers=subject.workers, limit=asked.images, corruptions=asked.corruptions
    )
    return made, {
        "set": f"{subject.data.name}-C (regenerated)",
        "seed": sets.SEED,
        "method": sets.METHOD,
        "frost": "procedural",
    }


def corrupted(subject: Subject) -> Measured:
    """Accuracy under each corruption at each severity, and the means.

    Raises:
        DataError: if one of the fifteen corruptions is missing. This is checked before the measurement.
    """
    images, settings = _corrupted_set(subject)
    if missing := [name for name in STANDARD if name not in images.names]:
        raise DataError(
            f"{images.folder}: expected the 15 corruptions of the benchmark; missing: {', '.join(missing)}."
        )
    names = [name for name in images.names if name in STANDARD or name in EXTRA]
    found = {}
    for name in names:
        for severity in range(1, 6):
            part = images.read(name, severity).first(subject.evaluation.images)
            found[name, severity] = accuracy(subject.predict(part), part.labels)
    return corruption_summary(found), settings | {"images": len(part)}


def flips(subject: Subject) -> Measured:
    """How often the prediction changes along sequences of slowly perturbed frames.

    Measured are the ten perturbations of the reference evaluation, by name. Further files of the folder are named in
    the settings.

    Raises:
        DataError: if a perturbation is missing. This is checked before the measurement.
    """
    limit = subject.evaluation.sequences
    if subject.size == "paper":
        folder, settings = PerturbedSet(sets.published_folder("CIFAR-10-P")), {"set": "CIFAR-10-P"}
    else:
        folder = sets.generated_perturbed(subject.data, workers=subject.workers, limit=limit)
        settings = {"set": f"{subject.data.name}-P (regenerated)", "seed": sets.SEED, "method": sets.METHOD}
    if limit is not None:
        settings["sequences"] = limit
    if missing := [name for name in CIFAR_P if name not in folder.names]:
        raise DataError(
            f"{folder.folder}: expected the ten perturbations of CIFAR-10-P; missing: {', '.join(missing)}."
        )
    if others := [name for name in folder.names if name not in CIFAR_P]:
        settings["not_measured"] = others
    probabilities = {}
    for name in CIFAR_P:
        frames = folder.read(name, 0, limit)
        predicted = subject.predict(frames.flatten(0, 1)).argmax(1).unflatten(0, frames.shape[:2])
        probabilities[name] = flip_probability(predicted, noise=is_noise(name))
    return flip_summary(probabilities), settings


def calibration(subject: Subject) -> Measured:
    """Calibration errors and AURRA on the test set."""
    test = subject.data.test
    return calibration_summary(subject.predict(test), test.labels), {"images": len(test)}


def renditions(subject: Subject) -> Measured:
    """Accuracy on ImageNet-R. Images in memory are always refused, since only ImageNet networks have its classes."""
    raise ValueError(
        "suite: 'renditions' needs a network trained on ImageNet and images on disk, got "
        f"{subject.data.name!r}; remove it from the recipe's suites."
    )


#: Suites for points and for images in memory. The suites for ImageNet have the same names.
SUITES: Mapping[str, Callable[[Subject], Measured]] = {
    suite.__name__: suite
    for suite in (clean, white_noise, salt_pepper, attacks, corrupted, flips, calibration, renditions)
} | NEIGHBOR_SUITES


def suites_of(data) -> Mapping[str, Callable[[Subject], Measured]]:
    """The suites by name for images in memory, images on disk or a toy problem."""
    return IMAGENET_SUITES if isinstance(data, ImageNet) else SUITES


def run_suite(name: str, subject: Subject) -> Measured:
    """Metrics of one suite, and the settings that they depend on.

    Raises:
        FileNotFoundError: if a published test set is missing.
    """
    suites = suites_of(subject.data)
    if name not in suites:
        raise ValueError(f"suite: expected one of {sorted(suites)} for {subject.data.name!r}, got {name!r}.")
    metrics, settings = suites[name](subject)
    return metrics, settings | subject.settings
