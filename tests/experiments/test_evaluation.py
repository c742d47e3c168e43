"""How the measurements of a recipe are made: levels, number of images, precision, and what the ledger says about it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from experiments import precision
from experiments.data.digits_images import digits_images
from experiments.data.images import ImageData, ImageSet
from experiments.evaluation import Subject, run_suite
from experiments.evaluation.sets import generated_corrupted, generated_perturbed
from experiments.metrics.accuracy import accuracy, logits_of
from experiments.metrics.attack_accuracy import attack_curve
from experiments.models import build_model
from experiments.recipes import Evaluation, all_recipes, get_recipe


@pytest.fixture(scope="module")
def data():
    return digits_images()


@pytest.fixture(scope="module")
def model():
    return build_model("digits_resnet", 10, seed=1).eval()


def subject(model, data, **changes):
    return Subject(model, data, "digits", evaluation=Evaluation(**changes))


def test_levels_and_radii_are_those_of_the_recipe(model, data):
    asked = subject(model, data, white_noise=(0.0, 2.0), salt_pepper=(0.3,), radii=(0.0, 0.05), images=30)
    clean = accuracy(logits_of(model, data.test, data), data.test.labels)
    metrics, settings = run_suite("white_noise", asked)
    assert metrics.keys() == {"white_noise/0", "white_noise/2"}
    assert metrics["white_noise/0"] == clean
    assert settings == {"levels": [0.0, 2.0]}
    assert run_suite("salt_pepper", asked)[0].keys() == {"salt_pepper/0.3", "salt_pepper_standard/0.3"}
    metrics, settings = run_suite("attacks", asked)
    first = data.test.first(30)
    assert metrics["pgd_linf/0"] == accuracy(logits_of(model, first, data), first.labels)
    assert metrics["pgd_linf/0.05"] == attack_curve(model, data, (0.05,), seed=0, limit=30)[0.05]
    assert settings == {"radii": [0.0, 0.05], "steps": 7, "norm": "linf", "images": 30}


def test_low_precision_changes_logits_little_and_is_written_down(model, data, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    exact, rough = subject(model, data), subject(model, data, precision="bfloat16", batch_size=256)
    one, other = exact.predict(data.test), rough.predict(data.test)
    assert other.dtype == torch.float32
    assert not torch.equal(one, other)
    assert_close(one, other, rtol=0.05, atol=0.05)
    assert run_suite("clean", exact)[1] == {"images": 450}
    assert run_suite("clean", rough)[1] == {"images": 450, "precision": "bfloat16"}
    pixels = data.normalize(data.test.images[:5]).requires_grad_()
    (slope,) = torch.autograd.grad(rough.network(pixels).sum(), pixels)
    assert slope.any()
    with pytest.raises(ValueError, match="precision: expected 'float32' or 'bfloat16', got 'float16'"):
        run_suite("clean", subject(model, data, precision="float16"))


def test_a_part_of_a_set_has_the_first_images_of_the_whole(data, model, tmp_path, monkeypatch):
    monkeypatch.setenv("NFM_CACHE", str(tmp_path))
    few = ImageData("few", data.train, ImageSet(data.test.images[:6], data.test.labels[:6]), 10, data.mean, data.std)
    whole, part = generated_corrupted(few), generated_corrupted(few, limit=2, corruptions=("speckle_noise",))
    assert part.folder != whole.folder
    assert set(part.names) - set(whole.names) == {"speckle_noise"}
    for name in ("gaussian_noise", "fog", "jpeg_compression"):
        for severity in (1, 5):
            assert torch.equal(part.read(name, severity).images, whole.read(name, severity).images[:2])
    both = generated_perturbed(few), generated_perturbed(few, limit=2)
    assert torch.equal(both[0].read("tilt", 0, 2), both[1].read("tilt"))
    asked = subject(model, few, images=2, sequences=2, corruptions=("speckle_noise",))
    metrics, settings = run_suite("corrupted", asked)
    assert settings["images"] == 2
    assert "corrupted/speckle_noise/5" in metrics
    picture = part.read("fog", 3)
    assert metrics["corrupted/fog/3"] == accuracy(logits_of(model, picture, few), picture.labels)
    metrics, settings = run_suite("flips", asked)
    assert settings["sequences"] == 2
    assert all(np.isfinite(value) for value in metrics.values())


def test_recorded_sizes_are_measured_as_before():
    levels = {"white_noise": (0.1, 0.2, 0.3, 0.5, 1.0), "salt_pepper": (0.02, 0.04, 0.1, 0.2)}
    digits = Evaluation(**levels, radii=(0.05, 0.1, 0.2))
    expected = {"digits": digits, "paper": Evaluation(), "small": Evaluation(radii=(2 / 255, 4 / 255))}
    for recipe in all_recipes().values():
        if recipe.size in expected:
            assert recipe.evaluation == expected[recipe.size], recipe.name
    assert replace(get_recipe("nfm-table1/nfm"), evaluation=digits).hash == get_recipe("nfm-table1/nfm").hash
