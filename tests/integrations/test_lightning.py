"""The callback in Lightning's Trainer, against a plain loop with the same draws."""

import copy

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning_loop import Classifier, train
from problems import generator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nfm_theory as nt
from nfm_theory.integrations.lightning import MixupCallback
from nfm_theory.integrations.timm import TimmMixup

LAW = nt.Law(add_noise=0.3, mult_noise=0.2)
QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False,
}  # fmt: skip


def data(n=48):
    """Two noisy classes on a line, and their labels."""
    y = torch.arange(n) % 2
    x = torch.randn(n, 4, generator=generator(0)) + 2.0 * (2 * y - 1).unsqueeze(1)
    return TensorDataset(x, y)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def loader():
    return DataLoader(data(), 16)


def same(batches):
    """A loader that hands out the same objects in every epoch."""
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


class Recorder(Classifier):
    """Keeps what its training steps see."""

    def __init__(self, net):
        super().__init__(net)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch[1]))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, mixup, loaders=None, epochs=2, **options):
    callback = MixupCallback(mixup, **{name: options.pop(name) for name in ("stop_epoch", "keys") if name in options})
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[callback], **{**QUIET, **options})
    trainer.fit(module, loaders or loader())
    return trainer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_callback_trains_as_a_plain_loop(precision, accumulate):
    module = Recorder(network())
    mixup = nt.NoisyFeatureMixup(module.net, ["", "1"], LAW, num_classes=2, generator=generator(1))
    fit(module, mixup, precision=precision, accumulate_grad_batches=accumulate)

    net = network().train()
    mixup = nt.NoisyFeatureMixup(net, ["", "1"], LAW, num_classes=2, generator=generator(1))
    optimizer, batches = torch.optim.SGD(net.parameters(), 0.1), 2 * list(loader())
    for k, (x, y) in enumerate(batches, 1):
        inputs, targets = mixup(x, y)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            loss = F.cross_entropy(net(inputs), targets)
        (loss / accumulate).backward()
        if k % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    for ours, plain in zip(module.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, plain)
    assert not torch.equal(net[0].weight, network()[0].weight)


def test_mixing_ends_at_the_epoch_and_the_data_stay_as_they_are():
    module, batches = Recorder(network()), [list(batch) for batch in loader()]
    kept = copy.deepcopy(batches)
    mixup = TimmMixup(module.net, [""], LAW, num_classes=2, label_smoothing=0.0, generator=generator(1))
    fit(module, mixup, same(batches), epochs=3, stop_epoch=2)
    pure = {epoch: all(bool((y.max(1).values == 1).all()) for e, y in module.seen if e == epoch) for epoch in range(3)}
    assert pure == {0: False, 1: False, 2: True}
    assert all(torch.equal(a, b) for old, new in zip(kept, batches, strict=True) for a, b in zip(old, new, strict=True))


class Named(Recorder):
    def training_step(self, batch, batch_idx):
        return super().training_step([batch["image"], batch["label"]], batch_idx)


def test_batches_may_be_dicts():
    module = Named(network())
    mixup = nt.NoisyFeatureMixup(module.net, ["1"], LAW, num_classes=2, generator=generator(1))
    batches = same([{"image": x, "label": y} for x, y in loader()])
    fit(module, mixup, batches, epochs=1, keys=("image", "label"))
    assert all(y.shape == (16, 2) for _, y in module.seen)


def test_validation_is_not_mixed():
    class Checked(Recorder):
        def validation_step(self, batch, batch_idx):
            assert torch.equal(self.net(batch[0]), copy.deepcopy(self.net)(batch[0]))
            self.checked = True

    module = Checked(network())
    mixup = nt.NoisyFeatureMixup(module.net, ["1"], LAW, num_classes=2)
    callback = MixupCallback(mixup)
    lightning.Trainer(max_epochs=1, callbacks=[callback], **QUIET).fit(module, loader(), loader())
    assert module.checked


def test_a_training_that_resumes_has_the_same_draws(tmp_path):
    def build():
        module = Recorder(network())
        return module, nt.NoisyFeatureMixup(module.net, ["", "1"], LAW, num_classes=2, generator=generator(1))

    whole, mixup = build()
    fit(whole, mixup, epochs=4)
    first, mixup = build()
    fit(first, mixup, epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    second, mixup = build()
    trainer = lightning.Trainer(max_epochs=4, callbacks=[MixupCallback(mixup)], **QUIET)
    trainer.fit(second, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


class Idle(Recorder):
    def training_step(self, batch, batch_idx):
        return sum(p.sum() for p in self.net.parameters())


class Failing(Recorder):
    def training_step(self, batch, batch_idx):
        raise KeyError("lost")


def test_what_does_not_fit_is_refused_and_leaves_a_clean_model():
    net = network()
    mixup = nt.NoisyFeatureMixup(net, ["1"], LAW, num_classes=2)
    with pytest.raises(TypeError, match="expected a list or a dict, in which inputs and targets can be replaced"):
        fit(Recorder(net), mixup, same([tuple(batch) for batch in loader()]))
    with pytest.raises(RuntimeError, match="no forward pass in training mode followed"):
        fit(Idle(net), mixup)
    with pytest.raises(KeyError, match="lost"):
        fit(Failing(net), mixup)
    with pytest.raises(ValueError, match="stop_epoch: expected the number of an epoch >= 0"):
        MixupCallback(mixup, stop_epoch=-1)
    x = data().tensors[0]
    assert torch.equal(net.train()(x), net(x))
    fit(Recorder(net), mixup, epochs=1)


def test_the_loop_of_the_book():
    torch.manual_seed(0)
    net = network()
    x, y = data().tensors
    before = F.cross_entropy(net(x), y).item()
    trainer = train(net, ["", "1"], loader(), loader(), 2, max_epochs=12, precision="bf16-mixed", **QUIET)
    assert F.cross_entropy(net(x), y).item() < 0.8 * before
    assert trainer.callback_metrics["accuracy"] > 0.9
