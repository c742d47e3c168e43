"""Each scheme's step against a naive twin: loops and the written formula, with the draws that the step recorded."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import generator, mlp, randn
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from experiments.augment.cutmix import apply_cutmix, draw_cutmix, soft_labels
from experiments.augment.puzzlemix import puzzlemix, saliency
from experiments.recipes.recipe import Scheme
from experiments.recipes.schemes import SCHEMES
from experiments.schemes import build_step
from experiments.schemes.step import binary_loss
from nfm_theory.setting.draws import Draw

X, Y = randn(0, 6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
VIEWS = randn(1, 18, 3)
IMAGES = randn(2, 6, 3, 8, 8)
EXACT = {"rtol": 1e-10, "atol": 1e-12}
LAYERS = ("", "1", "3")


def network(seed=0):
    return mlp(seed, [3, 5, 4, 3]).train()


def image_network(seed=0):
    model = mlp(seed, [192, 6, 3]).train()
    return nn.Sequential(nn.Flatten(), *model)


def step_of(scheme, model=None, *, seed=0, layers=LAYERS):
    return build_step(
        scheme, model or network(), layers=layers, classes=3, mean=(0.5,) * 3, std=(0.25, 0.5, 0.2),
        generator=generator(seed),
    )  # fmt: skip


def one_hot(y=Y):
    return F.one_hot(y, 3).double()


def soft_cross_entropy(logits, targets):
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def divergence(*logits):
    """Mean Kullback-Leibler divergence from the mixture, in probabilities."""
    p = [u.softmax(1) for u in logits]
    middle = sum(p) / len(p)
    return sum((q * (q / middle).log()).sum(1).mean() for q in p) / len(p)


def from_layer(model, layer, perturbed, x):
    """Outputs, with the output of a layer of a plain sequence replaced."""
    for name, module in [("", nn.Identity()), *model.named_children()]:
        x = module(x)
        if name == layer:
            x = perturbed(x)
    return x


# Without mixing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "autoaugment", "augmix_no_jsd"])
def test_the_baseline_is_plain_cross_entropy(name):
    step = step_of(SCHEMES[name])
    assert_close(step.loss(X, Y), soft_cross_entropy(step.model(X), one_hot()), **EXACT)
    assert torch.equal(step.generator.get_state(), generator(0).get_state())


def test_smoothed_labels():
    step = step_of(Scheme("label_smoothing", label_smoothing=0.1))
    assert_close(step.loss(X, Y), soft_cross_entropy(step.model(X), 0.9 * one_hot() + 0.1 / 3), **EXACT)


# Mixup and its relatives -------------------------------------------------------------------------------------------

MIXING = {
    "noise": Scheme("noise", add_noise=0.2),
    "mixup": SCHEMES["mixup"],
    "manifold_mixup": SCHEMES["manifold_mixup"],
    "noisy_mixup": SCHEMES["noisy_mixup"],
    "nfm": SCHEMES["nfm"],
    "nfm_normal": replace(SCHEMES["nfm"], noise="normal", alpha=0.2),
    "sparse": replace(SCHEMES["nfm"], sparsity=0.65),
    "smoothed": replace(SCHEMES["nfm"], label_smoothing=0.1),
    "noise_at_layers": Scheme("noise_at_layers", layers="eligible", add_noise=0.5, mult_noise=0.5, sparsity=0.65),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("seed", range(6))
def test_mixing_is_the_formula_with_the_recorded_draw(name, seed):
    scheme = MIXING[name]
    step = step_of(scheme, seed=seed)
    loss = step.loss(X, Y)
    layer, draw = step.mixing.last.layer, step.mixing.last.draw
    lam = float(draw.lam[0])

    def perturbed(g):
        h = lam * g + (1 - lam) * g[draw.index]
        h = h if draw.mult is None else (1 + scheme.mult_noise * draw.mult) * h
        return h if draw.add is None else h + scheme.add_noise * draw.add

    labels = (1 - scheme.label_smoothing) * one_hot() + scheme.label_smoothing / 3
    targets = lam * labels + (1 - lam) * labels[draw.index]
    step.close()
    assert layer in (LAYERS if scheme.layers == "eligible" else ("",))
    assert_close(loss, soft_cross_entropy(from_layer(step.model, layer, perturbed, X), targets), **EXACT)
    assert (draw.add is None, draw.mult is None) == (not scheme.add_noise, not scheme.mult_noise)
    assert sorted(draw.index.tolist()) == list(range(6))
    if not scheme.alpha:
        # as the released code at α = 1e-8: λ is 0 or 1, so that a sample keeps a label of its own
        assert lam in (0.0, 1.0)


def test_the_input_is_mixed_where_the_scheme_says_so_and_else_every_layer_is_drawn():
    def layers(name):
        found = set()
        for seed in range(40):
            step = step_of(SCHEMES[name], seed=seed)
            step.loss(X, Y)
            found.add(step.mixing.last.layer)
        return found

    assert layers("mixup") == layers("noisy_mixup") == {""}
    assert layers("nfm") == layers("manifold_mixup") == set(LAYERS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_noisymix_is_the_formula_with_a_level_for_each_view(seed, noise):
    """λ, partners and layer are shared, cross entropy is that of the clean view, γ = 12 times the divergence."""
    scheme = SCHEMES["noisymix"] if noise else replace(SCHEMES["noisymix"], add_noise=0.0, mult_noise=0.0)
    step = step_of(scheme, seed=seed)
    loss = step.loss(VIEWS, Y)
    layer, draw = step.mixing.last.layer, step.mixing.last.draw
    lam, index = float(draw.lam[0]), draw.index[:6]
    assert torch.equal(draw.index, torch.cat([index, index + 6, index + 12]))
    step.close()

    def perturbed(view):
        rows = slice(6 * view, 6 * view + 6)
        part = Draw(
            torch.arange(6), draw.lam[rows], index, *(n[rows] if noise else None for n in (draw.add, draw.mult))
        )
        law = nt.Law(add_noise=noise * (view + 1), mult_noise=noise)
        return lambda g: nt.perturb(g, part, law)

    logits = [from_layer(step.model, layer, perturbed(k), x) for k, x in enumerate(VIEWS.chunk(3))]
    expected = soft_cross_entropy(logits[0], lam * one_hot() + (1 - lam) * one_hot()[index])
    assert_close(loss, expected + 12 * divergence(*logits), **EXACT)


def test_augmix_is_the_clean_cross_entropy_and_the_divergence():
    step = step_of(SCHEMES["augmix"])
    logits = [step.model(x) for x in VIEWS.chunk(3)]
    expected = soft_cross_entropy(logits[0], one_hot()) + 12 * divergence(*logits)
    assert_close(step.loss(VIEWS, Y), expected, **EXACT)


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_replays_with_the_same_generator(seed):
    step = step_of(SCHEMES["cutmix"], image_network(), seed=seed)
    draw = draw_cutmix(6, (8, 8), generator=generator(seed), alpha=1.0, probability=0.5)
    mixed, targets = apply_cutmix(IMAGES, soft_labels(Y, 3), draw)
    assert_close(step.loss(IMAGES, Y), soft_cross_entropy(step.model(mixed), targets.double()), rtol=1e-6, atol=1e-7)


def test_half_of_the_batches_are_cut():
    step = step_of(SCHEMES["cutmix"], image_network())
    plain = F.cross_entropy(step.model(IMAGES), Y)
    same = sum(bool(torch.isclose(step.loss(IMAGES, Y), plain, rtol=1e-9)) for _ in range(200))
    assert 65 <= same <= 150  # half of them, and boxes without area


def test_puzzlemix_takes_a_step_on_images_of_any_size():
    step = step_of(SCHEMES["puzzlemix"], image_network())
    loss = step.loss(IMAGES.float().double(), Y)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in step.model.parameters())


def test_the_binary_loss_by_hand_and_under_autocast():
    """Minus the mean of t log p + (1 - t) log(1 - p) over all classes."""
    logits, targets = 3 * randn(5, 4, 3), randn(6, 4, 3).softmax(1)
    total = 0.0
    for z, t in zip(logits.tolist(), targets.tolist(), strict=True):
        whole = sum(math.exp(one) for one in z)
        for one, weight in zip(z, t, strict=True):
            p = math.exp(one) / whole
            total -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
    assert float(binary_loss(logits, targets)) == pytest.approx(total / 12, rel=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        rough = binary_loss(logits.bfloat16().requires_grad_(), targets.float())
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(total / 12, rel=0.02)
    sure = torch.tensor([[400.0, 0.0, 0.0]], dtype=torch.float64).requires_grad_()
    loss = binary_loss(sure, torch.tensor([[0.5, 0.5, 0.0]]))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(sure.grad).all())


@pytest.mark.parametrize("loss", ["binary", "cross_entropy"])
def test_puzzlemix_replays_with_the_same_generator(loss):
    step = step_of(replace(SCHEMES["puzzlemix"], loss=loss), image_network(), seed=3)
    place = {"mean": (0.5,) * 3, "std": (0.25, 0.5, 0.2)}
    salient = saliency(step.model, IMAGES, Y)
    mixed, targets = puzzlemix(IMAGES, Y, salient, generator=generator(3), num_classes=3, **place)
    logits = step.model(mixed)
    expected = {"binary": binary_loss, "cross_entropy": soft_cross_entropy}[loss](logits, targets.double())
    assert_close(step.loss(IMAGES, Y), expected, rtol=1e-6, atol=1e-7)


def test_the_binary_loss_needs_mixed_labels():
    with pytest.raises(ValueError, match="'binary' only with a patch, got 'binary'"):
        step_of(Scheme("any", loss="binary"))
    with pytest.raises(ValueError, match="got 'hinge'"):
        step_of(replace(SCHEMES["cutmix"], loss="hinge"))


# Adversarial -------------------------------------------------------------------------------------------------------


def test_free_adversarial_training_by_hand():
    """Two replays on two batches, the second one shorter: clipped steps of one radius, and what is carried over."""
    scheme = Scheme("adversarial", radius=0.1, replays=2)
    radius = (0.1 / torch.tensor([0.25, 0.5, 0.2], dtype=torch.float64)).reshape(3, 1, 1)
    model = image_network()
    step = step_of(scheme, model)
    assert step.repeats == 2
    delta = torch.zeros_like(IMAGES)
    for x, y in ((IMAGES, Y), (IMAGES[:4] + 1, Y[:4])):
        for _ in range(2):
            at = (x + delta[: len(x)]).requires_grad_()
            expected = soft_cross_entropy(model(at), one_hot(y))
            loss = step.loss(x, y)
            assert_close(loss, expected, rtol=1e-6, atol=1e-7)  # radii are float32
            loss.backward()
            step.after_backward()
            slope = torch.autograd.grad(expected, at)[0]
            moved = delta.clone()
            moved[: len(x)] += radius * slope.sign()
            delta = torch.maximum(torch.minimum(moved, radius), -radius)
            assert_close(step.delta, delta, rtol=1e-6, atol=1e-7)
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
    assert bool((delta[4:].abs() > 0).any())


def test_perturbed_pixels_are_cut_to_the_unit_interval_as_in_the_authors_code():
    """In pixels: cut to [0, 1], then normalized. A pixel that was cut has no gradient, so its perturbation stays."""
    shift, scale = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in ((0.5,) * 3, (0.25, 0.5, 0.2)))
    pixels = torch.rand(6, 3, 8, 8, generator=generator(8), dtype=torch.float64)
    pixels[:, :, :2] = (pixels[:, :, :2] > 0.5).double()  # black and white
    model = image_network()
    step = step_of(Scheme("adversarial", radius=0.25, replays=3, clamp=True), model)
    noise = torch.zeros_like(pixels)
    for _ in range(3):
        leaf = noise.clone().requires_grad_()
        at = ((pixels + leaf).clamp(0, 1) - shift) / scale
        expected = soft_cross_entropy(model(at), one_hot())
        loss = step.loss((pixels - shift) / scale, Y)
        assert_close(loss, expected, rtol=1e-6, atol=1e-7)
        loss.backward()
        step.after_backward()
        (slope,) = torch.autograd.grad(expected, leaf)
        noise = (noise + 0.25 * slope.sign()).clamp(-0.25, 0.25)
        inside = ((pixels + leaf.detach() - 0.5).abs() - 0.5).abs() > 1e-6  # at the edge rounding decides
        inside |= leaf.detach() == 0
        assert_close((step.delta * scale)[inside], noise[inside], rtol=1e-5, atol=1e-6)
        noise = step.delta * scale
        for p in model.parameters():
            p.grad = None
    assert bool((((pixels + noise) < 0) | ((pixels + noise) > 1)).any())


def test_the_perturbation_survives_its_state():
    step, other = (step_of(Scheme("adversarial", radius=0.1, replays=2), image_network()) for _ in range(2))
    assert step.state_dict() == {}
    step.loss(IMAGES, Y).backward()
    step.after_backward()
    other.load_state_dict(step.state_dict())
    assert torch.equal(other.loss(IMAGES, Y), step.loss(IMAGES, Y))


# Contradictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"patch": "cutmix", "radius": 0.1},
        {"radius": 0.1, "terms": ("R1",), "alpha": 1.0},
        {"patch": "cutmix", "terms": ("R1",)},
    ],
)
def test_contradictions_are_refused(settings):
    with pytest.raises(ValueError, match="scheme 'both': expected one of patch, radius, terms and clip_norm"):
        step_of(Scheme("both", **settings))


@pytest.mark.parametrize("name", SCHEMES)
def test_nothing_stays_on_the_model(name):
    model = network()
    step = step_of(SCHEMES[name], model)
    step.close()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
