"""Estimates of the regularizers against exact terms: no bias, the right standard error, the right choice."""

import pytest
import torch
from building import build_problem, parted
from problems import generator, mlp, randn
from tiers import slow
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.calculus.engine.base import BLOCK_BYTES
from nfm_theory.estimators.probes import mean_and_stderr, random_signs

SECOND = ("R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult")
MODEL, X, Y = mlp(0, [5, 6, 3], "gelu"), randn(1, 6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
NOISE = {"add_noise": 0.4, "mult_noise": 0.3}


def exact(**options):
    return nt.terms(build_problem(MODEL, X, Y, **(NOISE | options)), remainder=False)


def estimates(method, seed, **options):
    with torch.no_grad():
        own, verb = parted(NOISE | options)
        return nt.regularizers(build_problem(MODEL, X, Y, **own), method, generator=generator(seed), **verb)


ESTIMATORS = {
    "probes": {"method": "probes"},
    "normal probes": {"method": "probes", "distribution": "normal"},
    "deflated probes": {"method": "probes", "deflate": 2},
    "pairs": {"method": "pairs"},
    "probes, uniform noise": {"method": "probes", "noise": "uniform"},
    "probes, a hidden layer": {"method": "probes", "layer": "0", "distribution": "normal"},
    "probes, nested": {"method": "probes", "engine": "nested"},
}


@pytest.mark.parametrize("seed", [0, *slow([1])])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_within_five_standard_errors(name, seed):
    options = dict(ESTIMATORS[name])
    setting = {k: options[k] for k in ("noise", "layer") if k in options}
    truth = exact(**setting)
    found = estimates(options.pop("method"), seed, num_probes=300, **options)
    for term in SECOND:
        e = found[term]
        assert e.samples == 300
        assert e.stderr > 0
        assert abs(e.value - getattr(truth, term)) <= 5 * e.stderr, term
        assert e.stderr < 0.5 * abs(truth.R2), term  # the bound is not vacuous
    assert found["R1"].stderr == 0
    assert_close(found["R1"].value, truth.R1, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["probes", "pairs", *slow(["normal probes", "deflated probes"])])
@pytest.mark.parametrize("repeats", [100, *slow([200])])
def test_standard_errors_are_those_of_repetitions(name, repeats):
    options = dict(ESTIMATORS[name])
    method = options.pop("method")
    runs = [estimates(method, seed, num_probes=8, **options) for seed in range(repeats)]
    truth = exact()
    for term in SECOND:
        values = torch.stack([run[term].value for run in runs])
        reported = torch.stack([run[term].stderr for run in runs]).square().mean().sqrt()
        # the standard deviation of a sample of 100 is right to 7 %, for tails like these to 14 %
        assert float(values.std() / reported) == pytest.approx(1.0, abs=0.3), term
        assert abs(values.mean() - getattr(truth, term)) <= 5 * reported / repeats**0.5, term


def test_deflation_lowers_the_variance_of_the_data_terms():
    plain, deflated = estimates("probes", 0, num_probes=200), estimates("probes", 0, num_probes=200, deflate=3)
    for term in ("R2", "R3"):
        assert deflated[term].stderr < 0.7 * plain[term].stderr
    everything = estimates("probes", 0, num_probes=2, deflate=5)  # nothing is left to chance
    for term in ("R2", "R3"):
        assert everything[term].stderr < 1e-12
        assert_close(everything[term].value, getattr(exact(), term), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("engine", ["auto", "nested"])
def test_exact_values_are_those_of_the_expansion(engine):
    found, truth = nt.regularizers(build_problem(MODEL, X, Y, **NOISE), method="exact", engine=engine), exact()
    for term in ("R1", *SECOND):
        assert_close(found[term].value, getattr(truth, term), rtol=1e-10, atol=1e-14)
        assert (found[term].stderr, found[term].samples, found[term].method) == (0, 0, "exact")
    assert_close(found.standard, truth.standard)
    assert found.engine.startswith({"auto": "tangent-adjoint", "nested": "nested torch.func (as asked)"}[engine])
    assert set(found.terms.to_dict()) >= set(SECOND)
    assert_close(found.terms.R3_add, truth.R3_add, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sizes", [[5, 6, 3], [5, 4, 3], [3, 6, 3]], ids=["wide", "narrow", "few inputs"])
def test_exact_values_do_not_depend_on_the_blocks(sizes, monkeypatch):
    model, x = mlp(0, sizes, "gelu"), randn(1, 6, sizes[0])
    with torch.no_grad():
        whole = nt.regularizers(build_problem(model, x, Y, **NOISE), method="exact")
        monkeypatch.setitem(BLOCK_BYTES, "cpu", 1)
        parts = nt.regularizers(build_problem(model, x, Y, **NOISE), method="exact")
    for term in ("R1", *SECOND):
        assert_close(parts[term].value, whole[term].value, rtol=1e-12, atol=1e-15)


def test_engines_give_the_same_probes():
    taped, nested = (estimates("probes", 3, engine=engine, num_probes=5) for engine in ("auto", "nested"))
    for term in SECOND:
        assert_close(taped[term].value, nested[term].value, rtol=1e-10, atol=1e-13)
        assert_close(taped[term].stderr, nested[term].stderr, rtol=1e-9, atol=1e-13)


def test_values_are_differentiable():
    params = list(MODEL.parameters())
    for method in ("exact", "probes"):
        found = nt.regularizers(build_problem(MODEL, X, Y, **NOISE), method=method, generator=generator(0))
        assert all(torch.autograd.grad(found[t].value, params, retain_graph=True, allow_unused=True) for t in SECOND)
    problem = build_problem(MODEL, X, Y)
    probes = [
        torch.autograd.grad(
            nt.regularizers(problem, "probes", num_probes=400, generator=generator(s))["R3"].value, params[0]
        )[0]
        for s in range(8)
    ]
    (truth,) = torch.autograd.grad(exact().R3, params[0])
    stack = torch.stack(probes)
    assert float((stack.mean(0) - truth).norm() / truth.norm()) < 0.2


def test_switched_off_sources_are_missing():
    found = nt.regularizers(build_problem(MODEL, X, Y, alpha=0, add_noise=0.2))
    assert list(found.estimates) == ["R2_add", "R3_add"]
    assert found.terms.R2 == found.terms.R1 == found.terms.R3_mult == 0
    assert list(nt.regularizers(build_problem(MODEL, X, Y)).estimates) == ["R1", "R2", "R3"]


# The automatic choice ------------------------------------------------------------------------------------------

WEIGHT = randn(0, 90, 100)
WIDE_SETTING = {"loss": "square", "alpha": 0, "add_noise": 0.5}
WIDE_X, WIDE_Y = randn(1, 80, 90), torch.full((80, 1), -5.0, dtype=torch.float64)


def wide(h):
    """Convex, far above its targets: all curvatures have one sign, so that probes agree."""
    return torch.nn.functional.softplus(h @ WEIGHT / 10).mean(1, keepdim=True)


def test_the_choice_is_exact_where_that_is_cheap():
    found = nt.regularizers(build_problem(MODEL, X, Y, **NOISE))
    assert {e.method for e in found.estimates.values()} == {"exact"}


def test_the_choice_is_probes_where_a_pilot_says_so_and_reaches_the_accuracy():
    with torch.no_grad():
        found = nt.regularizers(build_problem(wide, WIDE_X, WIDE_Y, **WIDE_SETTING), rtol=0.002, generator=generator(0))
        truth = nt.terms(build_problem(wide, WIDE_X, WIDE_Y, **WIDE_SETTING), remainder=False)
    assert found["R2_add"].method == "exact"
    e = found["R3_add"]
    assert e.method == f"{e.samples} probes"
    assert 16 <= e.samples < 90
    assert abs(e.value - truth.R3_add) <= 5 * e.stderr
    assert e.stderr <= 1.5 * 0.002 * abs(e.value)
    assert found.passes < 90 + 3


def test_the_choice_is_exact_where_the_pilot_asks_for_more_probes_than_directions():
    with torch.no_grad():
        found = nt.regularizers(
            build_problem(wide, WIDE_X, WIDE_Y, loss="square", alpha=0, add_noise=0.5, mult_noise=0.3),
            rtol=1e-5,
            generator=generator(0),
        )
        assert {e.method for e in found.estimates.values()} == {"exact"}
        short = nt.regularizers(
            build_problem(wide, WIDE_X, WIDE_Y, loss="square", alpha=0, add_noise=0.5),
            rtol=1e-5,
            max_passes=40,
            generator=generator(0),
        )
    assert short["R3_add"].method == "40 probes"
    assert short["R3_add"].converged is False
    assert short.passes <= 40 + 3


def test_methods_by_name_of_the_term():
    found = estimates({"R3_add": "probes", "R2": "pairs", "R3": "pairs"}, 0, num_probes=7)
    methods = {name: e.method for name, e in found.estimates.items()}
    assert methods["R3_add"] == "7 probes"
    assert methods["R2"] == methods["R3"] == "7 pairs"
    assert methods["R2_add"] == methods["R2_mult"] == methods["R3_mult"] == "exact"
    whole = estimates("pairs", 0, num_probes=3)
    assert whole["R2_add"].method == "3 probes"


def test_pairs_and_probes_of_the_data_are_kept_apart():
    found = estimates({"R2": "pairs", "R3": "probes"}, 0, num_probes=4)
    assert found["R2"].method == "4 pairs"
    assert found["R3"].method == "4 probes"
    alone = estimates({"R2": "exact", "R3": "probes"}, 0, num_probes=4, deflate=5)
    both = estimates({"R2": "pairs", "R3": "probes"}, 0, num_probes=4, deflate=5)
    assert_close(both["R3"].value, alone["R3"].value, rtol=1e-10, atol=1e-14)  # deflated: nothing is left to chance
    assert both["R2"].stderr > 1e-6


@pytest.mark.parametrize("method", ["auto", "exact", "probes", "pairs"])
def test_piecewise_linear_networks_have_no_residual_part(method):
    model = mlp(0, [5, 6, 3], "relu")
    found = nt.regularizers(build_problem(model, X, Y, **NOISE), method=method)
    for term in ("R3", "R3_add", "R3_mult"):
        assert found[term].value == found[term].stderr == 0
    assert found["R2"].value > 0
    assert found.piecewise_linear
    assert "piecewise linear: the second derivative of the head, and R3, is 0" in str(found)


def test_the_table():
    text = str(
        nt.regularizers(build_problem(MODEL, X, Y), method={"R3": "probes"}, num_probes=9, generator=generator(0))
    )
    lines = text.splitlines()
    assert lines[0].split() == ["term", "value", "stderr", "method"]
    assert [line.split()[0] for line in lines[1:4]] == ["R1", "R2", "R3"]
    assert lines[2].endswith("exact")
    assert lines[3].endswith("9 probes")
    assert lines[-1].startswith("tangent-adjoint; about ")
    assert "piecewise" not in text


ERRORS = {
    "method": ({"method": "guess"}, "method: expected one of"),
    "method of a term": ({"method": {"R2": "guess"}}, "method: expected one of"),
    "unknown term": ({"method": {"R9": "exact"}}, "expected terms that are switched on"),
    "term switched off": ({"method": {"R2_add": "exact"}}, "expected terms that are switched on"),
    "pairs of noise": ({"method": {"R2_add": "pairs"}, "add_noise": 0.1}, "'pairs' are pairs of examples"),
    "one probe": ({"num_probes": 1}, "num_probes >= 2"),
    "accuracy": ({"rtol": 0.0}, "rtol > 0"),
    "deflation": ({"deflate": -1}, "deflate >= 0"),
    "engine": ({"engine": "jet"}, "engine: expected one of"),
    "distribution": ({"method": "probes", "distribution": "cauchy"}, "distribution: expected one of"),
    "loss": ({"loss": "hinge"}, "loss: expected one of"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_expected(name):
    options, message = ERRORS[name]
    own, verb = parted(options)
    with pytest.raises(ValueError, match=message):
        nt.regularizers(build_problem(MODEL, X, Y, **own), **verb)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_entries_of_probes(distribution):
    z = random_signs((20_000,), torch.zeros((), dtype=torch.float64), distribution, generator(0))
    assert z.dtype == torch.float64
    assert abs(z.mean()) < 5 / 20_000**0.5
    assert float(z.square().mean()) == pytest.approx(1, abs=0.06)
    assert set(z.unique().tolist()) == {-1.0, 1.0} if distribution == "rademacher" else len(z.unique()) > 1000
    again = random_signs((20_000,), z, distribution, generator(0))
    assert torch.equal(z, again)


def test_the_standard_error_of_one_probe_is_unknown():
    mean, stderr = mean_and_stderr(torch.ones(1, 3))
    assert (float(mean), float(stderr)) == (1.0, float("inf"))


def test_generators_seed_the_probes():
    first, again, other = (estimates("probes", seed, num_probes=3) for seed in (5, 5, 6))
    assert first["R3"].value == again["R3"].value != other["R3"].value
    state = torch.get_rng_state()
    estimates("probes", 0, num_probes=3)
    assert torch.equal(torch.get_rng_state(), state)


class CalledTwice(nn.Module):
    """One layer with two calls, as with tied weights."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(2, 3).double()

    def forward(self, x):
        return torch.tanh(self.shared(x[:, :2])) * 2 + self.shared(torch.tanh(x[:, 2:]))


def test_a_layer_that_is_called_twice_is_differentiated_at_both_places():
    torch.manual_seed(0)
    model, x, y = CalledTwice().eval(), torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    slopes = (model(x).softmax(-1) - torch.eye(3)[y]).detach()
    trace = 0.0
    for row, slope in zip(x, slopes, strict=True):
        bent = torch.autograd.functional.hessian(lambda v, slope=slope: (slope * model(v[None])).sum(), row)
        trace += float(bent.trace()) / 5
    found = nt.regularizers(nt.Problem(model, x, y, law=nt.Law(alpha=0.0, add_noise=0.4)), method="exact")
    assert float(found.R3_add) == pytest.approx(0.4**2 / 2 * trace, abs=1e-10)
