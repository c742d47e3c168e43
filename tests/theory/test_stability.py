import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import randn
from tiers import slow
from torch.testing import assert_close

from nfm_theory import JSDConsistency, jensen_shannon
from nfm_theory.setting.branches import jsd_gradient, jsd_hessian

WEIGHTS = {2: [0.3, 0.7], 3: [0.5, 0.2, 0.3], 4: [0.1, 0.2, 0.3, 0.4]}


def precise(logits, weights):
    """The definition in 800 digits, where nothing of logits up to 1000 underflows or cancels; for (m, n, K)."""
    values = []
    with mpmath.workdps(800):

        def entropy(p):
            return -sum(q * mpmath.log(q) for q in p)

        for sample in logits.transpose(0, 1):
            branches = [[mpmath.mpf(float(u)) for u in row] for row in sample]
            branches = [[mpmath.mpf(0), *row] if len(row) == 1 else row for row in branches]
            exponentials = [[mpmath.exp(u) for u in row] for row in branches]
            p = [[e / sum(row) for e in row] for row in exponentials]
            pi = [mpmath.mpf(float(w)) for w in weights]
            mixture = [sum(w * row[k] for w, row in zip(pi, p, strict=True)) for k in range(len(p[0]))]
            values.append(float(entropy(mixture) - sum(w * entropy(row) for w, row in zip(pi, p, strict=True))))
    return torch.tensor(values, dtype=torch.float64)


def naive(logits, weights):
    p = torch.cat([1 - logits.sigmoid(), logits.sigmoid()], -1) if logits.shape[-1] == 1 else logits.softmax(-1)
    pi = torch.tensor(weights, dtype=p.dtype)[:, None, None]
    entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    return entropy((pi * p).sum(0)) - (pi[..., 0] * entropy(p)).sum(0)


def augmix_like(logits):
    p = logits.softmax(-1)
    log_mixture = p.mean(0).clamp(1e-7, 1).log()
    return sum(F.kl_div(log_mixture, q, reduction="batchmean") for q in p) / len(p)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(2, 4),
    n=st.integers(1, 3),
    classes=st.integers(1, 5),
    equal=st.booleans(),
)
def test_value_gradient_and_hessian_are_those_of_the_definition(seed, m, n, classes, equal):
    logits = 2 * randn(seed, m, n, classes)
    weights = [1 / m] * m if equal else WEIGHTS[m]
    ours = lambda u: jensen_shannon(u, None if equal else weights, reduction="sum")  # noqa: E731
    twin = lambda u: naive(u, weights).sum()  # noqa: E731
    assert_close(ours(logits), twin(logits), rtol=1e-10, atol=1e-12)
    assert_close(torch.func.grad(ours)(logits), torch.func.grad(twin)(logits), rtol=1e-9, atol=1e-11)
    assert_close(torch.func.hessian(ours)(logits), torch.func.hessian(twin)(logits), rtol=1e-8, atol=1e-10)
    value = jensen_shannon(logits, weights, reduction="none")
    assert (value >= -1e-14).all()
    assert (value <= -sum(w * math.log(w) for w in weights) + 1e-14).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [None, (0.0, 0.4, 0.6), (0.2, 0.3, 0.5)], ids=str)
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("scale", [1000.0, *slow([1.0, 30.0])])
def test_saturated_logits_are_as_precise_as_others(scale, classes, weights, dtype):
    signs = torch.tensor(list(itertools.product([-1.0, 0.5, 1.0], repeat=3)), dtype=dtype)
    logits = scale * torch.stack([signs.roll(k, -1)[:, :classes] for k in range(3)])
    value = jensen_shannon(logits, weights, reduction="none")
    expected = precise(logits, weights or [1 / 3] * 3).to(dtype)
    eps = torch.finfo(dtype).eps
    assert_close(value, expected, rtol=20 * eps, atol=20 * eps)
    total = lambda u: jensen_shannon(u, weights, reduction="sum")  # noqa: E731
    rows = logits[:, ::5]
    assert torch.func.grad(total)(rows).isfinite().all()
    assert torch.func.hessian(total)(rows).isfinite().all()
    assert torch.autograd.functional.hessian(total, rows).isfinite().all()


def test_gradient_at_saturation_where_probabilities_give_nan():
    logits = torch.tensor([[[1000.0, 0.0, -1000.0]], [[0.0, 1000.0, 5.0]]], requires_grad=True)
    (theirs,) = torch.autograd.grad(augmix_like(logits), logits)
    (ours,) = torch.autograd.grad(jensen_shannon(logits), logits)
    assert theirs.isnan().any()
    assert ours.isfinite().all()


def test_augmix_style_implementations_agree_where_nothing_is_clamped():
    logits = randn(3, 3, 6, 10)
    assert_close(jensen_shannon(logits), augmix_like(logits), rtol=1e-10, atol=1e-12)


def test_certain_predictions_without_overlap_have_the_entropy_of_the_weights():
    logits = 1000 * torch.eye(3, dtype=torch.float64)[:, None]
    assert_close(jensen_shannon(logits), torch.tensor(math.log(3), dtype=torch.float64))
    expected = -sum(w * math.log(w) for w in WEIGHTS[3])
    assert_close(jensen_shannon(logits, WEIGHTS[3]), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("classes", [1, 4])
def test_equal_predictions_have_the_closed_form_hessian(classes):
    """Σ_j π_j d_jᵀ F d_j − d̄ᵀ F d̄ with d̄ = Σ_j π_j d_j and F the Fisher matrix: blocks (π_j δ_jl − π_j π_l) F."""
    u = randn(0, 1, classes)
    pi = torch.tensor(WEIGHTS[3], dtype=torch.float64)
    logits = u.expand(3, 1, classes).clone()
    f = lambda z: jensen_shannon(z, pi)  # noqa: E731
    assert_close(f(logits), torch.tensor(0.0, dtype=torch.float64))
    assert_close(torch.func.grad(f)(logits), torch.zeros_like(logits))
    p = u.softmax(-1)[0] if classes > 1 else u.sigmoid()[0]
    fisher = p.diag() - torch.outer(p, p)
    expected = torch.einsum("jl,kc->jklc", pi.diag() - torch.outer(pi, pi), fisher)
    assert_close(torch.func.hessian(f)(logits).squeeze(4).squeeze(1), expected, rtol=1e-10, atol=1e-12)


def test_invariances():
    logits, pi = randn(5, 3, 4, 3), torch.tensor(WEIGHTS[3], dtype=torch.float64)
    value = jensen_shannon(logits, pi, reduction="none")
    order = [2, 0, 1]
    assert_close(jensen_shannon(logits[order], pi[order], reduction="none"), value)
    assert_close(jensen_shannon(logits + randn(6, 3, 4, 1), pi, reduction="none"), value)
    without = torch.cat([logits, randn(7, 1, 4, 3)]), [*WEIGHTS[3], 0.0]
    assert_close(jensen_shannon(*without, reduction="none"), value)


def test_one_logit_is_the_pair_of_zero_and_it():
    logits = randn(1, 2, 5, 1)
    pair = torch.cat([torch.zeros_like(logits), logits], -1)
    assert_close(jensen_shannon(logits), jensen_shannon(pair))


def test_branches_and_reductions():
    logits = randn(2, 3, 4, 5)
    each = jensen_shannon(logits, reduction="none")
    assert each.shape == (4,)
    assert_close(jensen_shannon(list(logits)), each.mean())
    assert_close(jensen_shannon(tuple(logits), reduction="sum"), each.sum())
    half = jensen_shannon(logits.half())
    assert half.dtype == torch.float32
    assert_close(half, each.mean().float(), rtol=1e-2, atol=1e-4)


MASKS = [(0, 1, 2), (0,), (1, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [None, (0.0, 0.4, 0.6), (0.2, 0.3, 0.5)], ids=str)
@pytest.mark.parametrize("masked", MASKS, ids=str)
def test_a_masked_class_has_probability_zero(masked, weights, dtype):
    """The logit -inf in some or all branches: the definition with 0 log 0 = 0, and finite derivatives."""
    logits = randn(3, 3, 4, 5).to(dtype)
    logits[list(masked), :, 2] = -torch.inf
    p, pi = logits.double().softmax(-1), torch.tensor(weights or [1 / 3] * 3, dtype=torch.float64)
    mixture = (pi[:, None, None] * p).sum(0)
    by_hand = (torch.special.entr(mixture).sum(-1) - (pi[:, None] * torch.special.entr(p).sum(-1)).sum(0)).mean()
    function = lambda u: jensen_shannon(u, weights)  # noqa: E731
    assert_close(function(logits), by_hand.to(dtype), rtol=2e-5 if dtype == torch.float32 else 1e-12, atol=1e-7)
    gradient, hessian = torch.func.grad(function)(logits), torch.func.hessian(function)(logits)
    assert (gradient[list(masked), :, 2] == 0).all()
    assert hessian.isfinite().all()
    low = logits.clamp(min=-80.0)  # a class that is only very unlikely
    assert_close(gradient, torch.func.grad(function)(low), rtol=1e-5, atol=1e-12)
    assert_close(hessian, torch.func.hessian(function)(low), rtol=1e-5, atol=1e-12)


def test_a_class_that_all_branches_mask_may_be_left_out():
    logits = randn(4, 3, 4, 5)
    padded = torch.cat([logits, torch.full((3, 4, 1), -torch.inf, dtype=logits.dtype)], -1)
    ours, plain = torch.func.grad_and_value(jensen_shannon)(padded), torch.func.grad_and_value(jensen_shannon)(logits)
    assert_close((ours[0][..., :5], ours[1]), plain)
    problem_gradient = jsd_gradient(padded.transpose(0, 1), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert_close(problem_gradient.transpose(0, 1) / 4, ours[0])
    problem_hessian = jsd_hessian(padded.transpose(0, 1), torch.full((3,), 1 / 3, dtype=torch.float64))
    assert problem_hessian.isfinite().all()


def test_a_row_without_a_class_is_refused():
    logits = randn(4, 3, 4, 5)
    logits[1, 2:] = -torch.inf
    for call in (jensen_shannon, JSDConsistency(WEIGHTS[3])):
        with pytest.raises(ValueError, match=r"every class of row 2 in branch 1 is masked by -inf.*here 2 of 4"):
            call(logits)
    kept = jensen_shannon(logits[:, :2], reduction="none")
    assert kept.isfinite().all()
    certain = torch.full((2, 3, 1), -torch.inf)  # of two classes, whose second is impossible
    assert_close(jensen_shannon(certain), torch.tensor(0.0))
    assert jensen_shannon(logits * torch.nan).isnan()  # a training that diverges is not our fault


def test_equal_branches_and_sure_predictions_have_finite_derivatives():
    for row in ([0.0, 0.0, 0.0], [900.0, 0.0, -900.0], [0.0, -torch.inf, -torch.inf]):
        logits = torch.tensor(row).expand(3, 2, 3).clone()
        gradient, value = torch.func.grad_and_value(jensen_shannon)(logits)
        assert_close(value, torch.tensor(0.0))
        assert_close(gradient, torch.zeros(3, 2, 3))
        assert torch.func.hessian(jensen_shannon)(logits).isfinite().all()


def test_weights_of_the_consistency_keep_their_precision_and_need_no_float64_elsewhere():
    logits = randn(2, 3, 4, 5)
    expected = jensen_shannon(logits, WEIGHTS[3])
    assert_close(JSDConsistency(WEIGHTS[3], gamma=1.0).half()(logits), expected, rtol=1e-12, atol=0)
    assert JSDConsistency(WEIGHTS[3]).to("meta")(logits.float().to("meta")).device.type == "meta"


def test_consistency_is_gamma_times_the_mean():
    logits = randn(2, 3, 4, 5)
    assert_close(JSDConsistency()(*logits), 12 * jensen_shannon(logits))
    weighted = JSDConsistency(WEIGHTS[3], gamma=2.0)
    assert_close(weighted(logits), 2 * jensen_shannon(logits, WEIGHTS[3]))
    assert not list(weighted.parameters())
    assert not weighted.state_dict()
    assert repr(weighted) == "JSDConsistency(weights=[0.5, 0.2, 0.3], gamma=2.0)"
    assert_close(weighted.float()(logits.float()), weighted(logits).float())


ERRORS = [
    (([torch.zeros(2, 3)],), {}, ValueError, "m >= 2 tensors"),
    (([],), {}, ValueError, "m >= 2 tensors"),
    (([torch.zeros(2), torch.zeros(2)],), {}, ValueError, r"u\.unsqueeze\(-1\)"),
    (([torch.zeros(2, 3), torch.zeros(3, 3)],), {}, ValueError, "branches of one shape"),
    (([torch.zeros(2, 3), torch.zeros(2, 3).long()],), {}, TypeError, "floating-point tensors, got torch.int64"),
    (([torch.zeros(2, 3), None],), {}, TypeError, "got NoneType"),
    ((torch.zeros(2, 2, 3), [1.0]), {}, ValueError, "each of the 2 branches"),
    ((torch.zeros(2, 2, 3), [0.5, 0.6]), {}, ValueError, "sum to 1"),
    ((torch.zeros(2, 2, 3), [-0.5, 1.5]), {}, ValueError, ">= 0"),
    ((torch.zeros(2, 2, 3),), {"reduction": "max"}, ValueError, r"reduction: expected one of .'mean', 'sum', 'none'."),
]


@pytest.mark.parametrize(("args", "options", "error", "match"), ERRORS)
def test_unfit_arguments_are_refused(args, options, error, match):
    with pytest.raises(error, match=match):
        jensen_shannon(*args, **options)


@pytest.mark.parametrize("gamma", [-1.0, math.inf, math.nan])
def test_unfit_gamma_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma: expected a finite number >= 0"):
        JSDConsistency(gamma=gamma)


def test_unfit_weights_are_refused_at_once():
    with pytest.raises(ValueError, match="sum to 1"):
        JSDConsistency([0.5, 0.4])
