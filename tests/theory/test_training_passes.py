"""Which forward passes a training step mixes: one after a call, all inside `step`, none inside `clean`."""

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from problems import finish, generator, randn
from test_training import MIXUP, NOISY, X, Y, build, network, output_of
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset, default_collate

import nfm_theory as nt
from nfm_theory import NoisyFeatureMixup

LAYERS = ["", "1", "3"]
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def parts(model):
    """All hooks that are left on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Wrapper(nn.Module):
    """As in wrapper classes whose training step calls `self.net(x)`."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x)


# After a call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_second_pass_is_refused_in_the_first_step_whatever_layer_is_drawn(seed):
    model = network()
    nfm = build(model, LAYERS, NOISY, seed)
    inputs, _ = nfm(X, Y)
    model(inputs)
    for again in (inputs, inputs + 0.1, X[:4]):
        with pytest.raises(RuntimeError, match=r"one forward pass in training mode.*with mixup\.step.*mixup\.clean"):
            model(again)
    model(nfm(X, Y)[0])  # the next step works


def test_mixup_at_the_input_has_no_hooks_and_mixes_every_pass_on_its_inputs():
    model = network()
    nfm = build(model, "", NOISY)
    inputs, _ = nfm(X, Y)
    assert parts(model) == 0
    assert torch.equal(model(inputs), model(inputs))
    assert torch.equal(model(X), network()(X))


@pytest.mark.parametrize("seed", range(6))
def test_an_unused_call_is_refused_whatever_layer_is_drawn(seed):
    model = network()
    nfm = build(model, LAYERS, seed=seed)
    nfm(X, Y)
    with pytest.raises(RuntimeError, match="no forward pass in training mode followed"):
        nfm(X, Y)


@pytest.mark.parametrize("layers", [["", "net.1"], ["net.1"], ["net.1", "net.3"], {"": MIXUP, "net.3": NOISY}])
def test_a_loop_that_calls_a_part_of_the_model_is_refused_in_its_first_step(layers):
    for seed in range(4):
        whole = Wrapper().train()
        nfm = build(whole, layers, None if isinstance(layers, dict) else MIXUP, seed)
        inputs, _ = nfm(X, Y)
        with pytest.raises(RuntimeError, match=r"whole model, Wrapper.*build NoisyFeatureMixup on the part that your"):
            whole.net(inputs)
        nfm.disarm()
        assert torch.equal(whole.net(X), network()(X))
        whole(nfm(X, Y)[0])
    whole = Wrapper().train()  # the way out
    nfm = build(whole.net, ["", "1"])
    for _ in range(8):
        F.cross_entropy(whole.net(nfm(X, Y)[0]), Y).backward()


def test_without_more_steps_training_goes_on_as_usual():
    model = network()
    nfm = build(model, LAYERS)
    model(nfm(X, Y)[0])
    nfm.disarm()
    assert torch.equal(model(X), network()(X))


class Fragile(nn.Module):
    """Fails in front of the layer, or behind it, on request."""

    def __init__(self):
        super().__init__()
        self.front, self.back, self.fails = nn.Linear(3, 3), nn.Linear(3, 3), ""

    def forward(self, x):
        if self.fails == "front":
            raise ArithmeticError
        x = self.front(x)
        if self.fails == "back":
            raise ArithmeticError
        return self.back(x)


@pytest.mark.parametrize("place", ["front", "back"])
def test_a_pass_that_fails_leaves_nothing_to_mix(place):
    model = finish(Fragile, 0).train()
    plain = model(X)
    nfm = build(model, "front", NOISY)
    nfm(X, Y)
    model.fails = place
    with pytest.raises(ArithmeticError):
        model(X)
    model.fails = ""
    with nfm.clean():
        assert torch.equal(model(X), plain)
    with pytest.raises(RuntimeError, match="one forward pass in training mode"):
        model(X)  # the targets are mixed, so a pass without mixing would be wrong
    inputs, _ = nfm(X, Y)  # the next batch
    assert not torch.allclose(model(inputs), plain)
    model.fails = place
    with pytest.raises(ArithmeticError), nfm.step(X, Y):
        model(X)
    model.fails = ""
    assert torch.equal(model(X), plain)


def test_measurements_between_the_steps_are_neither_mixed_nor_counted():
    model = network()
    problem = nt.Problem(model, X, Y, layer="1", law=nt.Law(add_noise=0.4))
    nfm = build(model, LAYERS[1:], NOISY)

    def measured():
        return nt.terms(problem).R2.item(), float(nt.regularizers(problem, method="exact").R2_add)

    truth = measured()
    inputs, targets = nfm(X, Y)
    assert measured() == truth
    F.cross_entropy(model(inputs), targets).backward()
    assert measured() == truth
    penalty = nt.TaylorRegularizer("1", NOISY, generator=generator(0))
    with nfm.step(X, Y) as (inputs, targets):
        (F.cross_entropy(model(inputs), targets) + penalty(model, X, Y)).backward()


# Inside a step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_all_passes_of_a_step_are_mixed_with_one_draw_and_none_outside(layer):
    model = network()
    plain = model(X)
    nfm = build(model, layer, NOISY)
    with nfm.step(X, Y) as (inputs, targets):
        first = model(inputs)
        draw = nfm.last.draw
        with nfm.clean():
            assert torch.equal(model(X), plain)
        second = model(inputs)
        loss = F.cross_entropy(second, targets, reduction="none")
        assert nfm.last.draw.add is draw.add
    assert torch.equal(first, second)
    assert torch.equal(model(X), plain)
    problem = nt.Problem(network(), X, Y, layer=layer, law=NOISY)
    assert_close(loss, problem.mixed_label_losses(draw), **EXACT)


def test_a_step_draws_what_a_call_draws():
    models = network(), network()
    one, other = (build(model, LAYERS, NOISY, seed=4) for model in models)
    for _ in range(8):
        inputs, targets = one(X, Y)
        outputs = models[0](inputs)
        with other.step(X, Y) as (same, labels):
            assert torch.equal(targets, labels)
            assert torch.equal(models[1](same), outputs)
        assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_a_step_of_sharpness_aware_minimization_sees_one_loss():
    """Both gradients are those of the loss with the features mixed by hand, at two places of the parameters."""
    model = network()
    nfm = build(model, "1", NOISY)
    parameters = list(model.parameters())
    with nfm.step(X, Y) as (inputs, targets):
        first = torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p.add_(g, alpha=0.5)
        second = torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters)
    draw = nfm.last.draw
    features = model[1](model[0](X))
    outputs = model[4](model[3](model[2](nt.perturb(features, draw, NOISY))))
    assert_close(second, torch.autograd.grad(F.cross_entropy(outputs, targets), parameters), **EXACT)


def test_closures_of_lbfgs_see_one_loss():
    model = network()
    nfm = build(model, ["1", "3"], NOISY)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=6, line_search_fn="strong_wolfe")
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    with nfm.step(X, Y) as (inputs, targets):
        optimizer.step(closure)
    assert len(losses) > 2
    assert losses[-1] < losses[0]


def test_a_step_mixes_the_layer_of_a_part_that_is_called_alone():
    whole, reference = Wrapper().train(), network()
    nfm, twin = build(whole, ["net.1"], NOISY), build(reference, ["1"], NOISY)
    for _ in range(3):
        with nfm.step(X, Y) as (inputs, _):
            outputs = whole.net(inputs)
            assert torch.equal(whole.net(inputs), outputs)
            assert torch.equal(whole(inputs), outputs)
        assert torch.equal(reference(twin(X, Y)[0]), outputs)
    assert torch.equal(whole.net(X), network()(X))


def test_a_step_can_be_replayed_with_views():
    model, views = network(), torch.cat([X, X + 0.1])
    nfm = build(model, "3", NOISY, view_noise=(1.0, 2.0))
    with nfm.step(views, Y, views=2) as (inputs, _):
        outputs = model(inputs)
    with nfm.step(views, Y, views=2, replay=nfm.last) as (inputs, _):
        assert torch.equal(model(inputs), outputs)


def test_one_step_at_a_time():
    model = network()
    nfm = build(model, "1")
    with nfm.step(X, Y) as (inputs, _):
        for begin in (lambda: nfm(X, Y), lambda: nfm.step(X, Y).__enter__()):
            with pytest.raises(RuntimeError, match="one step at a time"):
                begin()
        model(inputs)
    with pytest.raises(RuntimeError, match="no forward pass in training mode followed"), nfm.step(X, Y):
        pass
    with nfm.step(X, Y):
        nfm.disarm()
    model.eval()
    with pytest.raises(RuntimeError, match=r"call model\.train\(\)"), nfm.step(X, Y):
        pass


def test_passes_that_do_not_fit_a_step_are_refused():
    model = network()
    nfm = build(model, "1", NOISY)
    with nfm.step(X, Y):
        with pytest.raises(ValueError, match=r"features of the 6 samples.*with mixup\.clean"):
            model(X[:4])
        model(X)
    convolution = nn.Sequential(nn.Conv1d(1, 2, 1).double(), nn.AdaptiveAvgPool1d(1), nn.Flatten()).train()
    nfm = NoisyFeatureMixup(convolution, "0", NOISY)
    with nfm.step(X[:, None], torch.rand(6)):
        convolution(X[:, None])
        with pytest.raises(ValueError, match=r"shape \(6, 2, 3\) like the noise of the step, got \(6, 2, 2\)"):
            convolution(X[:, None, :2])


# The hooks --------------------------------------------------------------------------------------------------


def test_two_of_them_on_one_model_are_refused():
    model = Wrapper().train()
    nfm = build(model, ["net.1"])
    for other, layer in ((model, "net.3"), (model.net, "1")):
        with pytest.raises(ValueError, match=r"already has the hooks.*call \.remove\(\).*one object all layers"):
            build(other, layer)
    build(model, "")  # mixes inputs, without hooks
    build(copy.deepcopy(model), "net.1")  # a copy has none
    nfm.remove()
    again = build(model, "net.1")
    model(again(X, Y)[0])


def test_hooks_end_with_their_object_but_not_before_the_pass():
    model = network()
    plain = model(X)
    inputs, _ = build(model, "1", NOISY)(X, Y)
    gc.collect()
    assert not torch.allclose(model(inputs), plain)
    gc.collect()
    assert parts(model) == 0
    assert torch.equal(model(X), plain)


@pytest.mark.parametrize("layers", [[0], 0, ["", 0], [None], [True], [b""], 1.0])
def test_positions_are_no_layers(layers):
    with pytest.raises(TypeError, match="expected names of layers such as"):
        build(network(), layers)


LEAVE = {
    "export": lambda model: torch.export.export(model, (X,), strict=False).module(),
    "trace": lambda model: torch.jit.trace(model, X),
    "fx": torch.fx.symbolic_trace,
}


@pytest.mark.parametrize("name", LEAVE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_in_evaluation_mode_are_exported_with_the_hooks_on(name):
    model = network()
    nfm = build(model, LAYERS, NOISY)
    model(nfm(X, Y)[0])
    model.eval()
    assert_close(LEAVE[name](model)(X), model(X))


@pytest.mark.parametrize("name", ["export", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_no_step_is_written_into_an_exported_model(name):
    model = network()
    nfm = build(model, LAYERS, NOISY)
    nfm(X, Y)
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\) or mixup\.remove\(\)"):
        LEAVE[name](model)


def test_scripting_names_the_hooks_and_works_without_them():
    model = network()
    nfm = build(model, LAYERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AttributeError, match=r"hooks of a NoisyFeatureMixup; .* script .* mixup\.remove\(\)"):
            torch.jit.script(model)
        nfm.remove()
        assert_close(torch.jit.script(model)(X), model(X))


@pytest.mark.compile
def test_strict_export_works_in_evaluation_mode_and_names_the_hooks_in_training_mode():
    torch._dynamo.reset()
    model = network()
    build_again = build(model, LAYERS)
    with pytest.raises(Exception, match=r"NoisyFeatureMixup|torch\.compiler\.disable"):
        torch.export.export(model, (X,), strict=True)
    model.eval()
    assert_close(torch.export.export(model, (X,), strict=True).module()(X), model(X))
    build_again.remove()


# Worker processes of a data loader --------------------------------------------------------------------------


class Collate:
    """Mixes in the collate function."""

    def __init__(self, nfm):
        self.nfm = nfm

    def __call__(self, batch):
        inputs, targets = self.nfm(*default_collate(batch))
        return inputs, targets, self.nfm.last.draw.lam[0], self.nfm.last.draw.add[0]


def loaded(nfm, workers, epochs=1):
    """λ and the first noise of all batches."""
    data = TensorDataset(randn(0, 32, 3), torch.arange(32) % 3)
    batches = DataLoader(data, 4, num_workers=workers, collate_fn=Collate(nfm), generator=generator(7))
    return [[(float(lam), add.tolist()) for _, _, lam, add in batches] for _ in range(epochs)]


@pytest.mark.parametrize("seed", [0, None])
def test_workers_draw_apart_and_a_seed_repeats_them(seed):
    def run():
        torch.manual_seed(1)
        return loaded(build(network(), "", NOISY, generator=None if seed is None else generator(seed)), 2, epochs=2)

    first, again = run(), run()
    assert first == again
    drawn = [lam for epoch in first for lam, _ in epoch]
    assert len(set(drawn)) == len(drawn) == 16
    assert len({tuple(add) for epoch in first for _, add in epoch}) == 16


def test_without_workers_a_collate_function_draws_what_the_loop_would_draw():
    (found,) = loaded(build(network(), "", NOISY), 0)
    nfm = build(network(), "", NOISY)
    for lam, add in found:
        nfm(X[:4], Y[:4])
        assert (float(nfm.last.draw.lam[0]), nfm.last.draw.add[0].tolist()) == (lam, add)


@pytest.mark.parametrize("layers", [["1"], ["", "1"]])
def test_hidden_layers_are_refused_in_workers(layers):
    with pytest.raises(RuntimeError, match=r"(?s)worker process of a data loader.*in the\s+training loop"):
        loaded(build(network(), layers), 1)


def test_seen_features_are_mixed_once():
    """A hook behind ours sees the mixed features in every pass of a step."""
    model = network()
    nfm = build(model, "1", NOISY)
    plain = output_of(model, "1", X)[0]
    with nfm.step(X, Y) as (inputs, _):
        found = [output_of(model, "1", inputs)[0] for _ in range(3)]
    for features in found:
        assert_close(features, nt.perturb(plain, nfm.last.draw, NOISY), **EXACT)
