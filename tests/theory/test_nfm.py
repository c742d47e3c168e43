import math

import pytest
import torch
from hypothesis import given, settings
from naive import naive_rademacher_loss
from problems import mlp, randn
from strategies import settings_of_the_theory
from torch.testing import assert_close

import nfm_theory as nt

MODEL, X, Y = mlp(0, [2, 5, 3], "tanh"), randn(1, 5, 2), torch.tensor([0, 1, 2, 1, 0])
NOISY = {"add_noise": 0.4, "mult_noise": 0.3}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(settings_of_the_theory())
def test_mixed_and_unmixed_forms_are_one_number(case):
    model, x, y, options = case
    options |= {"num_noise": 3, "num_lam": 40, "max_rows": 10**7}
    if len(x[0].flatten()) > 2 or options["layer"]:
        options |= {"add_noise": 0.0, "mult_noise": 0.0}
    with torch.no_grad():
        forms = [nt.nfm_loss(model, x, y, form=form, **options) for form in ("mixed", "unmixed")]
    assert_close(forms[0].value, forms[1].value, rtol=0, atol=1e-12)
    assert forms[0].stderr == 0


@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0])
def test_exact_loss_is_the_sum_over_every_pair_and_sign(eps):
    model, x, y = mlp(2, [2, 3, 2]), randn(3, 3, 2), torch.tensor([0, 1, 1])
    lam, weights = nt.MixingLaw(0.5, 1.5).nodes(20)
    naive = naive_rademacher_loss(
        model, x, torch.nn.functional.one_hot(y).double(), lambda u: u.logsumexp(-1),
        lam=lam, weights=weights, eps=eps, **NOISY,
    )  # fmt: skip
    value = nt.nfm_loss(model, x, y, eps=eps, alpha=0.5, beta=1.5, noise="rademacher", num_lam=20, **NOISY).value
    assert_close(value, naive, rtol=1e-12, atol=1e-13)


def test_closed_form_of_the_square_loss_at_any_scale():
    x, weight, y = randn(0, 4, 2), randn(1, 3, 2), randn(2, 4, 3)
    eps, m1, m2 = 0.7, nt.MixingLaw(0.4).moment(1), nt.MixingLaw(0.4).moment(2)
    value = nt.nfm_loss(
        lambda h: h @ weight.T, x, y, eps=eps, alpha=0.4, loss="square", add_noise=0.5, num_noise=3
    ).value
    u = x @ weight.T
    v = u[None] - u[:, None]
    expected = (u**2 / 2 - y * u).sum(-1).mean()
    expected = expected + eps * m1 * torch.einsum("ik,irk->ir", u - y, v).mean()
    expected = expected + eps**2 * (m2 / 2 * (v**2).sum(-1).mean() + 0.25 / 2 * (weight**2).sum())
    assert_close(value, expected)


def test_several_scales_at_once_are_the_single_ones():
    scales = torch.tensor([[0.0, 0.1], [0.5, 1.0]], dtype=torch.float64)
    many = nt.nfm_loss(MODEL, X, Y, eps=scales)
    assert many.value.shape == scales.shape
    single = torch.stack([nt.nfm_loss(MODEL, X, Y, eps=float(e)).value for e in scales.flatten()])
    assert_close(many.value.flatten(), single)
    assert_close(many.value[0, 0], torch.nn.functional.cross_entropy(MODEL(X), Y))


def test_chunks_do_not_change_the_value_and_gradients_flow_through_them():
    whole = nt.nfm_loss(MODEL, X, Y, eps=0.5, num_noise=3, **NOISY)
    chunked = nt.nfm_loss(MODEL, X, Y, eps=0.5, num_noise=3, memory_limit=50_000, progress=True, **NOISY)
    assert_close(whole.value, chunked.value, rtol=1e-13, atol=1e-14)
    weight = MODEL[0].weight
    slope = torch.autograd.grad(chunked.value, weight)[0]
    name, h, direction = "0.weight", 1e-5, randn(4, *weight.shape)
    with torch.no_grad():
        up, down = (
            nt.nfm_loss(MODEL, X, Y, eps=0.5, num_noise=3, params={name: weight + s * h * direction}, **NOISY).value
            for s in (1, -1)
        )
    assert_close((slope * direction).sum(), (up - down) / (2 * h), rtol=1e-7, atol=1e-9)


OPTIONS = [
    {"eps": 1.0, "control_variate": "none"},
    {"eps": 0.3, "control_variate": "auto"},
    {"eps": 0.1, "control_variate": "quadratic", "antithetic_noise": False},
    {"eps": 0.1, "control_variate": "cubic", "noise": "released"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['control_variate']}-eps{o['eps']}")
def test_monte_carlo_is_right_and_its_standard_error_is_calibrated_over_100_seeds(options):
    exact_options = {k: v for k, v in options.items() if k in ("eps", "noise")}
    exact = nt.nfm_loss(MODEL, X, Y, num_noise=6, num_lam=10, **NOISY, **exact_options).value.detach()
    runs = [
        nt.nfm_loss(MODEL, X, Y, method="monte_carlo", samples=3_000, generator=seeded(seed), **NOISY, **options)
        for seed in range(100)
    ]
    scores = torch.stack([(run.value - exact) / run.stderr for run in runs])
    assert scores.abs().max() < 4.5
    assert (scores.abs() > 4).sum() == 0
    # 100 standard normal scores: their mean square is 1 with standard deviation 0.14.
    assert abs((scores**2).mean() - 1) < 5 * math.sqrt(2 / 100)
    assert abs(scores.mean()) < 5 / math.sqrt(100)


def test_auto_chooses_the_control_variate_by_measured_variance_and_cost():
    small, large = (
        nt.nfm_loss(MODEL, X, Y, eps=eps, method="monte_carlo", samples=5_000, generator=seeded(0), add_noise=3.0)
        for eps in (0.01, 1.0)
    )
    assert "quadratic" in small.method or "cubic" in small.method
    assert "quadratic" not in large.method
    assert "cubic" not in large.method
    assert small.samples <= 5_000


def test_scales_share_their_draws():
    both = nt.nfm_loss(
        MODEL, X, Y, eps=[0.2, 0.1], method="monte_carlo", control_variate="none", samples=2_000, generator=seeded(0)
    )
    alone = nt.nfm_loss(
        MODEL, X, Y, eps=0.1, method="monte_carlo", control_variate="none", samples=2_000, generator=seeded(0)
    )
    assert_close(both.value[1], alone.value)


def test_a_requested_standard_error_is_reached_or_it_says_so():
    reached = nt.nfm_loss(
        MODEL,
        X,
        Y,
        eps=0.3,
        method="monte_carlo",
        samples=10**6,
        target_stderr=1e-3,
        generator=seeded(0),
        progress=True,
    )
    assert reached.converged is True
    assert reached.stderr <= 1e-3
    assert reached.samples < 10**6
    with pytest.warns(RuntimeWarning, match="allow more samples"):
        missed = nt.nfm_loss(
            MODEL, X, Y, method="monte_carlo", samples=2_000, target_stderr=1e-9, generator=seeded(0),
            control_variate="none", memory_limit=200_000,
        )  # fmt: skip
    assert missed.converged is False


@pytest.mark.parametrize("options", [{}, NOISY, {"noise": "released", **NOISY}, {"alpha": 0.0, "add_noise": 0.5}])
def test_full_batch_training_loss_is_the_exact_loss(options):
    exact = nt.nfm_loss(MODEL, X, Y, num_noise=6, num_lam=10, **options).value.detach()
    for method, more in (("as_trained", {}), ("monte_carlo", {"form": "mixed"})):
        run = nt.nfm_loss(MODEL, X, Y, method=method, samples=50_000, generator=seeded(1), **options, **more)
        assert abs(run.value - exact) <= 5 * run.stderr


def test_minibatches_give_self_pairs_the_weight_one_over_the_batch():
    batch, n = 2, len(X)
    exact = nt.nfm_loss(MODEL, X, Y, **NOISY, num_noise=8).value
    own = nt.nfm_loss(MODEL, X, Y, alpha=0.0, **NOISY, num_noise=8).value  # a self-pair is noise alone
    expected = (1 - 1 / batch) * (n * exact - own) / (n - 1) + own / batch
    run = nt.nfm_loss(MODEL, X, Y, method="as_trained", batch_size=batch, samples=400_000, generator=seeded(2), **NOISY)
    assert abs(run.value - expected) <= 5 * run.stderr
    assert abs(run.value - exact) > 10 * run.stderr


def test_training_draws_one_layer_per_batch():
    model = mlp(5, [2, 4, 3])
    run = nt.nfm_loss(model, X, Y, method="as_trained", layer=["", "1"], samples=200_000, generator=seeded(3))
    exact = torch.stack([nt.nfm_loss(model, X, Y, layer=name).value for name in ("", "1")]).mean()
    assert abs(run.value - exact) <= 5 * run.stderr


def test_monte_carlo_over_layers_adds_independent_errors():
    run = nt.nfm_loss(
        MODEL, X, Y, method="monte_carlo", layer=["", "1"], samples=5_000, generator=seeded(0), target_stderr=1.0
    )
    exact = nt.nfm_loss(MODEL, X, Y, layer=["", "1"]).value
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
    ({"method": "monte_carlo", "form": "mixed", "target_stderr": 1.0}, ValueError, "use form='unmixed'"),
    ({"add_noise": -1.0}, ValueError, "add_noise: expected a finite number"),
    ({"mult_noise": 0.1, "max_rows": 10}, nt.GridTooLargeError, "evaluations of the head"),
    ({"batch_size": 3}, TypeError, "batch_size"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_requests_say_what_to_do(options, error, match):
    with pytest.raises(error, match=match):
        nt.nfm_loss(MODEL, X, Y, **options)
