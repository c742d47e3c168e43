"""`TimmMixup` beside timm's own `Mixup`, and in timm's training loop."""

# ruff: noqa: NPY002  (timm draws from the global state of NumPy)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.loss import SoftTargetCrossEntropy
from timm_loop import train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nfm_theory as nt
from nfm_theory.integrations.timm import SharedDraw, TimmMixup
from nfm_theory.setting.draws import Draw

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def build(**options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).train()
    return TimmMixup(model, [""], nt.Law(), num_classes=3, **options)


@pytest.mark.parametrize("mode", ["batch", "elem", "pair"])
@pytest.mark.parametrize("seed", range(3))
def test_mixing_equals_that_of_timm_with_the_same_weights(mode, seed):
    """timm mixes sample i with n - 1 - i in every mode; its draws are replayed here."""
    theirs, ours = Mixup(mode=mode, num_classes=3), build(mode=mode)
    np.random.seed(seed)
    state = np.random.get_state()
    inputs, targets = theirs(X.clone(), Y)
    np.random.set_state(state)
    if mode == "batch":
        lam = torch.full((8,), theirs._params_per_batch()[0])
    else:
        lam = torch.from_numpy(theirs._params_per_elem(8 if mode == "elem" else 4)[0]).float()
        lam = torch.cat([lam, lam.flip(0)]) if mode == "pair" else lam
    draw = Draw(torch.arange(8), lam, torch.arange(8).flip(0))
    same, labels = ours(X, Y, replay=SharedDraw("", draw, 8))
    torch.testing.assert_close(same, inputs)
    torch.testing.assert_close(labels, targets)
    assert SoftTargetCrossEntropy()(inputs[:, 0, 0, :3], labels).isfinite()


def test_the_areas_of_the_boxes_have_the_law_of_those_of_timm():
    """The mean and the variance of the share that stays, for boxes cut at the border, λ from Beta(1, 1)."""
    np.random.seed(0)
    theirs = np.array([cutmix_bbox_and_lam((3, 32, 24), np.random.beta(1, 1))[1] for _ in range(4000)])
    mixup = build(mode="elem", cutmix_alpha=1.0, switch_prob=1.0, generator=torch.Generator().manual_seed(0))
    x, y = torch.zeros(4000, 1, 32, 24), torch.zeros(4000, dtype=torch.long)
    mixup(x, y)
    ours = mixup.last.draw.lam.double().numpy()
    error = (theirs.var() / 4000 + ours.var() / 4000) ** 0.5
    assert abs(theirs.mean() - ours.mean()) < 5 * error
    spread = [((z - z.mean()) ** 2) for z in (theirs, ours)]
    assert abs(spread[0].mean() - spread[1].mean()) < 5 * (sum(s.var() / 4000 for s in spread)) ** 0.5


def test_switched_off_the_targets_equal_those_of_timm():
    theirs, ours = Mixup(num_classes=3, label_smoothing=0.1), build(label_smoothing=0.1)
    theirs.mixup_enabled = ours.mixup_enabled = False
    inputs, targets = theirs(X.clone(), Y)
    same, labels = ours(X, Y)
    torch.testing.assert_close(same, inputs)
    torch.testing.assert_close(labels, targets)


def test_the_loop_of_the_book():
    torch.manual_seed(0)
    y = torch.arange(64) % 2
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)) + y.reshape(-1, 1, 1, 1)
    loader = DataLoader(TensorDataset(x, y), 16)
    model, losses = train(loader, 2, epochs=8, mixup_off_epoch=6)
    assert losses[-1] < losses[0]
    assert F.cross_entropy(model(x), y).item() < 0.6
