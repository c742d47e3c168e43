"""FGSM and PGD curves: a linear network by hand, foolbox, and the library's own attack."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import nfm_theory as nt
from experiments.data.images import ImageData, ImageSet
from experiments.metrics import attack_accuracy as attacks_module
from experiments.metrics.accuracy import accuracy, logits_of
from experiments.metrics.attack_accuracy import ascend, attack_curve, fgsm_curve
from experiments.metrics.streams import chunk_generator, uniform_like
from nfm_theory.adversarial import pgd_attack

with warnings.catch_warnings():  # foolbox 3.3.4 imports a deprecated name of scipy
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RADII = (0.0, 2 / 255, 8 / 255, 32 / 255)


def small_net(curved: float) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(150, 5)
        ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight.mul_(curved)
    return model


def attackable(n: int = 48, *, curved: float = 1.0) -> tuple[nn.Module, ImageData, torch.Tensor]:
    """A net, data of which it classifies all but every eighth image correctly, and the pixels."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, 5, 5), dtype=np.uint8))
    model, blank = small_net(curved), ImageSet(images, torch.zeros(n, dtype=torch.int64))
    labels = logits_of(model, images, ImageData("blank", blank, blank, 5, MEAN, STD)).argmax(1)
    labels[::8] = (labels[::8] + 1) % 5
    test = ImageSet(images, labels)
    return model, ImageData("toy", test, test, 5, MEAN, STD), images.float() / 255


def head_of(model, data):
    return lambda pixels: model(data.normalize(pixels))


def linear_case() -> tuple[nn.Module, ImageData]:
    """Logit difference 2 p - 1.2 of a single pixel p; normalized it is (p - 0.5) / 0.25."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [0.5]]))  # 2 (p - 0.5) in pixels
        model[1].bias.copy_(torch.tensor([0.2, 0.0]))
    pixels = torch.tensor([0, 102, 140, 166, 204, 255], dtype=torch.uint8).reshape(-1, 1, 1, 1)
    test = ImageSet(pixels, torch.tensor([0, 0, 0, 1, 1, 0]))  # the border is p = 0.6 = 153/255; the last is wrong
    return model, ImageData("pixel", test, test, 2, (0.5,), (0.25,))


def test_radii_are_in_pixels_by_hand():
    model, data = linear_case()
    # distances to the border in 1/255: 153, 51, 13, 13, 51, and one wrong image that stays wrong
    radii = [0.0, 12 / 255, 14 / 255, 50 / 255, 52 / 255, 150 / 255, 154 / 255]
    expected = dict(zip(radii, [5 / 6, 5 / 6, 3 / 6, 3 / 6, 1 / 6, 1 / 6, 0.0], strict=True))
    assert fgsm_curve(model, data, radii) == expected
    assert attack_curve(model, data, radii, steps=3, seed=0) == expected


@pytest.mark.parametrize(("steps", "step_size"), [(1, 1.0), (7, 2.5 / 7), (5, 0.3)])
def test_points_are_those_of_foolbox(steps, step_size):
    model, data, pixels = attackable()
    labels = data.test.labels
    preprocessing = {"mean": list(MEAN), "std": list(STD), "axis": -3}
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    if steps == 1:
        attack = foolbox.attacks.FGSM()
    else:
        attack = foolbox.attacks.LinfPGD(rel_stepsize=step_size, steps=steps, random_start=False)
    radius = 8 / 255
    expected = attack.run(theirs, pixels, foolbox.criteria.Misclassification(labels), epsilon=radius)
    options = {"radius": radius, "steps": steps, "step_size": step_size}
    found = ascend(head_of(model, data), pixels, labels, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    curve = attack_curve(model, data, [radius], steps=steps, step_size=step_size, random_start=False)
    clean = logits_of(model, data.test, data).argmax(1) == labels
    with torch.no_grad():
        robust = clean & (theirs(expected).argmax(1) == labels)
    assert curve == {radius: float(robust.double().mean())}
    assert 0 < curve[radius] < float(clean.double().mean())


def test_one_run_meets_what_the_library_attack_meets():
    model, data, pixels = attackable()
    labels, head, radius = data.test.labels, head_of(model, data), 0.05
    options = {"radius": radius, "steps": 6, "step_size": 0.25}
    last = ascend(head, pixels, labels, **options)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(head(last), labels, reduction="none")
    best = pgd_attack(nt.Problem(head, pixels, labels), norm="linf", restarts=1, box=(0.0, 1.0), **options)
    assert (losses <= best.losses + 1e-6).all()  # the library keeps the best point of the same path
    assert (losses >= best.losses - 1e-6).double().mean() > 0.8  # nearly always that is the last
    assert (losses > best.clean_losses).all()


def test_points_stay_in_the_ball_and_in_the_box():
    model, data, pixels = attackable()
    start = 2 * uniform_like(pixels, chunk_generator(0)) - 1
    found = ascend(head_of(model, data), pixels, data.test.labels, radius=0.3, steps=4, start=start)
    lengths = (found - pixels).flatten(1).abs().amax(1)
    assert lengths.max() <= 0.3 + 1e-6
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert (lengths > 0.2).all()


def test_default_step_is_two_and_a_half_radii_over_all_steps():
    model, data, pixels = attackable(8)
    options = {"radius": 0.05, "steps": 5}
    found = ascend(head_of(model, data), pixels, data.test.labels, **options)
    assert torch.equal(found, ascend(head_of(model, data), pixels, data.test.labels, step_size=0.5, **options))
    assert not torch.equal(found, ascend(head_of(model, data), pixels, data.test.labels, step_size=0.4, **options))


def test_a_step_is_one_pass_and_wrong_images_are_not_attacked():
    model, data, _ = attackable()
    rows, backwards = [], []

    class Counting(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            if x.requires_grad:
                x.register_hook(lambda g: backwards.append(len(g)))
            return model(x)

    attack_curve(Counting().eval(), data, [0.05], steps=7, seed=0)
    assert rows == [48] + [42] * 8  # clean, 7 steps on the right ones, and where they end
    assert backwards == [42] * 7


def test_curves_do_not_depend_on_the_batches_and_leave_the_global_generator_alone(monkeypatch):
    monkeypatch.setattr(attacks_module, "CHUNK", 20)
    model, data, _ = attackable()
    state = torch.random.get_rng_state()
    seen, original = [], attacks_module.ascend

    def recorded(*args, start, **options):
        seen[-1].append(start)
        return original(*args, start=start, **options)

    monkeypatch.setattr(attacks_module, "ascend", recorded)
    curves = []
    for batch_size in (3, 20, 256):
        seen.append([])
        curves.append(attack_curve(model, data, RADII, steps=3, seed=2, batch_size=batch_size))
    assert curves[0] == curves[1] == curves[2]
    assert torch.equal(torch.cat(seen[0]), torch.cat(seen[1]))
    assert torch.equal(torch.cat(seen[0]), torch.cat(seen[2]))
    assert torch.equal(torch.random.get_rng_state(), state)
    clean = logits_of(model, data.test, data).argmax(1) == data.test.labels
    generators = [chunk_generator(2, "attack", "linf", RADII[1], chunk) for chunk in range(3)]
    drawn = [2 * uniform_like(x.float(), g) - 1 for x, g in zip(data.test.images.split(20), generators, strict=True)]
    first_radius = torch.cat(seen[2])[: int(clean.sum())]
    assert torch.equal(first_radius, torch.cat(drawn)[clean])  # an image's start is its own, whatever others are wrong
    assert curves[0][0.0] == accuracy(logits_of(model, data.test, data), data.test.labels)
    assert curves[0][RADII[-1]] < curves[0][RADII[1]]


def test_several_steps_find_more_than_one():
    model, data, _ = attackable(200, curved=6.0)
    one = fgsm_curve(model, data, RADII[1:], limit=200)
    many = attack_curve(model, data, RADII[1:], steps=20, random_start=False)
    assert sum(many.values()) < sum(one.values()) - 0.05
    assert fgsm_curve(model, data, [0.0], limit=8) == {0.0: 7 / 8}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"radii": [-0.1]}, "radius: expected"),
        ({"steps": 0}, "steps: expected >= 1"),
        ({"step_size": 0.0}, "step_size: expected"),
    ],
)
def test_bad_requests_say_what_was_expected(options, match):
    model, data, _ = attackable(8)
    with pytest.raises(ValueError, match=match):
        attack_curve(model, data, **{"radii": [0.1], "random_start": False} | options)


def test_a_training_model_is_refused():
    model, data, _ = attackable(8)
    with pytest.raises(ValueError, match="training mode"):
        attack_curve(model.train(), data, [0.1])
