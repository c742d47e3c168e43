"""Several branches as one problem, the derivatives of the divergence, and the losses by rule and by chance."""

import itertools

import mpmath
import numpy as np
import pytest
import torch
from building import build_branches, build_problem, parted
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import generator, mlp, randn, small_cnn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory import GridTooLargeError, MixingLaw, NoiseLaw, jensen_shannon, perturb
from nfm_theory.setting.branches import BranchNoise, jsd_gradient, jsd_hessian
from nfm_theory.setting.divergence import log_probabilities

WEIGHTS = {2: [0.3, 0.7], 3: [0.5, 0.2, 0.3], 4: [0.1, 0.2, 0.3, 0.4]}
NOISY = {"add_noise": 0.3, "mult_noise": 0.4}
EXACT = {"rtol": 1e-10, "atol": 1e-12}
X = randn(1, 3, 2)
XS = torch.stack([X, X + 0.4 * randn(2, 3, 2)])
Y = torch.tensor([0, 2, 1])
MODEL = mlp(0, [2, 4, 3])


def divergence(logits, weights):
    """The definition in mpmath; logits are lists by branch."""
    rows = [[mpmath.mpf(0), *row] if len(row) == 1 else row for row in logits]
    p = [[mpmath.exp(u) / sum(map(mpmath.exp, row)) for u in row] for row in rows]
    total = mpmath.mpf(0)
    for k in range(len(p[0])):
        mixture = sum(w * row[k] for w, row in zip(weights, p, strict=True))
        total += sum(w * row[k] * mpmath.log(row[k] / mixture) for w, row in zip(weights, p, strict=True) if w)
    return total


def precise_derivatives(logits, weights):
    """Gradient and Hessian by central differences in 700 digits, `(m, K)` and `(m, K, m, K)`."""
    m, k = logits.shape
    with mpmath.workdps(700):
        step = mpmath.mpf(10) ** -80
        base = [mpmath.mpf(float(u)) for u in logits.flatten()]
        pi = [mpmath.mpf(float(w)) for w in weights]

        def at(*moves):
            flat = list(base)
            for index, sign in moves:
                flat[index] += sign * step
            return divergence([flat[j * k : (j + 1) * k] for j in range(m)], pi)

        size = range(m * k)
        slope = [float((at((a, 1)) - at((a, -1))) / (2 * step)) for a in size]
        hessian = [
            [
                float(sum(s * t * at((a, s), (b, t)) for s in (1, -1) for t in (1, -1)) / (4 * step**2))
                if b >= a
                else 0.0
                for b in size
            ]
            for a in size
        ]
    hessian = np.array(hessian)
    hessian = hessian + hessian.T - np.diag(hessian.diagonal())
    return torch.tensor(slope, dtype=torch.float64).reshape(m, k), torch.from_numpy(hessian).reshape(m, k, m, k)


SATURATED = {
    "same class": [[40.0, 0.0, -30.0], [45.0, 3.0, -35.0]],
    "other class": [[60.0, 0.0, -60.0], [-60.0, 10.0, 60.0]],
    "underflow": [[400.0, 0.0, -400.0], [0.0, 390.0, 5.0]],
    "mild": [[0.5, -1.0, 2.0], [1.5, 0.2, -0.3]],
    "one logit": [[300.0], [-250.0]],
    "one certain logit": [[38.0], [45.0]],
}


@pytest.mark.parametrize("case", SATURATED)
def test_gradient_and_hessian_are_right_where_probabilities_vanish(case):
    logits = torch.tensor(SATURATED[case], dtype=torch.float64)
    slope, hessian = precise_derivatives(logits, WEIGHTS[2])
    weights = torch.tensor(WEIGHTS[2], dtype=torch.float64)
    # relative to each entry, or to p (1 - p) of its logit (their differences are rounded), however small these are
    p = log_probabilities(logits).exp()
    top = p == p.amax(-1, keepdim=True)
    spread = torch.where(top, p.masked_fill(top, 0.0).sum(-1, keepdim=True), p)[:, -logits.shape[1] :]
    error = (jsd_gradient(logits[None], weights)[0] - slope).abs()
    assert (error <= 1e-12 * slope.abs() + 1e-13 * spread).all()
    error = (jsd_hessian(logits[None], weights)[0] - hessian).abs()
    least = torch.minimum(spread[:, :, None, None], spread)
    assert (error <= 1e-11 * hessian.abs() + 1e-12 * least).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [(0.5, 0.2, 0.3), (0.0, 0.4, 0.6)], ids=str)
@pytest.mark.parametrize("classes", [1, 3])
def test_nothing_is_infinite_at_any_logits(classes, weights, dtype):
    signs = torch.tensor(list(itertools.product([-1.0, 0.5, 1.0], repeat=3)), dtype=dtype)
    logits = 1000 * torch.stack([signs.roll(k, -1)[:, :classes] for k in range(3)], dim=1)
    pi = torch.tensor(weights, dtype=dtype)
    slope, hessian = jsd_gradient(logits, pi), jsd_hessian(logits, pi)
    assert slope.dtype == hessian.dtype == dtype
    assert slope.isfinite().all()
    assert hessian.isfinite().all()
    assert not slope[:, pi == 0].any()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), m=st.integers(2, 4), b=st.integers(1, 3), classes=st.integers(1, 5))
def test_closed_forms_are_the_derivatives_of_the_divergence(seed, m, b, classes):
    logits, pi = 3 * randn(seed, b, m, classes), torch.tensor(WEIGHTS[m], dtype=torch.float64)
    total = lambda u: jensen_shannon(u.transpose(0, 1), pi, reduction="sum")  # noqa: E731
    assert_close(jsd_gradient(logits, pi), torch.func.grad(total)(logits), **EXACT)
    dense = torch.func.hessian(total)(logits)
    for i in range(b):
        assert_close(jsd_hessian(logits, pi)[i], dense[i, :, :, i], rtol=1e-9, atol=1e-11)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), m=st.integers(2, 4), classes=st.integers(2, 5), scale=st.sampled_from([1.0, 30.0]))
def test_adding_a_constant_to_the_logits_of_a_branch_changes_nothing(seed, m, classes, scale):
    logits, pi = scale * randn(seed, 2, m, classes), torch.tensor(WEIGHTS[m], dtype=torch.float64)
    assert_close(jsd_gradient(logits, pi).sum(-1), torch.zeros(2, m, dtype=torch.float64), **EXACT)
    hessian = jsd_hessian(logits, pi)
    assert_close(hessian.sum(-1), torch.zeros_like(hessian[..., 0]), **EXACT)
    assert_close(hessian, hessian.permute(0, 3, 4, 1, 2), **EXACT)


def test_head_and_loss_are_those_of_the_branches():
    branches = build_branches(MODEL, XS, layer="1", weights=WEIGHTS[2])
    encode = MODEL[:2]
    for j in range(2):
        assert_close(branches.features[:, j], encode(XS[j]), **EXACT)
    outputs = branches.head(branches.features)
    assert_close(outputs.unflatten(1, (2, 3)).transpose(0, 1), MODEL(XS), **EXACT)
    expected = jensen_shannon(MODEL(XS), WEIGHTS[2], reduction="none")
    assert_close(branches.losses(branches.features, torch.arange(3)), expected, **EXACT)
    assert build_branches(MODEL, list(XS)).weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shared", [False, True])
def test_branches_share_lambda_and_partner_and_the_noise_only_if_asked(shared):
    branches = build_branches(MODEL, XS, shared_noise=shared, **NOISY)
    draw = branches.draw(3, 4, generator=generator(0))
    assert draw.add.shape == (12, 1 if shared else 2, 2)
    got = sum(part for part in branches.perturbation(draw) if part is not None)
    for j in range(2):
        noise = {name: getattr(draw, name)[:, 0 if shared else j] for name in ("add", "mult")}
        own = type(draw)(draw.anchor, draw.lam, draw.index, **noise)
        assert_close(got[:, j], perturb(XS[j], own, nt.Law(**NOISY)), **EXACT)


# --- noise with a scalar per branch ----------------------------------------------------------------------------------


def test_released_noise_has_one_scalar_per_branch():
    law = build_branches(MODEL, XS, noise="released", **NOISY).noises[0]
    assert law == BranchNoise("normal", True, 0.0, branches=2, size=2)
    shared = build_branches(MODEL, XS, noise="released", shared_noise=True, **NOISY).noises[0]
    assert shared == NoiseLaw("normal", True)
    rows = law.sample((200_000, 2, 2), generator=generator(0), dtype=torch.float64).flatten(1)
    products = (rows**2).unsqueeze(2) * (rows**2).unsqueeze(1)
    mean, error = products.mean(0), products.std(0) / len(rows) ** 0.5
    expected = torch.from_numpy(law.mixed_fourth).clone()
    expected.fill_diagonal_(law.fourth)
    assert ((mean - expected).abs() <= 5 * error).all()
    assert_close(expected[0, 1].item(), NoiseLaw("normal", True).mixed_fourth)
    assert_close(expected[0, 2].item(), law.second**2)


@pytest.mark.parametrize("rule", ["tensor", "cubature-5"])
@pytest.mark.parametrize("noise", ["normal", "uniform", "released"])
def test_rules_have_the_moments_of_stacked_noise(noise, rule):
    branches = build_branches(MODEL, XS, noise=noise, add_noise=0.3, alpha=0.0)
    grid = branches.grid(rule=rule, degree=5, num_lam=1, num_noise=3, max_rows=10**6)
    law = branches.noises[0]

    def moments(draw):
        z = draw.add.flatten(1) ** 2
        return (z.unsqueeze(2) * z.unsqueeze(1)).flatten(1)

    blocks = grid.blocks(7, like=branches.features, title="moments")
    got = sum(torch.tensordot(weights, moments(draw), dims=1) for draw, weights in blocks).reshape(4, 4)
    expected = torch.as_tensor(law.mixed_fourth, dtype=torch.float64).expand(4, 4).clone()
    expected.fill_diagonal_(law.fourth)
    assert_close(got, expected, **EXACT)


# --- the loss ---------------------------------------------------------------------------------------------------------


def naive_loss(model, xs, weights, *, eps, alpha, shared, add_noise, mult_noise):
    """Every pair, node of λ and sign of every coordinate of every noise in a loop (Rademacher noise)."""
    m, n, d = xs.shape
    lams, shares = MixingLaw(alpha).nodes(16)
    count = d if shared else m * d
    signs = [torch.tensor(s, dtype=xs.dtype) for s in itertools.product((-1.0, 1.0), repeat=count)]
    signs = [s.expand(m, d) if shared else s.reshape(m, d) for s in signs]
    total = 0.0
    for i, r in itertools.product(range(n), repeat=2):
        for lam, share in zip(lams, shares, strict=True):
            mixed = xs[:, i] + eps * (1 - lam) * (xs[:, r] - xs[:, i])
            rows = [
                (1 + eps * mult_noise * b) * mixed + eps * add_noise * a
                for a, b in itertools.product(signs if add_noise else [0.0], signs if mult_noise else [0.0])
            ]
            for h in rows:
                p = model(h).softmax(-1)
                mean = torch.einsum("j,jk->k", torch.tensor(weights, dtype=p.dtype), p)
                entropies = -(p * p.log()).sum(-1)
                value = -(mean * mean.log()).sum() - sum(w * e for w, e in zip(weights, entropies, strict=True))
                total = total + share * value / len(rows)
    return total / n**2


@pytest.mark.parametrize(
    ("shared", "levels"),
    [(False, (0.3, 0.0)), (False, (0.0, 0.4)), (True, (0.3, 0.4)), (False, (0.0, 0.0))],
)
def test_the_loss_is_that_of_loops(shared, levels):
    noise = dict(zip(("add_noise", "mult_noise"), levels, strict=True))
    options = {"weights": WEIGHTS[2], "alpha": 0.7, "shared_noise": shared, "noise": "rademacher", **noise}
    with torch.no_grad():
        got = nt.loss(build_branches(MODEL, XS[:, :2], **options), method="exact", eps=[0.5, 1.0])
        expected = [
            naive_loss(MODEL, XS[:, :2], WEIGHTS[2], eps=e, alpha=0.7, shared=shared, **noise) for e in (0.5, 1.0)
        ]
    assert_close(got.value, torch.stack(expected), **EXACT)
    assert got.method == ("deterministic, tensor" if any(levels) else "deterministic, no noise")


@pytest.mark.parametrize("gamma", [None, 12.0])
@pytest.mark.parametrize("laws", [(1.0, None), (0.5, 2.0)])
def test_moving_to_the_unmixed_law_is_an_identity(gamma, laws):
    alpha, beta = laws
    options = {"alpha": alpha, "beta": beta, "add_noise": 0.3, "noise": "rademacher", "gamma": gamma}
    branches, rule = build_branches(MODEL, XS, Y, **options), nt.Quadrature(num_lam=40)
    mixed, unmixed = (
        nt.loss(branches, method="exact", form=form, quadrature=rule).value for form in ("mixed", "unmixed")
    )
    assert_close(mixed, unmixed, **EXACT)


def test_noisymix_is_the_nfm_loss_of_the_clean_branch_and_gamma_times_the_divergence():
    options = {"add_noise": 0.3, "noise": "rademacher", "alpha": 0.8, "layer": ""}
    xs = torch.stack([X, XS[1], X - 0.2 * randn(9, 3, 2)])
    parts = (
        nt.loss(build_problem(MODEL, X, Y, **options), method="exact").value,
        nt.loss(build_branches(MODEL, xs, **options), method="exact").value,
    )
    assert_close(
        nt.loss(build_branches(MODEL, xs, Y, gamma=12.0, **options), method="exact").value,
        parts[0] + 12 * parts[1],
        **EXACT,
    )
    assert_close(nt.loss(build_branches(MODEL, xs, Y, gamma=0.0, **options), method="exact").value, parts[0], **EXACT)
    binary = mlp(3, [2, 4, 1])
    labels = torch.tensor([0.0, 1.0, 1.0])
    one = nt.loss(build_problem(binary, X, labels, loss="logistic", **options), method="exact").value
    two = nt.loss(build_branches(binary, xs, **options), method="exact").value
    got = nt.loss(build_branches(binary, xs, labels, gamma=2.0, loss="logistic", **options), method="exact").value
    assert_close(got, one + 2 * two, **EXACT)


@pytest.mark.parametrize(("shared", "noise"), [(False, "normal"), (True, "normal"), (False, "released")])
def test_monte_carlo_agrees_within_its_error(shared, noise):
    options = {"shared_noise": shared, "noise": noise, "add_noise": 0.4, "weights": WEIGHTS[2]}
    scales = [0.5, 1.0]
    exact = nt.loss(
        build_branches(MODEL, XS, **options), scales, "exact", quadrature=nt.Quadrature(num_noise=4, num_lam=4)
    ).value
    chance = {"samples": 10_000, "generator": generator(0)}
    estimate = nt.loss(build_branches(MODEL, XS, **options), scales, "monte_carlo", **chance)
    assert ((estimate.value - exact).abs() <= 5 * estimate.stderr + 1e-6).all()
    assert (estimate.stderr > 0).all()
    assert (estimate.stderr < 0.05 * exact).all()


def test_layers_are_averaged_and_gradients_flow():
    layers = ["", "1"]
    value = nt.loss(build_branches(MODEL, XS, layer=layers), method="exact").value
    parts = [nt.loss(build_branches(MODEL, XS, layer=name), method="exact").value for name in layers]
    assert_close(value, sum(parts) / 2, **EXACT)
    (slope,) = torch.autograd.grad(
        nt.loss(build_branches(MODEL, XS, layer="1"), method="exact").value, [MODEL[2].weight]
    )
    assert slope.isfinite().all()
    assert slope.abs().max() > 0
    assert [b.layer for b in build_branches(MODEL, XS, layer=layers)] == layers


def test_images_and_one_output_without_a_column():
    cnn = small_cnn(0)
    xs = torch.stack([randn(1, 2, 1, 6, 6), randn(2, 2, 1, 6, 6)])
    branches = build_branches(cnn, xs, layer="0", add_noise=0.1)
    assert branches.features.shape[:2] == (2, 2)
    assert branches.feature_shape == tuple(branches.features.shape[1:])
    flat = nt.loss(build_branches(lambda x: x.sum(-1), XS), method="exact").value
    assert_close(flat, nt.loss(build_branches(lambda x: x.sum(-1, keepdim=True), XS), method="exact").value, **EXACT)


BAD = [
    ({"xs": XS[:1]}, ValueError, "m >= 2 branches"),
    ({"xs": XS[0]}, ValueError, r"\(m, n, \*input\)"),
    ({"xs": [X, X[:2]]}, ValueError, "one shape"),
    ({"xs": [X, None]}, TypeError, "sequence of m tensors"),
    ({"xs": []}, TypeError, "sequence of m tensors"),
    ({"weights": [1.0]}, ValueError, "each of the 2 branches"),
    ({"weights": [0.5, 0.6]}, ValueError, "sum to 1"),
    ({"loss": "cross_entropy"}, ValueError, "needs gamma="),
    ({"loss": "mae", "y": Y, "gamma": 1.0}, ValueError, "loss: expected one of"),
    ({"gamma": 12.0}, ValueError, "y: expected the labels"),
    ({"gamma": 12.0, "y": Y[:2]}, ValueError, "same number of samples"),
    ({"y": Y, "gamma": -1.0}, ValueError, "gamma: expected"),
    ({"loss": lambda u, y: u.sum()}, ValueError, "one value per sample"),
    ({"method": "guess"}, ValueError, "method: expected"),
    ({"form": "guess"}, ValueError, "form: expected"),
    ({"form": "mixed", "eps": 0.5}, ValueError, "mixed-label form exists at eps = 1 only"),
    ({"eps": -1.0}, ValueError, "eps: expected"),
    ({"layer": []}, ValueError, "at least one problem"),
    ({"add_noise": 0.1, "quadrature": nt.Quadrature(max_rows=10)}, GridTooLargeError, "max_rows"),
    (
        {"method": "monte_carlo", "shared_noise": True, "control_variate": "cubic"},
        ValueError,
        "control_variate='none'",
    ),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_unfit_arguments_are_refused(options, error, match):
    own, verb = parted(options)
    data = {"xs": XS, "y": None} | {name: verb.pop(name) for name in ("xs", "y") if name in verb}
    with pytest.raises(error, match=match):
        nt.loss(build_branches(MODEL, **data, **own), **{"method": "exact"} | verb)
