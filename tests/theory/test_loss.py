import math

import pytest
import torch
from building import build_problem, parted
from hypothesis import given
from naive import naive_rademacher_loss
from problems import mlp, randn
from scipy.stats import chi2
from strategies import settings_of_the_theory
from tiers import random_cases, slow
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.losses.monte_carlo import monte_carlo_loss

MODEL, X, Y = mlp(0, [2, 5, 3], "tanh"), randn(1, 5, 2), torch.tensor([0, 1, 2, 1, 0])
NOISY = {"add_noise": 0.4, "mult_noise": 0.3}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@random_cases(5, 20, given(settings_of_the_theory()))
def test_mixed_and_unmixed_forms_are_one_number(case):
    model, x, y, options = case
    if len(x[0].flatten()) > 2 or options["layer"]:
        options |= {"add_noise": 0.0, "mult_noise": 0.0}
    rule = nt.Quadrature(num_noise=3, num_lam=40, max_rows=10**7)
    with torch.no_grad():
        forms = [
            nt.loss(build_problem(model, x, y, **options), 1.0, "exact", form, quadrature=rule)
            for form in ("mixed", "unmixed")
        ]
    assert_close(forms[0].value, forms[1].value, rtol=0, atol=1e-12)
    assert forms[0].stderr == 0


@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0])
def test_exact_loss_is_the_sum_over_every_pair_and_sign(eps):
    model, x, y = mlp(2, [2, 3, 2]), randn(3, 3, 2), torch.tensor([0, 1, 1])
    lam, weights = nt.MixingLaw(0.5, 1.5).nodes(8)
    naive = naive_rademacher_loss(
        model, x, torch.nn.functional.one_hot(y).double(), lambda u: u.logsumexp(-1),
        lam=lam, weights=weights, eps=eps, **NOISY,
    )  # fmt: skip
    value = nt.loss(
        build_problem(model, x, y, alpha=0.5, beta=1.5, noise="rademacher", **NOISY),
        method="exact",
        eps=eps,
        quadrature=nt.Quadrature(num_lam=8),
    ).value
    assert_close(value, naive, rtol=1e-12, atol=1e-13)


def test_closed_form_of_the_square_loss_at_any_scale():
    x, weight, y = randn(0, 4, 2), randn(1, 3, 2), randn(2, 4, 3)
    eps, m1, m2 = 0.7, nt.MixingLaw(0.4).moment(1), nt.MixingLaw(0.4).moment(2)
    value = nt.loss(
        build_problem(lambda h: h @ weight.T, x, y, alpha=0.4, loss="square", add_noise=0.5),
        method="exact",
        eps=eps,
        quadrature=nt.Quadrature(num_noise=3),
    ).value
    u = x @ weight.T
    v = u[None] - u[:, None]
    expected = (u**2 / 2 - y * u).sum(-1).mean()
    expected = expected + eps * m1 * torch.einsum("ik,irk->ir", u - y, v).mean()
    expected = expected + eps**2 * (m2 / 2 * (v**2).sum(-1).mean() + 0.25 / 2 * (weight**2).sum())
    assert_close(value, expected)


def test_several_scales_at_once_are_the_single_ones():
    scales = torch.tensor([[0.0, 0.1], [0.5, 1.0]], dtype=torch.float64)
    many = nt.loss(build_problem(MODEL, X, Y), method="exact", eps=scales)
    assert many.value.shape == scales.shape
    single = torch.stack(
        [nt.loss(build_problem(MODEL, X, Y), method="exact", eps=float(e)).value for e in scales.flatten()]
    )
    assert_close(many.value.flatten(), single)
    assert_close(many.value[0, 0], torch.nn.functional.cross_entropy(MODEL(X), Y))


def test_chunks_do_not_change_the_value_and_gradients_flow_through_them():
    whole = nt.loss(build_problem(MODEL, X, Y, **NOISY), method="exact", eps=0.5, quadrature=nt.Quadrature(num_noise=3))
    weight = MODEL[0].weight
    with nt.options(block_bytes=50_000, progress=True):
        chunked = nt.loss(
            build_problem(MODEL, X, Y, **NOISY), method="exact", eps=0.5, quadrature=nt.Quadrature(num_noise=3)
        )
        slope = torch.autograd.grad(chunked.value, weight)[0]
    assert_close(whole.value, chunked.value, rtol=1e-13, atol=1e-14)
    name, h, direction = "0.weight", 1e-5, randn(4, *weight.shape)
    with torch.no_grad():
        up, down = (
            nt.loss(
                build_problem(MODEL, X, Y, params={name: weight + s * h * direction}, **NOISY),
                method="exact",
                eps=0.5,
                quadrature=nt.Quadrature(num_noise=3),
            ).value
            for s in (1, -1)
        )
    assert_close((slope * direction).sum(), (up - down) / (2 * h), rtol=1e-7, atol=1e-9)


OPTIONS = [
    (1.0, {"control_variate": "none"}, "normal"),
    (0.3, {"control_variate": "auto"}, "normal"),
    (0.1, {"control_variate": "quadratic", "antithetic_noise": False}, "normal"),
    (0.1, {"control_variate": "cubic"}, "released"),
]


@pytest.mark.parametrize("count", [20, *slow([100])])
@pytest.mark.parametrize(
    ("eps", "options", "noise"), OPTIONS, ids=lambda o: o["control_variate"] if isinstance(o, dict) else str(o)
)
def test_monte_carlo_is_right_and_its_standard_error_is_calibrated_over_many_seeds(eps, options, noise, count):
    problem = build_problem(MODEL, X, Y, noise=noise, **NOISY)
    at = torch.tensor([eps], dtype=torch.float64)
    exact = nt.loss(problem, eps, "exact", quadrature=nt.Quadrature(num_noise=3, num_lam=4)).value.detach()
    runs = [monte_carlo_loss(problem, at, samples=3_000, generator=seeded(seed), **options) for seed in range(count)]
    if options.get("antithetic_noise", True):
        same = nt.loss(problem, eps, "monte_carlo", samples=3_000, generator=seeded(0), **options)
        assert (same.value, same.stderr) == (runs[0].value, runs[0].stderr)
    scores = torch.stack([(run.value - exact) / run.stderr for run in runs])
    assert scores.abs().max() < 4.5
    assert (scores.abs() > 4).sum() == 0
    # The sum of squares of standard normal scores has a chi-squared law.
    assert 3e-7 < chi2.cdf(float((scores**2).sum()), count) < 1 - 3e-7
    assert abs(scores.mean()) < 5 / math.sqrt(count)


def test_auto_chooses_the_control_variate_by_measured_variance_and_cost():
    small, large = (
        nt.loss(
            build_problem(MODEL, X, Y, add_noise=3.0), eps=eps, method="monte_carlo", samples=5_000, generator=seeded(0)
        )
        for eps in (0.01, 1.0)
    )
    assert "quadratic" in small.method or "cubic" in small.method
    assert "quadratic" not in large.method
    assert "cubic" not in large.method
    assert small.samples <= 5_000


def test_scales_share_their_draws():
    both = nt.loss(
        build_problem(MODEL, X, Y),
        eps=[0.2, 0.1],
        method="monte_carlo",
        control_variate="none",
        samples=2_000,
        generator=seeded(0),
    )
    alone = nt.loss(
        build_problem(MODEL, X, Y),
        eps=0.1,
        method="monte_carlo",
        control_variate="none",
        samples=2_000,
        generator=seeded(0),
    )
    assert_close(both.value[1], alone.value)


def test_a_requested_standard_error_is_reached_or_it_says_so():
    options = {"method": "monte_carlo", "generator": seeded(0)}
    with nt.options(progress=True):
        reached = nt.loss(build_problem(MODEL, X, Y), eps=0.3, samples=10**6, target_stderr=1e-3, **options)
    assert reached.converged is True
    assert reached.stderr <= 1e-3
    assert reached.samples < 10**6
    options |= {"generator": seeded(0), "control_variate": "none"}
    with nt.options(block_bytes=200_000), pytest.warns(RuntimeWarning, match="allow more samples"):
        missed = nt.loss(build_problem(MODEL, X, Y), samples=2_000, target_stderr=1e-9, **options)
    assert missed.converged is False


@pytest.mark.parametrize("options", [{}, NOISY, {"noise": "released", **NOISY}, {"alpha": 0.0, "add_noise": 0.5}])
def test_full_batch_training_loss_is_the_exact_loss(options):
    exact = nt.loss(
        build_problem(MODEL, X, Y, **options), method="exact", quadrature=nt.Quadrature(num_noise=4, num_lam=6)
    ).value.detach()
    for method, more in (("as_trained", {}), ("monte_carlo", {"form": "mixed"})):
        run = nt.loss(build_problem(MODEL, X, Y, **options), method=method, samples=50_000, generator=seeded(1), **more)
        assert abs(run.value - exact) <= 5 * run.stderr


def test_minibatches_give_self_pairs_the_weight_one_over_the_batch():
    batch, n = 2, len(X)
    exact = nt.loss(build_problem(MODEL, X, Y, **NOISY), method="exact", quadrature=nt.Quadrature(num_noise=4)).value
    own = nt.loss(
        build_problem(MODEL, X, Y, alpha=0.0, **NOISY), method="exact", quadrature=nt.Quadrature(num_noise=4)
    ).value  # a self-pair is noise alone
    expected = (1 - 1 / batch) * (n * exact - own) / (n - 1) + own / batch
    run = nt.loss(
        build_problem(MODEL, X, Y, **NOISY), method="as_trained", batch_size=batch, samples=400_000, generator=seeded(2)
    )
    assert abs(run.value - expected) <= 5 * run.stderr
    assert abs(run.value - exact) > 10 * run.stderr


def test_training_draws_one_layer_per_batch():
    model = mlp(5, [2, 4, 3])
    run = nt.loss(
        build_problem(model, X, Y, layer=["", "1"]), method="as_trained", samples=200_000, generator=seeded(3)
    )
    exact = torch.stack(
        [nt.loss(build_problem(model, X, Y, layer=name), method="exact").value for name in ("", "1")]
    ).mean()
    assert abs(run.value - exact) <= 5 * run.stderr


def test_monte_carlo_over_layers_adds_independent_errors():
    run = nt.loss(
        build_problem(MODEL, X, Y, layer=["", "1"]),
        method="monte_carlo",
        samples=5_000,
        generator=seeded(0),
        target_stderr=1.0,
    )
    exact = nt.loss(build_problem(MODEL, X, Y, layer=["", "1"]), method="exact").value
    assert abs(run.value - exact) <= 5 * run.stderr
    assert run.converged


BAD = [
    ({"method": "guess"}, ValueError, "method: expected one of"),
    ({"form": "half"}, ValueError, "form: expected"),
    ({"eps": -0.1}, ValueError, "eps: expected finite numbers"),
    ({"eps": 0.5, "form": "mixed"}, ValueError, "eps = 1 only"),
    ({"method": "as_trained", "form": "unmixed"}, ValueError, "has mixed labels"),
    ({"method": "as_trained", "batch_size": 9}, ValueError, "1 <= batch_size <= n = 5"),
    ({"method": "as_trained", "samples": 5}, ValueError, "at least two batches"),
    ({"method": "monte_carlo", "samples": 9}, ValueError, "pilot sweeps"),
    ({"method": "monte_carlo", "control_variate": "quartic"}, ValueError, "control_variate: expected"),
    (
        {"method": "monte_carlo", "form": "mixed", "target_stderr": 1.0},
        ValueError,
        "target_stderr: does not belong to form='mixed';",
    ),
    ({"add_noise": -1.0}, ValueError, "add_noise: expected a finite number"),
    ({"mult_noise": 0.1, "quadrature": nt.Quadrature(max_rows=10)}, nt.GridTooLargeError, "evaluations of the head"),
    ({"batch_size": 3}, ValueError, "batch_size: does not belong to method='exact'"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_requests_say_what_to_do(options, error, match):
    own, verb = parted(options)
    with pytest.raises(error, match=match):
        nt.loss(build_problem(MODEL, X, Y, **own), **{"method": "exact"} | verb)


GIVEN = {
    "samples": 1_000,
    "target_stderr": 1e-3,
    "control_variate": "none",
    "batch_size": 2,
    "quadrature": nt.Quadrature(),
    "generator": seeded(0),
}
TAKES = {
    "auto": {"samples", "target_stderr", "control_variate", "quadrature", "generator"},
    "exact": {"quadrature"},
    "monte_carlo": {"samples", "target_stderr", "control_variate", "generator"},
    "as_trained": {"samples", "batch_size", "generator"},
}
STRANGERS = [(method, option) for method, takes in TAKES.items() for option in GIVEN if option not in takes]


@pytest.mark.parametrize(("method", "option"), STRANGERS)
def test_options_of_another_method_are_refused(method, option):
    with pytest.raises(ValueError, match=f"{option}: does not belong to method='{method}'; leave it out"):
        nt.loss(build_problem(MODEL, X, Y), method=method, **{option: GIVEN[option]})


@pytest.mark.parametrize("option", ["target_stderr", "control_variate"])
def test_options_of_the_unmixed_form_are_refused_with_mixed_labels(option):
    with pytest.raises(ValueError, match=f"{option}: does not belong to form='mixed'; leave it out"):
        nt.loss(build_problem(MODEL, X, Y), 1.0, "monte_carlo", "mixed", **{option: GIVEN[option]})


@pytest.mark.parametrize("method", TAKES)
def test_its_own_options_are_taken(method):
    own = {name: GIVEN[name] for name in TAKES[method] if name != "target_stderr"}
    assert nt.loss(build_problem(MODEL, X, Y), method=method, **own).value.isfinite()


def test_auto_is_exact_where_that_is_cheap_and_says_what_it_took():
    small, large = build_problem(MODEL, X, Y), build_problem(MODEL, X, Y, layer="1", **NOISY)
    taken = nt.loss(small, 0.5)
    assert taken.method == "deterministic, no noise"
    assert taken.stderr == 0
    assert_close(taken.value, nt.loss(small, 0.5, "exact").value, rtol=0, atol=0)
    sampled = nt.loss(large, 0.5, samples=2_000, generator=seeded(0))
    assert sampled.method.startswith("Monte Carlo, control variate")
    assert sampled.stderr > 0
    same = nt.loss(large, 0.5, "monte_carlo", samples=2_000, generator=seeded(0))
    assert (sampled.value, sampled.stderr) == (same.value, same.stderr)
    forced = nt.loss(small, 0.5, quadrature=nt.Quadrature(max_rows=10), samples=2_000)
    assert forced.method.startswith("Monte Carlo")
    mixed = nt.loss(large, 1.0, form="mixed", samples=2_000, generator=seeded(0))
    assert mixed.method == "Monte Carlo, mixed labels"


def test_a_similar_name_is_suggested():
    with pytest.raises(ValueError, match=r"method: expected one of .*, got 'exakt' \(did you mean 'exact'\?\)\."):
        nt.loss(build_problem(MODEL, X, Y), method="exakt")
