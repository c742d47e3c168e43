"""Training with a law of its own at each layer, layer lists and wrong laws; the compiler stays out of the way."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from problems import generator, preact_resnet18, randn
from test_training import MIXUP, NOISY, X, Y, build, network, output_of, soft
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import Law, NoisyFeatureMixup, TaylorRegularizer

#: Mixing alone at the input, both noises behind the first activation, noise without mixing behind the second one.
LAWS = {
    "": Law(alpha=0.3),
    "1": Law(2.0, 0.5, add_noise=0.4, mult_noise=0.2, noise="rademacher"),
    "3": Law(alpha=0.0, add_noise=0.7),
}
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def own(model, laws=LAWS, seed=0, **options):
    """A step with one law for each layer."""
    return build(model, laws, None, seed, **options)


def steps_at_every_layer(model, nfm, num=40):
    """Layer, draw, mixed features or inputs, targets and outputs of steps that meet every layer."""
    found = []
    for _ in range(num):
        inputs, targets = nfm(X, Y)
        outputs = model(inputs)
        found.append((nfm.last, inputs, targets, outputs))
    assert {step.layer for step, *_ in found} == set(nfm.layers)
    return found


def mixed_by_hand(law, g, draw):
    """The written formula with the levels of one law."""
    lam = draw.lam[0]
    mixed = lam * g + (1 - lam) * g[draw.index]
    if law.mult_noise:
        mixed = (1 + law.mult_noise * draw.mult) * mixed
    return mixed + law.add_noise * draw.add if law.add_noise else mixed


@pytest.mark.parametrize("layer", LAWS)
def test_at_each_layer_its_own_law_acts(layer):
    model, law = network(), LAWS[layer]
    plain = output_of(model, layer, X)[0] if layer else X
    nfm = own(model, seed=3)
    assert nfm.layers == ("", "1", "3")
    met = 0
    while met < 5:
        inputs, targets = nfm(X, Y)
        if nfm.last.layer != layer:
            nfm.disarm()
            continue
        met += 1
        passed_on, _ = output_of(model, layer or "1", inputs)
        seen = passed_on if layer else inputs
        draw = nfm.last.draw
        assert_close(seen, mixed_by_hand(law, plain, draw), **EXACT)
        assert_close(targets, soft(draw.lam[0], draw.index))
        assert torch.equal(seen, nt.perturb(plain, draw, law))
        assert (draw.add is not None, draw.mult is not None) == (law.add_noise > 0, law.mult_noise > 0)
        if layer == "1":
            assert set(draw.add.unique().tolist()) == {-1.0, 1.0}
        if layer == "3":
            assert torch.equal(targets, F.one_hot(Y, 3).double())


def test_lambda_has_the_law_of_the_layer_that_was_drawn():
    """5 standard errors of the mean of λ at each layer."""
    nfm = own(network(), {"": Law(0.5, 1.5), "1": Law(3.0, 1.0)})
    weights = {"": [], "1": []}
    for _ in range(4000):
        nfm(X, Y)
        nfm.disarm()
        weights[nfm.last.layer].append(float(nfm.last.draw.lam[0]))
    for layer, mean in (("", 0.25), ("1", 0.75)):
        sample = torch.tensor(weights[layer], dtype=torch.float64)
        assert abs(float(sample.mean()) - mean) <= 5 * float(sample.std()) / len(sample) ** 0.5


def test_the_same_law_everywhere_is_one_law_bit_by_bit():
    models = network(), network()
    steps = build(models[0], ("", "1", "3"), NOISY), own(models[1], dict.fromkeys(("", "1", "3"), NOISY))
    for _ in range(10):
        pairs = [(model(nfm(X, Y)[0]), nfm.last.layer) for model, nfm in zip(models, steps, strict=True)]
        assert torch.equal(pairs[0][0], pairs[1][0])
        assert pairs[0][1] == pairs[1][1]


def test_a_replay_has_the_law_of_its_layer():
    model = network()
    nfm = own(model)
    for step, inputs, targets, outputs in steps_at_every_layer(model, nfm):
        again, same = nfm(X, Y, replay=step)
        assert torch.equal(again, inputs)
        assert torch.equal(same, targets)
        assert torch.equal(model(again), outputs)


def test_only_noise_that_the_layer_of_the_replay_needs_must_be_there():
    model = network()
    nfm = own(model)
    steps = {step.layer: step for step, *_ in steps_at_every_layer(model, nfm)}
    for layer, missing in (("1", "add and mult"), ("3", "add,")):
        bare = nt.LayerDraw(layer, steps[""].draw)
        with pytest.raises(ValueError, match=f"replay: the draw has no noise {missing}"):
            nfm(X, Y, replay=bare)
    nfm(X, Y, replay=steps[""])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_keep_the_law_of_each_layer(copied):
    pairs = [(model := network(), own(model, seed=5))]
    pairs.append(copied(pairs[0]))
    assert pairs[1][1].laws == LAWS
    assert pairs[1][1]._model is pairs[1][0]
    for ours, theirs in zip(*(steps_at_every_layer(*pair) for pair in pairs), strict=True):
        assert ours[0].layer == theirs[0].layer
        assert torch.equal(ours[3], theirs[3])


def test_a_shallow_copy_keeps_the_laws_and_shares_a_model_without_hooks():
    model = network()
    with own(model) as nfm, pytest.raises(ValueError, match="hooks of another NoisyFeatureMixup"):
        copy.copy(nfm)
    nfm = own(model, {"": MIXUP})
    other = copy.copy(nfm)
    assert other.laws == {"": MIXUP}
    assert other._model is model
    for ours, theirs in zip(nfm(X, Y), other(X, Y), strict=True):
        assert torch.equal(ours, theirs)


def test_a_saved_state_leaves_the_laws_as_they_were_built():
    """The state is that of the generator: the laws are options, given again when the run is resumed."""
    model = network()
    nfm = own(model, seed=5)
    steps_at_every_layer(model, nfm)
    saved = io.BytesIO()
    torch.save(nfm.state_dict(), saved)
    saved.seek(0)
    expected = [outputs for *_, outputs in steps_at_every_layer(model, nfm)]
    other = network()
    resumed = own(other, seed=77)
    resumed.load_state_dict(torch.load(saved))
    assert resumed.laws == LAWS
    for (_, _, _, outputs), reference in zip(steps_at_every_layer(other, resumed), expected, strict=True):
        assert torch.equal(outputs, reference)


def test_unmixed_steps_and_views_use_the_law_of_the_layer():
    model, x = network(), randn(1, 12, 3)
    nfm = own(model, {"1": LAWS["1"]}, eps=0.5, form="unmixed", view_noise=(1.0, 2.0))
    inputs, targets = nfm(x, Y, views=2)
    seen = output_of(model, "1", inputs)[0]
    plain, draw = output_of(model.eval(), "1", x)[0], nfm.last.draw
    add = draw.add * torch.tensor([1.0, 2.0]).double().repeat_interleave(6)[:, None]
    lam = draw.lam[0]
    expected = (1 + 0.5 * 0.2 * draw.mult) * (plain + 0.5 * (1 - lam) * (plain[draw.index] - plain)) + 0.5 * 0.4 * add
    assert_close(seen, expected, **EXACT)
    assert torch.equal(targets, F.one_hot(Y, 3).double())


@pytest.mark.parametrize("layers", ["1", ["1"], ("1",), iter(["1"]), {"1": MIXUP}])
def test_layers_in_any_form(layers):
    nfm = NoisyFeatureMixup(network(), layers, *([] if isinstance(layers, dict) else [MIXUP]), num_classes=3)
    assert nfm.layers == ("1",)
    assert nfm.laws == {"1": MIXUP}
    inputs, _ = nfm(X, Y)
    assert inputs is X


def test_a_mapping_is_read_once():
    laws = dict(LAWS)
    nfm = own(network(), laws)
    laws.clear()
    assert nfm.laws == LAWS


def test_there_is_no_law_by_default():
    with pytest.raises(TypeError, match=r"law: expected an nfm_theory\.Law, got NoneType; for example Law\("):
        NoisyFeatureMixup(network(), ["1"], num_classes=3)


WRONG = [
    (NOISY, None, r"layers: expected names of layers.*got Law"),
    (NOISY, ["1"], r"layers: expected names of layers.*got Law"),
    (3, NOISY, r"layers: expected names of layers.*got int"),
    ([1], NOISY, r"layers: expected names of layers.*got \[1\]"),
    (["1", None], NOISY, r"layers: expected names of layers.*None"),
    ({1: NOISY}, None, r"layers: expected names of layers.*got \[1\]"),
    (["1"], {"1": NOISY}, r"law: expected an nfm_theory\.Law, got dict"),
    (["1"], [NOISY], r"law: expected an nfm_theory\.Law, got list"),
    ({"1": "normal"}, None, r"law: expected an nfm_theory\.Law, got str"),
]


@pytest.mark.parametrize(("layers", "law", "match"), WRONG)
def test_wrong_layers_and_laws_are_named(layers, law, match):
    model = network()
    with pytest.raises(TypeError, match=match):
        NoisyFeatureMixup(model, layers, law, num_classes=3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("layer", ["", "1", "3"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_penalty_has_the_law_and_the_layer_it_was_given(layer, law):
    model = network().eval()
    penalty = TaylorRegularizer(layer, law, num_probes=4000, generator=generator(0))
    assert (penalty.layer, penalty.law) == (layer, law)
    assert str(law) in repr(penalty)
    value = float(penalty(model, X, Y).detach())
    with torch.no_grad():
        found = nt.terms(nt.Problem(model, X, Y, layer=layer, law=law), remainder=False)
    truth = float(found.R1 + found.second)
    assert value == pytest.approx(truth, rel=0.1, abs=1e-3)


# The compiler -----------------------------------------------------------------------------------------------

FRESH = """
import sys
import torch
import nfm_theory as nt
assert "torch._dynamo" not in sys.modules, "loaded with PyTorch itself"
model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
law = nt.Law.released(add_noise=0.4)
nfm = nt.NoisyFeatureMixup(model, {"": law, "1": law}, num_classes=2)
nt.TaylorRegularizer("1", nt.Law())
nt.JSDConsistency()
for _ in range(4):
    inputs, targets = nfm(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()
assert "torch._dynamo" not in sys.modules, "the step has loaded the compiler"
"""


def test_a_step_does_not_load_the_compiler():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The compiler itself looks at .grad of the features on which a graph starts
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.compile
def test_a_compiled_model_trains_with_the_numbers_of_the_plain_one():
    torch._dynamo.reset()
    x, weak = randn(0, 6, 3, 8, 8), Law(add_noise=0.1)
    runs = []
    for compiled in (False, True):
        model = preact_resnet18(0).train()
        nfm = own(model, {"": MIXUP, "layer1": NOISY, "layer2": weak}, seed=1)
        forward = torch.compile(model, backend="eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        record = []
        for _ in range(16):
            inputs, targets = nfm(x, Y)
            loss = F.cross_entropy(forward(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            record.append((nfm.last.layer, loss.detach()))
        runs.append((record, [p.detach() for p in model.parameters()]))
    (plain, weights), (traced, same) = runs
    assert {layer for layer, _ in plain} == {"", "layer1", "layer2"}
    assert [layer for layer, _ in plain] == [layer for layer, _ in traced]
    assert_close([loss for _, loss in traced], [loss for _, loss in plain], rtol=1e-9, atol=1e-11)
    assert_close(same, weights, rtol=1e-8, atol=1e-10)
