"""NFM's step at scale ε with unmixed labels: the written formula, the law of λ, and the expected loss of the theory."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from problems import generator, mlp, randn
from tiers import random_cases
from torch.testing import assert_close

import nfm_theory as nt
from experiments.recipes.recipe import Scheme
from experiments.schemes import build_step
from nfm_theory import Draw, LayerDraw, NoisyFeatureMixup

LEVELS = {"add_noise": 0.4, "mult_noise": 0.2}
MIXUP, NOISY = nt.Law(), nt.Law.released(**LEVELS)
LAYERS = ("", "1", "3")
EXACT = {"rtol": 1e-10, "atol": 1e-12}
X, Y = randn(0, 6, 3), torch.tensor([0, 2, 1, 1, 0, 2])


def network(seed=0):
    return mlp(seed, [3, 5, 4, 3]).train()


def build(model, layers=LAYERS, law=MIXUP, seed=0, **options):
    options = {"num_classes": 3, "generator": generator(seed), "form": "unmixed", **options}
    return NoisyFeatureMixup(model, layers, law, **options)


def outputs_from(model, layer, change, x):
    """Outputs with the features at a layer changed, by walking through the sequence."""
    x = change(x) if layer == "" else x
    for name, module in model.named_children():
        x = module(x)
        x = change(x) if name == layer else x
    return x


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0, 1.5])
def test_the_step_is_the_formula_row_by_row(layer, eps):
    model = network()
    nfm = build(model, layer, NOISY, eps=eps, label_smoothing=0.1)
    inputs, targets = nfm(X, Y)
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    draw = nfm.last.draw

    def change(g):
        rows = []
        for i in range(len(g)):
            partner, share = g[draw.index[i]], eps * (1 - float(draw.lam[i]))
            mixed = g[i] + share * (partner - g[i])
            rows.append((1 + eps * 0.2 * draw.mult[i]) * mixed + eps * 0.4 * draw.add[i])
        return torch.stack(rows)

    with nfm.clean():
        log_p = outputs_from(model, layer, change, X).log_softmax(1)
    for i, loss in enumerate(losses):
        own = torch.full((3,), 0.1 / 3, dtype=torch.float64)
        own[Y[i]] += 0.9
        assert_close(loss, -(own * log_p[i]).sum(), **EXACT)


def test_lambda_is_drawn_from_the_unmixed_law():
    nfm = build(network(), "", nt.Law(0.7), eps=0.5)
    source = generator(0)
    nfm(X, Y)
    torch.randint(1, (), generator=source)  # the layer
    expected = nt.sample_draw(6, (), nt.Law(0.7), as_trained=True, generator=source, dtype=torch.float64)
    assert torch.equal(nfm.last.draw.lam, expected.lam)
    assert torch.equal(nfm.last.draw.index, expected.index)
    weights = torch.stack([nfm(X, Y) and nfm.last.draw.lam[0] for _ in range(3000)])
    stderr = weights.std() / 3000**0.5
    assert abs(1 - weights.mean() - nt.MixingLaw(0.7).moment(1)) <= 5 * stderr


def mean_loss(nfm, model, x, y, layer, noise):
    """The expected loss of a step: every permutation of the batch, a quadrature rule for λ, one noise for all rows."""
    n = len(x)
    nodes, weights = nfm.laws[layer].mixing.nodes(30, unmixed=nfm.form == "unmixed")
    total = 0.0
    for order in itertools.permutations(range(n)):
        for lam, weight in zip(nodes, weights, strict=True):
            rows = Draw(torch.arange(n), torch.full((n,), float(lam)).double(), torch.tensor(order), **noise)
            inputs, targets = nfm(x, y, replay=LayerDraw(layer, rows))
            total = total + weight * F.cross_entropy(model(inputs), targets)
    return total / len(list(itertools.permutations(range(n))))


@random_cases(
    4,
    12,
    given(
        seed=st.integers(0, 1000),
        layer=st.sampled_from(LAYERS),
        alpha=st.sampled_from([0.5, 1.0, 2.0]),
        beta=st.sampled_from([None, 1.5]),
        noisy=st.booleans(),
    ),
)
def test_at_scale_one_the_expected_loss_is_that_of_the_usual_step(seed, layer, alpha, beta, noisy):
    model, x, y = network(seed), randn(seed, 3, 3), torch.tensor([0, 2, 1])
    levels, noise = {}, {}
    if noisy:
        width = {"": 3, "1": 5, "3": 4}[layer]
        levels = LEVELS
        noise = {name: randn(seed + k, 1, width).expand(3, -1) for k, name in enumerate(("add", "mult"))}
    law = nt.Law.released(alpha=alpha, beta=beta, **levels)
    means = [mean_loss(build(model, law=law, form=form), model, x, y, layer, noise) for form in ("mixed", "unmixed")]
    assert_close(means[0], means[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("eps", [0.25, 0.75, 1.0])
def test_the_expected_loss_is_that_of_the_theory(layer, eps):
    model, x, y, law = network(3), randn(4, 3, 3), torch.tensor([0, 2, 1]), nt.Law(0.7)
    value = mean_loss(build(model, law=law, eps=eps), model, x, y, layer, {})
    problem = nt.Problem(model.eval(), x, y, layer=layer, law=law)
    exact = nt.loss(problem, eps, "exact", quadrature=nt.Quadrature(num_lam=30)).value
    assert_close(value, exact, rtol=1e-9, atol=1e-11)
    usual = mean_loss(build(model.train(), law=law, form="mixed"), model, x, y, layer, {})
    assert (abs(float((value - usual).detach())) > 1e-4) == (eps != 1)


def test_scale_zero_is_the_plain_step():
    model = network()
    nfm = build(model, law=NOISY, eps=0.0)
    for _ in range(5):
        inputs, targets = nfm(X, Y)
        loss = F.cross_entropy(model(inputs), targets)
        with nfm.clean():
            assert_close(loss, F.cross_entropy(model(X), Y), **EXACT)


def test_the_default_is_the_usual_step_bit_by_bit():
    model = network()
    steps = [build(model, "", form="mixed"), NoisyFeatureMixup(model, "", MIXUP, num_classes=3, generator=generator(0))]
    (first, second) = ([part.clone() for part in nfm(X, Y)] for nfm in steps)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda nfm: pickle.loads(pickle.dumps(nfm))])
def test_a_copy_has_the_same_scale_and_form(copied):
    nfm = build(network(), "", NOISY, eps=0.3)
    again = copied(nfm)
    assert (again.eps, again.form) == (0.3, "unmixed")
    for ours, theirs in zip(nfm(X, Y), again(X, Y), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"form": "mixed", "eps": 0.5}, "use form='unmixed'"),
        ({"form": "half"}, r"form: expected one of \['mixed', 'unmixed'\]"),
        ({"eps": -0.1}, "eps: expected a finite number >= 0"),
        ({"eps": float("nan")}, "eps: expected"),
    ],
)
def test_scales_without_a_meaning_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        build(network(), "", **options)


def test_the_step_of_a_scheme_has_its_scale():
    scheme = Scheme("nfm_eps_0_5", alpha=1.0, layers="eligible", **LEVELS, eps=0.5, form="unmixed")
    options = {"layers": LAYERS, "classes": 3, "mean": (), "std": ()}
    model, other = network(), network()
    step = build_step(scheme, model, **options, generator=generator(1))
    twin = build(other, LAYERS, NOISY, 1, eps=0.5)
    for _ in range(4):
        inputs, targets = twin(X, Y)
        assert_close(step.loss(X, Y), F.cross_entropy(other(inputs), targets), **EXACT)
        assert torch.equal(targets, F.one_hot(Y, 3).double())
    with pytest.raises(ValueError, match="use form='unmixed'"):
        build_step(Scheme("wrong", alpha=1.0, eps=0.5), network(), **options, generator=generator(1))
