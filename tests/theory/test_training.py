import copy
import datetime
import io
import os
import tempfile

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import finish, generator, mlp, preact_resnet18, randn, small_cnn
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import nfm_theory as nt
from nfm_theory import JSDConsistency, LayerDraw, NoisyFeatureMixup

NOISY = nt.Law.released(add_noise=0.4, mult_noise=0.2)
MIXUP = nt.Law()
X, Y = randn(0, 6, 3), torch.tensor([0, 2, 1, 1, 0, 2])


def network(seed=0):
    """Layers "1" and "3" are hidden activations."""
    return mlp(seed, [3, 5, 4, 3]).train()


def build(model, layers=("", "1", "3"), law=MIXUP, seed=0, **options):
    options = {"num_classes": 3, "generator": generator(seed), **options}
    return NoisyFeatureMixup(model, layers, law, **options)


def output_of(model, layer, x):
    """What the layer passes on, mixed or not, seen by a hook that runs last; and the model's outputs."""
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append(output))
    outputs = model(x)
    handle.remove()
    return seen[0], outputs


def soft(lam, index, y=Y, classes=3):
    labels = F.one_hot(y, classes).double()
    return lam * labels + (1 - lam) * labels[index]


# The step is that of the theory -----------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    layer=st.sampled_from(["", "1", "3"]),
    alpha=st.sampled_from([0.0, 0.2, 1.0, 2.5]),
    beta=st.sampled_from([None, 0.7]),
    levels=st.sampled_from([(0.0, 0.0), (0.4, 0.0), (0.0, 0.2), (0.4, 0.2)]),
    noise=st.sampled_from(["normal", "uniform", "rademacher", "released"]),
)
def test_losses_are_the_mixed_label_losses_of_the_problem(seed, layer, alpha, beta, levels, noise):
    model = network(seed)
    law = nt.Law(alpha, beta, *levels, noise)
    problem = nt.Problem(model, X, Y, layer=layer, law=law)
    nfm = build(model, layer, law, seed)
    inputs, targets = nfm(X, Y)
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    assert_close(losses, problem.mixed_label_losses(nfm.last.draw), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer", ["", "1", "3"])
def test_features_are_perturbed_by_the_written_formula(layer):
    model = network()
    plain = output_of(model, layer, X)[0] if layer else X
    nfm = build(model, layer, NOISY)
    inputs, targets = nfm(X, Y)
    mixed = output_of(model, layer, inputs)[0] if layer else inputs
    draw = nfm.last.draw
    lam = draw.lam[0]
    expected = (1 + 0.2 * draw.mult) * (lam * plain + (1 - lam) * plain[draw.index]) + 0.4 * draw.add
    assert_close(mixed, expected, rtol=1e-10, atol=1e-12)
    assert_close(targets, soft(lam, draw.index))
    assert torch.equal(mixed, nt.perturb(plain, draw, NOISY))


@pytest.mark.parametrize("layer", ["", "1"])
def test_draws_are_those_of_sample_draw_as_trained(layer):
    model = network()
    law = nt.Law.released(alpha=0.7, add_noise=0.4, mult_noise=0.2)
    nfm = build(model, layer, law, seed=3)
    model(nfm(X, Y)[0])
    source = generator(3)
    torch.randint(1, (), generator=source)  # the layer
    shape = (5,) if layer else (3,)
    expected = nt.sample_draw(6, shape, law, unmixed=False, as_trained=True, generator=source, dtype=torch.float64)
    for name in ("anchor", "lam", "index", "add", "mult"):
        assert torch.equal(getattr(nfm.last.draw, name), getattr(expected, name))


def test_many_steps_have_the_moments_of_the_laws():
    """Mean of features and targets, second moment of the noise, layers and partners: 5 standard errors."""
    steps = 1500
    model = network()
    law = nt.Law.released(alpha=0.5, beta=1.5, add_noise=0.4, mult_noise=0.2)
    nfm = build(model, ("", "1"), law)
    counts, inputs, targets, squares = 0, [], [], []
    for _ in range(steps):
        mixed, target = nfm(X, Y)
        nfm.disarm()
        targets.append(target)
        if nfm.last.layer == "":
            inputs.append(mixed)
            squares.append(((mixed - nt.perturb(X, nfm.last.draw, MIXUP)) ** 2).mean())
        else:
            counts += 1
    assert abs(counts - steps / 2) <= 5 * (steps / 4) ** 0.5
    labels = F.one_hot(Y, 3).double()
    mean_lam = 0.5 / (0.5 + 1.5)  # not that of the unmixed law, 0.375
    for sample, source in ((torch.stack(inputs), X), (torch.stack(targets), labels)):
        expected = mean_lam * source + (1 - mean_lam) * source.mean(0)
        stderr = sample.std(0) / len(sample) ** 0.5
        assert ((sample.mean(0) - expected).abs() <= 5 * stderr).all()
    draws = nt.sample_draw(
        6, (3,), law, replicates=2000, unmixed=False, as_trained=True, generator=generator(1), dtype=torch.float64
    )
    reference = (nt.perturb(X, draws, law) - nt.perturb(X, draws, MIXUP)).reshape(2000, -1).square().mean(1)
    ours = torch.stack(squares)
    stderr = (ours.var() / len(ours) + reference.var() / 2000).sqrt()
    assert abs(ours.mean() - reference.mean()) <= 5 * stderr


def test_gradients_reach_the_layers_before_the_mixing():
    model = network()
    nfm = build(model, "3", NOISY)
    inputs, targets = nfm(X, Y)
    F.cross_entropy(model(inputs), targets).backward()
    draw, (w0, b0, w2, b2, w4, b4) = nfm.last.draw, [p.detach().clone().requires_grad_() for p in model.parameters()]
    h = torch.tanh(F.linear(torch.tanh(F.linear(X, w0, b0)), w2, b2))
    lam = draw.lam[0]
    h = (1 + 0.2 * draw.mult) * (lam * h + (1 - lam) * h[draw.index]) + 0.4 * draw.add
    expected = torch.autograd.grad(
        F.cross_entropy(F.linear(h, w4, b4), soft(lam, draw.index)), (w0, b0, w2, b2, w4, b4)
    )
    assert_close([p.grad for p in model.parameters()], list(expected), rtol=1e-10, atol=1e-12)


# Once, in training mode -------------------------------------------------------------------------------------


def test_one_training_pass_is_mixed_and_evaluation_does_not_count():
    model = network()
    plain = model(X)
    nfm = build(model, "1", NOISY)
    inputs, _ = nfm(X, Y)
    assert inputs is X
    assert nfm.last.draw.add is None
    model.eval()
    assert torch.equal(model(X), plain)
    model.train()
    assert not torch.allclose(model(X), plain)
    assert nfm.last.draw.add.shape == (6, 5)
    model.eval()
    assert torch.equal(model(X), plain)


def test_frozen_norms_do_not_stop_the_mixing():
    model = small_cnn(0).train()
    model[1].eval()
    x = randn(1, 6, 1, 6, 6)
    plain = model(x)
    nfm = build(model, "1")
    nfm(x, Y)
    assert not torch.allclose(model(x), plain)


def test_the_model_keeps_its_parameters_and_loses_its_hooks():
    model = network()
    keys = list(model.state_dict())
    with build(model, ("", "1")) as nfm:
        assert list(model.state_dict()) == keys
        assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 3
        nfm(X, Y)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="hooks have been removed"):
        nfm(X, Y)


# Replay, seeds, checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["", "1", "3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_replay_is_bit_identical(layer, dtype):
    model, x = network().to(dtype), X.to(dtype)
    nfm = build(model, layer, NOISY)
    inputs, targets = nfm(x, Y)
    outputs = model(inputs)
    assert outputs.dtype == targets.dtype == dtype
    step, state = nfm.last, nfm.state_dict()["generator"]
    again, same_targets = nfm(x, Y, replay=step)
    assert torch.equal(again, inputs)
    assert torch.equal(same_targets, targets)
    assert torch.equal(model(again), outputs)
    assert torch.equal(nfm.state_dict()["generator"], state)


def test_replay_takes_rows_in_any_order():
    model = network()
    nfm = build(model, "1", NOISY)
    outputs = model(nfm(X, Y)[0])
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    step = nfm.last
    inputs, targets = nfm(X, Y, replay=LayerDraw("1", step.draw[order]))
    assert_close(model(inputs), outputs[order])
    assert_close(targets, soft(step.draw.lam[0], step.draw.index)[order])


def train(model, nfm, steps):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        inputs, targets = nfm(X, Y)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_training_resumes_bit_by_bit():
    reference = train(model := network(), build(model, law=NOISY, seed=5), 6)
    model = network()
    nfm = build(model, law=NOISY, seed=5)
    train(model, nfm, 3)
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "nfm": nfm.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved)
    model = network(seed=9)
    model.load_state_dict(state["model"])
    nfm = build(model, law=NOISY, seed=77)
    nfm.load_state_dict(state["nfm"])
    for ours, theirs in zip(train(model, nfm, 3), reference, strict=True):
        assert torch.equal(ours, theirs)


def test_the_global_generator_serves_where_none_is_given():
    model = network()
    nfm = build(model, law=NOISY, generator=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = model(nfm(X, Y)[0])
        torch.manual_seed(0)
        assert torch.equal(model(nfm(X, Y)[0]), first)
    assert nfm.state_dict() == {"generator": None}
    nfm.load_state_dict({"generator": None})
    with pytest.raises(ValueError, match="saved with one, this object has no generator"):
        nfm.load_state_dict(build(network()).state_dict())
    with pytest.raises(ValueError, match="saved with none, this object has a generator"):
        build(network()).load_state_dict({"generator": None})


def test_a_copied_model_is_never_mixed():
    model = network()
    nfm = build(model, "1", NOISY)
    nfm(X, Y)
    average = torch.optim.swa_utils.AveragedModel(model)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    plain = network()(X)
    assert torch.equal(average(X), plain)
    assert torch.equal(loaded(X), plain)
    assert not torch.allclose(model(X), plain)  # still armed: the copies did not use it up


class Trainer(nn.Module):
    """As a Lightning module holds both."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.nfm = build(self.net, "1", NOISY)

    def training_step(self, batch, batch_idx):
        inputs, targets = self.nfm(*batch)
        return F.cross_entropy(self.net(inputs), targets)


def test_copied_together_with_its_model_it_goes_on_alike():
    trainer = Trainer()
    other = copy.deepcopy(trainer)
    assert other.nfm._model is other.net
    assert torch.equal(trainer.training_step((X, Y), 0), other.training_step((X, Y), 0))
    assert sum(len(m._forward_hooks) for m in other.nfm._model.modules()) == 4  # two of them without action


# Labels -----------------------------------------------------------------------------------------------------


def mixed(y, **options):
    options = {"num_classes": None, **options}
    nfm = build(network(), "", **options)
    return nfm(X, y)[1], nfm.last.draw


def test_label_smoothing_and_distributions():
    targets, draw = mixed(Y, num_classes=3, label_smoothing=0.1)
    lam = draw.lam[:, None]
    smooth = 0.9 * F.one_hot(Y, 3) + 0.1 / 3
    assert_close(targets, lam * smooth + (1 - lam) * smooth[draw.index])
    from_distributions, _ = mixed(F.one_hot(Y, 3).double(), label_smoothing=0.1)
    assert_close(from_distributions, targets)
    reference = F.cross_entropy(randn(4, 6, 3), Y, label_smoothing=0.1)
    assert_close(F.cross_entropy(randn(4, 6, 3), smooth), reference)


def test_several_classes_at_once_and_single_samples_are_mixed():
    many = (randn(5, 6, 3) > 0).double()
    targets, draw = mixed(many)
    assert_close(targets, draw.lam[0] * many + (1 - draw.lam[0]) * many[draw.index])
    nfm = build(network(), "")
    alone, target = nfm(X[:1], Y[:1])
    assert torch.equal(alone, X[:1])
    assert_close(target, F.one_hot(Y[:1], 3).to(target))


def test_numbers_are_mixed_as_they_are():
    y = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    targets, draw = mixed(y)
    assert targets.dtype == torch.float32
    lam = draw.lam.float()
    assert_close(targets, lam * y + (1 - lam) * y[draw.index])


@pytest.mark.parametrize("layer", ["", "1"])
def test_without_mixing_only_noise_is_left_and_no_sample_changes_its_place(layer):
    model = network()
    nfm = build(model, layer, nt.Law(alpha=0.0, add_noise=0.3))
    for _ in range(20):
        inputs, targets = nfm(X, Y)
        model(inputs)
        if not layer:
            assert_close(inputs, X + 0.3 * nfm.last.draw.add)
        assert torch.equal(targets, F.one_hot(Y, 3).to(targets))


BAD_LABELS = [
    (Y, {}, "give `num_classes` for class indices"),
    (Y + 1, {"num_classes": 3}, r"class indices in 0\.\.2 .*got 1\.\.3"),
    (Y.double(), {"num_classes": 3}, "leave `num_classes` out"),
    (torch.ones(6, 4), {"num_classes": 3}, r"distributions \(n, 3\)"),
    (torch.ones(6, 4, 2).long(), {}, "give `num_classes` for class indices"),
    (torch.ones(6, 3).long(), {"num_classes": 3}, "class indices"),
    (torch.ones(6), {"label_smoothing": 0.1}, "there are no classes"),
    (Y[:5], {"num_classes": 3}, "got 6 and 5 with views=1"),
]


@pytest.mark.parametrize(("y", "options", "match"), BAD_LABELS)
def test_unfit_labels_are_refused_and_nothing_is_armed(y, options, match):
    model = network()
    nfm = build(model, "1", **{"num_classes": None, **options})
    with pytest.raises(ValueError, match=match):
        nfm(X, y)
    assert torch.equal(model(X), model(X))


# Errors -----------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ({"layers": None}, TypeError, r"layer_names\(model\)"),
    ({"layers": ()}, ValueError, "one or more different names"),
    ({"layers": ("1", "1")}, ValueError, "one or more different names"),
    ({"layers": "11"}, ValueError, r"no module '11' \(did you mean '1'\?\); "),
    ({"law": None}, TypeError, r"law: expected an nfm_theory\.Law, got NoneType.*Law\.released\(\.\.\.\)"),
    ({"law": {"add_noise": 0.4}}, TypeError, r"law: expected an nfm_theory\.Law, got dict"),
    ({"law": "released"}, TypeError, r"law: expected an nfm_theory\.Law, got str"),
    ({"layers": {"1": MIXUP}}, ValueError, "law: expected none beside a mapping"),
    ({"layers": {"1": 0.4}, "law": None}, TypeError, r"law: expected an nfm_theory\.Law, got float"),
    ({"layers": {"1": MIXUP, "3": {"alpha": 1.0}}, "law": None}, TypeError, "got dict"),
    ({"layers": {}, "law": None}, ValueError, "one or more different names"),
    ({"layers": {"11": MIXUP}, "law": None}, ValueError, r"no module '11' \(did you mean '1'\?\); "),
    ({"num_classes": 1}, ValueError, r"pass y\.float\(\)"),
    ({"label_smoothing": 1.0}, ValueError, "label_smoothing"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD_OPTIONS)
def test_unfit_options_are_refused(options, error, match):
    model = network()
    with pytest.raises(error, match=match):
        build(model, **options)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


BAD_LAWS = [
    ({"alpha": -1.0}, "alpha"),
    ({"add_noise": -1.0}, "add_noise"),
    ({"mult_noise": float("nan")}, "mult_noise"),
    ({"noise": "pink"}, "noise: expected one of"),
]


@pytest.mark.parametrize(("options", "match"), BAD_LAWS)
def test_laws_out_of_range_are_refused_before_there_is_a_step(options, match):
    with pytest.raises(ValueError, match=match):
        build(network(), law=nt.Law(**options))


def test_unfit_models_are_refused():
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got function"):
        build(lambda x: x)
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        build(nn.DataParallel(network()))


def test_an_unused_mixing_is_an_error_until_it_is_dropped():
    nfm = build(network(), "1")
    nfm(X, Y)
    with pytest.raises(RuntimeError, match=r"features at layer '1' are not.*mixup\.disarm\(\)"):
        nfm(X, Y)
    nfm.disarm()
    nfm(X, Y)


def test_evaluation_mode_is_refused():
    model = network().eval()
    with pytest.raises(RuntimeError, match=r"call model\.train\(\)"):
        build(model)(X, Y)


def test_another_batch_is_refused():
    model = network()
    nfm = build(model, "1")
    nfm(X, Y)
    with pytest.raises(ValueError, match=r"features of the 6 samples.*got shape \(4, 5\)"):
        model(X[:4])


def test_indices_are_mixed_behind_the_embedding_only():
    model = finish(lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)), 0).train()
    tokens = torch.randint(7, (6, 3), generator=generator(0))
    with pytest.raises(TypeError, match="name the embedding instead"):
        build(model, ("", "0"))(tokens, Y)
    nfm = build(model, "0")
    _, targets = nfm(tokens, Y)
    F.cross_entropy(model(tokens), targets.double()).backward()
    assert targets.dtype == torch.get_default_dtype()
    assert nfm.last.draw.lam.dtype == torch.get_default_dtype()


class Odd(nn.Module):
    """Layers that cannot be mixed, each in its way."""

    def __init__(self):
        super().__init__()
        self.first, self.recurrent = nn.Linear(3, 3), nn.GRU(3, 3, batch_first=True)
        self.shared, self.unused = nn.Tanh(), nn.Linear(3, 3)

    def forward(self, x):
        x = self.shared(self.shared(self.first(x)))
        return self.recurrent(x[:, None])[0][:, 0]


ODD = [
    ("recurrent", TypeError, "returns a single tensor"),
    ("shared", ValueError, "called once in a forward pass"),
    ("unused", RuntimeError, "the pass has ended without"),
]


@pytest.mark.parametrize(("layer", "error", "match"), ODD)
def test_unfit_layers_are_refused_in_the_forward_pass(layer, error, match):
    model = finish(Odd, 0).train()
    nfm = build(model, layer)
    nfm(X, Y)
    with pytest.raises(error, match=match):
        model(X)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage, self.mix, self.out = nn.Sequential(nn.Linear(3, 5), nn.Tanh()), nn.Identity(), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.mix(checkpoint(self.stage, x, use_reentrant=False)))


def test_recomputed_layers_are_refused_and_the_advice_works():
    model = finish(Checkpointed, 0).train()
    with build(model, "stage") as nfm:
        nfm(X, Y)
        outputs = model(X)
        with pytest.raises(RuntimeError, match=r"put an nn\.Identity behind"):
            outputs.sum().backward()
    nfm = build(model, "mix", NOISY)
    nfm(X, Y)
    model(X).sum().backward()


def test_replays_that_do_not_fit_are_refused():
    model = network()
    nfm = build(model, "1", NOISY)
    nfm(X, Y)
    before = nfm.last
    model(X)
    with pytest.raises(ValueError, match="no noise add and mult"):
        nfm(X, Y, replay=before)
    with pytest.raises(ValueError, match="draw of 4 rows"):
        nfm(X[:4], Y[:4], replay=LayerDraw("1", nfm.last.draw[:3]))
    with pytest.raises(ValueError, match=r"one of the layers \['1'\], got '3'"):
        nfm(X, Y, replay=LayerDraw("3", nfm.last.draw))


# Where it is used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_dtype_of_the_features(dtype):
    model = small_cnn(0).float().train()
    x = randn(1, 6, 1, 6, 6).float()
    nfm = build(model, "4", NOISY)
    with torch.autocast("cpu", dtype=dtype):
        inputs, targets = nfm(x, Y)
        seen, outputs = output_of(model, "4", inputs)
        loss = F.cross_entropy(outputs, targets)
    assert seen.dtype == nfm.last.draw.add.dtype == dtype
    assert targets.dtype == loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def timm_style_epoch(model, loader, optimizer, loss_fn, mixup_fn):
    losses = []
    for x, target in loader:
        x, target = mixup_fn(x, target)
        loss = loss_fn(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_timm_style_loop():
    model = preact_resnet18(0).train()
    nfm = build(model, ("", "layer1", "layer2", "layer3"), NOISY)
    x = randn(0, 6, 3, 8, 8)
    losses = timm_style_epoch(
        model, [(x, Y)] * 8, torch.optim.SGD(model.parameters(), 0.05), nn.CrossEntropyLoss(), nfm
    )
    assert len(losses) == 8
    assert all(loss < 10 for loss in losses)


def test_lightning_style_step():
    trainer = Trainer()
    loss = trainer.training_step((X, Y), 0)
    loss.backward()
    assert all(p.grad is not None for p in trainer.parameters())
    assert not any("nfm" in name for name in trainer.state_dict())


@pytest.mark.parametrize("layer", ["", "1"])
def test_noisymix_step_with_three_views_in_one_pass(layer):
    """As the released code: one λ and one permutation within each view, noise and its scale for each view alone."""
    model, views = network(), torch.stack([X, X + 0.1, X - 0.1])
    nfm = build(model, layer, NOISY)
    inputs, targets = nfm(views.flatten(0, 1), Y, views=3)
    logits = model(inputs).unflatten(0, (3, 6))
    loss = F.cross_entropy(logits[0], targets) + JSDConsistency()(*logits)
    loss.backward()
    draw = nfm.last.draw
    assert torch.equal(draw.anchor, torch.arange(18))
    assert len(set(draw.lam.tolist())) == 1
    assert_close(targets, soft(draw.lam[0], draw.index[:6]))
    for k in range(3):
        part = draw[6 * k : 6 * k + 6]
        assert torch.equal(part.index, draw.index[:6] + 6 * k)
        outputs = nt.split(model.eval(), views[k], layer=layer)
        alone = nt.Draw(part.anchor - 6 * k, part.lam, part.index - 6 * k, part.add, part.mult)
        assert_close(outputs.head(nt.perturb(outputs.encode(views[k]), alone, NOISY)), logits[k])
    model.train()
    source = generator(0)
    torch.randint(1, (), generator=source)
    nt.sample_draw(6, (), MIXUP, as_trained=True, generator=source, dtype=X.dtype)
    law = NOISY.noises[0]
    assert torch.equal(draw.add, law.sample(draw.add.shape, shared=6, generator=source, dtype=X.dtype))


def test_compiled_models_are_refused_when_hooks_would_be_ignored():
    model = network()
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="on the plain model first, then compile it"):
        build(compiled)
    block = nn.Sequential(torch.compile(network(), backend="eager"), nn.Linear(3, 3).double())
    with pytest.raises(ValueError, match=r"hook at layer '0\.1'"):
        build(block, "0.1")
    own = network()
    own.compile(backend="eager")
    with pytest.raises(ValueError, match="it is compiled"):
        build(own, "1")
    build(compiled, "")  # mixes inputs, needs no hook
    build(block, "1")


# The compiler itself looks at .grad of the features on which a graph starts, and hides the warning, but not the error
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.compile
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_model_compiled_afterwards_is_mixed_alike(backend):
    torch._dynamo.reset()
    model = preact_resnet18(0).train()
    x = randn(0, 6, 3, 8, 8)
    nfm = build(model, ("", "layer1", "layer2"), NOISY, seed=1)
    compiled = torch.compile(model, backend=backend)
    layers = set()
    for _ in range(8):
        outputs = compiled(nfm(x, Y)[0])
        layers.add(nfm.last.layer)
        grads = torch.autograd.grad(outputs.square().mean(), list(model.parameters()))
        reference = model(nfm(x, Y, replay=nfm.last)[0])
        expected = torch.autograd.grad(reference.square().mean(), list(model.parameters()))
        assert_close(outputs, reference, rtol=1e-10, atol=1e-12)
        assert_close(grads, expected, rtol=1e-8, atol=1e-10)
        with pytest.raises(RuntimeError, match="one forward pass in training mode"):
            compiled(x)
        with nfm.clean():
            assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-12)
        with nfm.step(x, Y, replay=nfm.last) as (inputs, _):
            assert_close([compiled(inputs), compiled(inputs)], [reference, reference], rtol=1e-10, atol=1e-12)
    assert layers == {"", "layer1", "layer2"}
    compiled.eval()
    assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-12)
    nfm.remove()
    compiled.train()
    assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-12)


# Two processes ----------------------------------------------------------------------------------------------

LAYERS = ("", "1", "3")


def rank_batch(rank):
    return randn(100 + rank, 6, 3), Y.roll(rank)


def distributed(rank, folder):
    """One rank: wrapped after and before; saves what it has seen."""
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    limit = datetime.timedelta(minutes=2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    record = [*distributed_steps(rank, False), *distributed_steps(rank, True)]
    torch.save(record, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def other_process(_, folder):
    torch.set_num_threads(1)
    distributed(1, folder)


def distributed_steps(rank, wrap_first):
    """Draws and gradients of four steps; the same seed on all ranks."""
    model = network()
    if wrap_first:
        parallel = nn.parallel.DistributedDataParallel(model)
        nfm = build(parallel, LAYERS, NOISY, seed=2)
    else:
        nfm = build(model, LAYERS, NOISY, seed=2)
        parallel = nn.parallel.DistributedDataParallel(model)
    x, y = rank_batch(rank)
    record = []
    for _ in range(4):
        inputs, targets = nfm(x, y)
        parallel.zero_grad()
        F.cross_entropy(parallel(inputs), targets).backward()
        draw = nfm.last.draw
        parts = {name: getattr(draw, name) for name in ("anchor", "lam", "index", "add", "mult")}
        record.append((nfm.last.layer, parts, [p.grad.clone() for p in model.parameters()]))
    return record


def test_two_processes_have_the_gradient_of_one_with_both_batches():
    with tempfile.TemporaryDirectory() as folder:
        other = torch.multiprocessing.spawn(other_process, (folder,), nprocs=1, join=False, daemon=True)
        distributed(0, folder)  # this process is the first one
        while not other.join():
            pass
        records = [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in range(2)]
    model = network()
    nfm = build(model, LAYERS, NOISY)
    (x0, y0), (x1, y1) = rank_batch(0), rank_batch(1)
    for (layer, one, grads), (other_layer, two, other_grads) in zip(*records, strict=True):
        assert layer == other_layer
        assert torch.equal(one["index"], two["index"])
        assert torch.equal(one["add"], two["add"])
        both = {name: torch.cat([one[name], two[name] + 6 * (name in ("anchor", "index"))]) for name in one}
        inputs, targets = nfm(torch.cat([x0, x1]), torch.cat([y0, y1]), replay=LayerDraw(layer, nt.Draw(**both)))
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        expected = [p.grad for p in model.parameters()]
        assert_close(grads, expected, rtol=1e-10, atol=1e-12)
        assert_close(other_grads, expected, rtol=1e-10, atol=1e-12)
