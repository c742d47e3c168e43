"""The options of timm's Mixup on top of the step of NFM, against plain lines with the same draws."""

import copy

import pytest
import torch
import torch.nn.functional as F
from problems import generator, mlp, randn
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.integrations.timm import TimmMixup

NOISY = nt.Law(add_noise=0.4, mult_noise=0.2)
X, Y = randn(0, 6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
IMAGES = randn(1, 6, 2, 8, 10)


class Pixels(nn.Module):
    """Layers "net.1" and so on behind the pixels of an image."""

    def __init__(self):
        super().__init__()
        self.net = mlp(0, [160, 5, 3])

    def forward(self, x):
        return self.net(x.flatten(1))


def build(model, layers=("1",), law=NOISY, seed=0, **options):
    options = {"num_classes": 3, "label_smoothing": 0.0, "generator": generator(seed), **options}
    return TimmMixup(model.train(), layers, law, **options)


def expected(step, h, y=Y, law=NOISY):
    """Features and targets row by row."""
    draw, labels = step.draw, F.one_hot(y, 3).double()
    features, targets = [], []
    for row, (i, lam, r) in enumerate(zip(draw.anchor, draw.lam, draw.index, strict=True)):
        mixed = lam * h[i] + (1 - lam) * h[r]
        if draw.mult is not None:
            mixed = (1 + law.mult_noise * draw.mult[row]) * mixed
        if draw.add is not None:
            mixed = mixed + law.add_noise * draw.add[row]
        features.append(mixed)
        targets.append(lam * labels[i] + (1 - lam) * labels[r])
    return torch.stack(features), torch.stack(targets)


@pytest.mark.parametrize("mode", ["batch", "elem", "pair", "half"])
@pytest.mark.parametrize("layer", ["", "1"])
def test_a_step_in_each_mode_row_by_row(mode, layer):
    model = mlp(0, [3, 5, 3])
    mixup = build(model, [layer], mode=mode)
    inputs, targets = mixup(X, Y)
    outputs = model(inputs)
    with mixup.clean():
        clean = model[:2](X) if layer else X
    features, labels = expected(mixup.last, clean)
    head = model[2:] if layer else model
    with mixup.clean():
        assert_close(outputs, head(features))
    assert_close(targets, labels)
    lam, index = mixup.last.draw.lam, mixup.last.draw.index
    if mode == "batch":
        assert len(lam.unique()) == 1
    if mode == "elem":
        assert len(lam.unique()) == 6
    if mode in ("pair", "half"):
        assert index.tolist() == [5, 4, 3, 2, 1, 0][: len(index)]
    if mode == "pair":
        assert_close(lam, lam.flip(0))
        assert len(lam.unique()) == 3
    assert len(lam) == (3 if mode == "half" else 6)


@pytest.mark.parametrize("mode", ["batch", "elem", "pair", "half"])
@pytest.mark.parametrize("seed", range(3))
def test_cutmix_pastes_a_box_of_the_partner_and_weighs_the_labels_by_its_area(mode, seed):
    model = Pixels()
    mixup = build(model, ["net.1"], seed=seed, mode=mode, cutmix_alpha=1.0, switch_prob=1.0)
    kept = IMAGES.clone()
    inputs, targets = mixup(IMAGES, Y)
    model(inputs)
    assert torch.equal(kept, IMAGES)
    step, labels = mixup.last, F.one_hot(Y, 3).double()
    assert step.layer == ""
    for row, (i, r, lam) in enumerate(zip(step.draw.anchor, step.draw.index, step.draw.lam, strict=True)):
        pasted = (inputs[row] != IMAGES[i]).any(0)
        if i == r or not pasted.any():
            assert_close(inputs[row], IMAGES[i])
            continue
        assert_close(inputs[row][:, pasted], IMAGES[r][:, pasted])
        assert_close(lam, 1 - pasted.double().mean())
        rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
        assert pasted.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)  # a box
        assert_close(targets[row], lam * labels[i] + (1 - lam) * labels[r])


def test_the_boxes_have_the_size_and_the_place_of_the_paper():
    """Sides of sqrt(1 - λ) times those of the image, around a uniform center, so that uncut boxes have area 1 - λ."""
    mixup = build(Pixels(), ["net.1"])
    lam = torch.full((4000,), 0.75, dtype=torch.float64)
    boxes = mixup._boxes(lam, 32, 20).squeeze(1)
    inside = ~(boxes[:, 0].any(1) | boxes[:, -1].any(1) | boxes[:, :, 0].any(1) | boxes[:, :, -1].any(1))
    assert inside.sum() > 500
    assert (boxes[inside].sum((1, 2)) == 16 * 10).all()
    centers = boxes[inside].any(2).double().argmax(1) + 8
    assert abs(float(centers.double().mean()) - 16) < 5 * float(centers.double().std()) / inside.sum() ** 0.5


def test_the_share_of_steps_that_mix_and_of_cutmix():
    model = Pixels()
    mixup = build(model, ["net.1"], prob=0.7, cutmix_alpha=1.0, switch_prob=0.4)
    kinds = []
    for _ in range(400):
        with mixup.step(IMAGES, Y) as (inputs, targets):
            model(inputs)
        kinds.append("none" if mixup.last is None else "nfm" if mixup.last.box is None else "cut")
        if mixup.last is None:
            assert_close(targets, F.one_hot(Y, 3).double())
            assert inputs is IMAGES
    for kind, share in (("none", 0.3), ("cut", 0.28), ("nfm", 0.42)):
        assert abs(kinds.count(kind) / 400 - share) < 5 * (share * (1 - share) / 400) ** 0.5, kind


@pytest.mark.parametrize("layers", [[""], ["1"], ["", "1"]])
def test_switched_off_the_batch_stays_and_the_labels_are_smoothed(layers):
    model = mlp(0, [3, 5, 3])
    mixup = build(model, layers, label_smoothing=0.1)
    mixup.mixup_enabled = False
    clean = model(mixup(X, Y)[0])
    inputs, targets = mixup(X, Y)
    assert inputs is X
    assert mixup.last is None
    assert_close(targets, 0.9 * F.one_hot(Y, 3).double() + 0.1 / 3)
    assert_close(model(inputs), clean)
    with mixup.clean():
        assert_close(model(X), clean)
    mixup.mixup_enabled = True
    assert not torch.equal(model(mixup(X, Y)[0]), clean)


def test_switching_off_is_part_of_every_step_of_nfm():
    model = mlp(0, [3, 5, 3]).train()
    mixup = nt.NoisyFeatureMixup(model, ["1"], NOISY, num_classes=3, generator=generator(0))
    mixup.enabled = False
    state = mixup.generator.get_state()
    inputs, targets = mixup(X, Y)
    outputs = model(inputs)
    assert torch.equal(mixup.generator.get_state(), state)
    assert_close(outputs, model.eval()(X))
    assert_close(targets, F.one_hot(Y, 3).double())
    assert copy.deepcopy(mixup).enabled is False


@pytest.mark.parametrize("switch", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["batch", "half"])
def test_a_step_can_be_replayed(switch, mode):
    model = Pixels()
    mixup = build(model, ["", "net.1"], mode=mode, cutmix_alpha=1.0, switch_prob=switch, prob=0.5)
    step = None
    while step is None:
        inputs, targets = mixup(IMAGES, Y)
        outputs, step = model(inputs), mixup.last
    mixup(IMAGES, Y)
    mixup.disarm()
    again, same = mixup(IMAGES, Y, replay=step)
    assert torch.equal(model(again), outputs)
    assert torch.equal(same, targets)
    with pytest.raises(ValueError, match="expected a draw of 4 rows"):
        mixup(IMAGES[:4], Y[:4], replay=step)


def test_without_its_options_it_is_the_step_of_nfm():
    plain, same = mlp(0, [3, 5, 3]).train(), mlp(0, [3, 5, 3]).train()
    nfm = nt.NoisyFeatureMixup(plain, ["", "1"], NOISY, num_classes=3, generator=generator(0))
    mixup = build(same, ["", "1"])
    for _ in range(5):
        a, targets = nfm(X, Y)
        b, labels = mixup(X, Y)
        assert torch.equal(plain(a), same(b))
        assert torch.equal(targets, labels)


def test_a_copy_keeps_the_options_and_goes_on_with_the_same_draws():
    model = Pixels()
    mixup = build(model, ["net.1"], mode="pair", prob=0.5, cutmix_alpha=0.7, switch_prob=0.5)
    other, twin = copy.deepcopy((model, mixup))
    for _ in range(6):
        a, b = mixup(IMAGES, Y), twin(IMAGES, Y)
        assert torch.equal(model(a[0]), other(b[0]))
        assert torch.equal(a[1], b[1])


def test_bad_options_are_refused():
    model = mlp(0, [3, 5, 3])
    for name in ("prob", "switch_prob"):
        with pytest.raises(ValueError, match=rf"{name}: expected a probability in \[0, 1\], got 1\.5"):
            build(model, **{name: 1.5})
    with pytest.raises(ValueError, match="did you mean 'batch'"):
        build(model, mode="bach")
    with pytest.raises(ValueError, match="cutmix_alpha: expected a finite number >= 0"):
        build(model, cutmix_alpha=-1.0)
    mixup = build(model, mode="half")
    with pytest.raises(ValueError, match="expected an even number of samples, got 5"):
        mixup(X[:5], Y[:5])
    with pytest.raises(ValueError, match="views: expected 1, got 2"):
        mixup(X, Y[:3], views=2)
    mixup.remove()
    mixup = build(model, cutmix_alpha=1.0, switch_prob=1.0)
    with pytest.raises(ValueError, match=r"CutMix expected floating-point images \(n, C, H, W\)"):
        mixup(X, Y)
