"""Losses with positions: dense labels, positions that do not count, weights, smoothing, several labels of a sample."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from problems import finish, mlp, randn
from torch import nn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.adversarial.label_margins import hard_labels
from nfm_theory.setting.targets import chosen_loss, fitted_loss, mixable_labels

N, K = 5, 4
LAW = nt.Law(add_noise=0.3, mult_noise=0.2)
X = randn(0, N, 2, 2, 3)
MAPS = (torch.arange(N * 6) * 7 % 5 % K).reshape(N, 2, 3)
MAPS[0, 0], MAPS[1, 1, 2], MAPS[2] = 255, 255, torch.tensor([[255, 255, 1], [255, 255, 255]])
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.3], dtype=torch.float64)
WEIGHTS = randn(1, N).abs() + 0.1
POSITION_WEIGHTS = randn(2, N, 2, 3).abs()
SEVERAL, NUMBERS = (randn(3, N, K) > 0).double(), randn(4, N, K)


class Segmentation(nn.Module):
    """Two convolutions and a map of logits for each class; tokens are the same with one dimension fewer."""

    def __init__(self, last=False):
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 1)
        self.soft, self.logits, self.last = nn.Softplus(), nn.Conv2d(3, K, 1), last

    def forward(self, x):
        maps = self.logits(self.soft(self.second(self.act(self.first(x)))))
        return maps.movedim(1, -1) if self.last else maps


MODEL, LAST = finish(Segmentation, 0), finish(lambda: Segmentation(last=True), 0)
MULTI = mlp(5, (6, 5, K))
FLAT = randn(6, N, 6)


def positions_weighted(value):
    """PyTorch's loss of every position times a weight, over the sum of the weights."""

    def loss(u, y):
        each = F.cross_entropy(u, y, ignore_index=255, reduction="none")
        return (value * each).sum() / (value * (y != 255)).sum()

    return loss


def sample_means(u, y):
    each, counts = F.cross_entropy(u, y, ignore_index=255, reduction="none"), (y != 255).flatten(1).sum(1)
    return (each.flatten(1).sum(1) / counts).mean()


def weighted_bce(u, y):
    each = F.binary_cross_entropy_with_logits(u, y, reduction="none")
    return (WEIGHTS[:, None] * each).sum() / (WEIGHTS.sum() * K)


def dice(u, y):
    """A loss of each sample that couples all its positions, written for maps."""
    p, own = u.softmax(1), F.one_hot(y, K).movedim(-1, 1)
    return 1 - (2 * (p * own).flatten(1).sum(1) + 1) / (p.square().flatten(1).sum(1) + own.flatten(1).sum(1) + 1)


TORCH = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=255, label_smoothing=0.1)
BINARY = nn.BCEWithLogitsLoss(weight=CLASS_WEIGHTS, pos_weight=2 * CLASS_WEIGHTS)
#: The model, inputs, labels, the loss of the library, and that of PyTorch for the whole batch.
CASES = {
    "module": (MODEL, X, MAPS, TORCH, TORCH),
    "classes last": (LAST, X, MAPS, TORCH, lambda u, y: TORCH(u.movedim(-1, 1), y)),
    "position weights": (
        MODEL, X, (MAPS, POSITION_WEIGHTS), nt.CrossEntropy(ignore_index=255), positions_weighted(POSITION_WEIGHTS),
    ),
    "sample weights": (
        MODEL, X, (MAPS, WEIGHTS), nt.CrossEntropy(ignore_index=255), positions_weighted(WEIGHTS[:, None, None]),
    ),
    "sample mean": (MODEL, X, MAPS, nt.CrossEntropy(ignore_index=255, reduction="sample_mean"), sample_means),
    "sum": (
        MODEL, X, MAPS, nt.CrossEntropy(ignore_index=255, reduction="sum"),
        lambda u, y: F.cross_entropy(u, y, ignore_index=255, reduction="sum") / N,
    ),
    "distributions": (
        MODEL, X, randn(7, N, K, 2, 3).softmax(1), nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2),
    ),
    "one label each": (
        MULTI, FLAT, torch.tensor([0, 3, -100, 1, 2]), nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
    ),
    "several labels": (MULTI, FLAT, SEVERAL, BINARY, BINARY),
    "several labels with weights": (MULTI, FLAT, (SEVERAL, WEIGHTS), "bce", weighted_bce),
    "numbers": (MULTI, FLAT, NUMBERS, nn.MSELoss(), nn.MSELoss()),
    "a function of maps": (MODEL, X, MAPS % K, dice, lambda u, y: dice(u, y).mean()),
    "maps of numbers": (MODEL, X, randn(8, N, K, 2, 3), "mse", nn.MSELoss()),
}  # fmt: skip


def batch_loss(case, h, problem):
    """PyTorch's loss of the whole batch as a function of the features."""
    *_, y, _, loss = case
    return loss(problem._split.head(h), y[0] if isinstance(y, tuple) else y)


def naive(case, problem):
    """R1 and the sums of second order from the dense Hessian of PyTorch's loss of the whole batch.

    The samples do not interact, so that the block of sample i is n⁻¹ times the Hessian of its loss.
    """
    g = problem.features
    n, d = len(g), g[0].numel()
    value = lambda flat: batch_loss(case, flat.reshape(g.shape), problem)  # noqa: E731
    slope = torch.func.grad(value)(g.flatten()).reshape(n, d)
    hessian = torch.func.hessian(value)(g.flatten()).reshape(n, d, n, d)
    m1, m2 = problem.mixing.moment(1), problem.mixing.moment(2)
    found = dict.fromkeys(("R1", "data", "add", "mult"), 0.0)
    flat = g.flatten(1)
    for i in range(n):
        block = hessian[i, :, i]
        for r in range(n):
            v = flat[r] - flat[i]
            found["R1"] += m1 * slope[i] @ v / n
            found["data"] += m2 / 2 * v @ block @ v / n
        found["add"] += problem.law.add_noise**2 / 2 * block.trace()
        found["mult"] += problem.law.mult_noise**2 / 2 * (block.diagonal() * flat[i] ** 2).sum()
    return found


def problem_of(name, **options):
    model, x, y, loss, _ = CASES[name]
    return nt.Problem(model, x, y, layer="1" if model is MULTI else "act", loss=loss, **{"law": LAW, **options})


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_terms_equal_those_of_the_batch_loss_of_pytorch(name):
    problem = problem_of(name)
    with torch.no_grad():
        ours = problem.losses(problem.features, torch.arange(N))
        assert_close(ours.mean(), batch_loss(CASES[name], problem.features, problem), rtol=1e-12, atol=1e-14)
        terms, twin = nt.terms(problem), naive(CASES[name], problem)
    found = {"R1": terms.R1, "data": terms.R2 + terms.R3, "add": terms.R2_add + terms.R3_add}
    found["mult"] = terms.R2_mult + terms.R3_mult
    for key, value in twin.items():
        assert_close(found[key], value, rtol=1e-10, atol=1e-14, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_closed_derivatives_equal_automatic_ones(name):
    problem = problem_of(name)
    u, closed = problem.head(problem.features).detach(), problem.loss
    open_form = nt.PointwiseLoss(closed.name, closed.function, closed.prepare)
    assert_close(closed.gradient(u, problem.labels), open_form.gradient(u, problem.labels), rtol=1e-11, atol=1e-14)
    blocks, dense = closed.hessian(u, problem.labels), open_form.hessian(u, problem.labels)
    if blocks.ndim == 4:
        blocks = torch.stack([torch.block_diag(*one) for one in blocks])
    assert_close(blocks, dense, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["module", "sample mean", "several labels", "numbers"])
def test_mixed_labels_are_mixtures_of_both_losses(name):
    """Each loss of the mixture has its own positions that count: equal to PyTorch's for the permuted labels."""
    problem = problem_of(name)
    draw = problem.draw(N, 1, unmixed=False, as_trained=True, generator=torch.Generator().manual_seed(0))
    h = nt.perturb(problem.features, draw, problem.law)
    lam, y = draw.lam[0], CASES[name][2]
    first, second = (
        batch_loss((*CASES[name][:2], labels, *CASES[name][3:]), h, problem) for labels in (y, y[draw.index])
    )
    assert_close(problem.mixed_label_losses(draw).mean(), lam * first + (1 - lam) * second, rtol=1e-12, atol=1e-14)


def test_unmixing_with_ignored_positions_is_exact():
    problem = problem_of("module", law=nt.Law(alpha=1.0))
    mixed, unmixed = (float(nt.loss(problem, method="exact", form=form)) for form in ("mixed", "unmixed"))
    assert mixed == pytest.approx(unmixed, rel=1e-9)


@pytest.mark.parametrize("name", ["module", "several labels"])
def test_the_verdict_holds_and_a_wrong_term_is_refuted(name):
    problem = problem_of(name, law=nt.Law(alpha=1.0))
    with torch.no_grad():
        assert nt.verify(problem).verdict == "holds"
        terms = nt.terms(problem)
        assert nt.verify(problem, terms=replace(terms, R2=1.1 * terms.R2)).verdict == "refuted"


def test_many_positions_of_a_piecewise_linear_network_take_few_directions():
    """Its Jacobian has a hundred rows; the pairs of three samples have four directions."""

    def build():
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, K, 3, padding=1))

    x, y, model = randn(1, 3, 1, 5, 5), torch.arange(75).reshape(3, 5, 5) % K, finish(build, 2)
    problem = nt.Problem(model, x, y, law=nt.Law(alpha=1.0), loss=nn.CrossEntropyLoss(ignore_index=2))
    with torch.no_grad():
        found = nt.regularizers(problem)
        twin = naive((model, x, y, None, nn.CrossEntropyLoss(ignore_index=2)), problem)
    assert found.piecewise_linear
    assert found.passes == 4
    assert_close(found.R1.value, twin["R1"], rtol=1e-10, atol=1e-14)
    assert_close(found.R2.value, twin["data"], rtol=1e-10, atol=1e-14)
    assert float(found.R3) == 0


def test_third_order_equals_nested_derivatives():
    problem = problem_of("module")
    with torch.no_grad():
        assert_close(nt.terms(problem).C3, nt.coefficients(problem, 3)[3], rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("size", [1, 2, N])
@pytest.mark.parametrize("name", ["module", "sample mean", "position weights"])
def test_from_a_loader(name, size):
    model, x, y, loss, _ = CASES[name]
    y = y if isinstance(y, tuple) else (y,)
    rows = [range(i, min(i + size, N)) for i in reversed(range(0, N, size))]  # sample 0 counts
    batches = [(x[r], tuple(z[r] for z in y) if len(y) > 1 else y[0][r]) for r in map(list, rows)]
    whole = nt.regularizers(problem_of(name), method="exact")
    found = nt.regularizers(nt.Problem.from_loader(model, batches, layer="act", law=LAW, loss=loss))
    assert_close(found.standard, whole.standard.detach(), rtol=1e-12, atol=0)
    for term, expected in whole.estimates.items():
        assert_close(found[term].value, expected.value.detach(), rtol=1e-10, atol=1e-14, msg=term)


def test_pairs_within_batches_are_unbiased_with_ignored_positions():
    """The mean over all ways to cut four samples into two batches is the term of all samples."""
    rows = [0, 1, 3, 4]
    law, loss = nt.Law(alpha=1.0), nt.CrossEntropy(ignore_index=255)
    whole = nt.regularizers(nt.Problem(MODEL, X[rows], MAPS[rows], layer="act", law=law, loss=loss), method="exact")
    found = {"R1": [], "R2": [], "R3": []}
    for first in itertools.combinations(rows, 2):
        metric = nt.StreamingRegularizers(MODEL, layer="act", law=law, loss=loss)
        for part in (list(first), [r for r in rows if r not in first]):
            metric.update(X[part], MAPS[part])
        for name, values in found.items():
            values.append(metric.compute()[name].value)
    for name, values in found.items():
        assert_close(torch.stack(values).mean(), whole[name].value.detach(), rtol=1e-10, atol=1e-15)


# One value for each sample ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "probes"])
def test_regularizers_of_every_sample(method):
    problem = problem_of("module")
    each, mean = (
        nt.regularizers(problem, method, generator=torch.Generator().manual_seed(0), reduction=reduction)
        for reduction in ("none", "mean")
    )
    for name, estimate in mean.estimates.items():
        assert each[name].value.shape == each[name].stderr.shape == (N,)
        assert_close(each[name].value.mean(), estimate.value, rtol=1e-11, atol=1e-15)
        assert_close(each[name].averaged.stderr, estimate.stderr, rtol=1e-11, atol=1e-15)
    assert str(each).splitlines()[:-1] == str(mean).splitlines()[:-1]


def test_terms_of_one_sample_are_those_of_its_loss_alone():
    """Additive noise knows no partner: the term of a sample is n times its share when it is the only one."""
    law = nt.Law(alpha=0, add_noise=0.3)
    problem = problem_of("sample mean", law=law)
    each = nt.terms(problem, reduction="none")
    assert each.C3.shape == (N,)
    for i in range(N):
        alone = nt.Problem(MODEL, X[i : i + 1], MAPS[i : i + 1], layer="act", law=law, loss=CASES["sample mean"][3])
        assert_close(each.R2_add[i], nt.terms(alone).R2_add, rtol=1e-10, atol=1e-15)
    assert each.to_dict()["R3_add"] == each.R3_add.tolist()


def test_the_remainder_of_every_sample():
    problem = problem_of("module")
    with torch.no_grad():
        assert_close(nt.terms(problem, reduction="none").C3.mean(), nt.terms(problem).C3, rtol=1e-11, atol=1e-15)


# The penalty --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["module", "classes last", "position weights", "several labels", "maps of numbers"])
def test_the_penalty_is_unbiased(name):
    model, x, y, loss, _ = CASES[name]
    layer = "1" if model is MULTI else "act"
    with torch.no_grad():
        terms = nt.terms(problem_of(name), remainder=False)
    penalty = nt.TaylorRegularizer(
        layer, LAW, loss=loss, num_probes=4000, generator=torch.Generator().manual_seed(0), reduction="none"
    )
    with torch.no_grad():
        values = penalty(model, x, y)
    assert values.shape == (N,)
    whole = float(terms.R1 + terms.second)
    assert float(values.mean()) == pytest.approx(whole, rel=0.1, abs=1e-6)
    assert float(penalty.last["R1"].mean()) == pytest.approx(float(terms.R1), rel=1e-10)


def test_the_gradient_of_the_penalty_equals_that_of_the_exact_terms_without_noise_of_probes():
    """For two samples every random pair of the data is the same up to its sign or zero: a mean over draws is exact."""
    model = copy.deepcopy(MODEL).requires_grad_()
    x, y, loss = X[:2], MAPS[:2], nt.CrossEntropy(ignore_index=255)
    law = nt.Law(alpha=1.0)
    penalty = nt.TaylorRegularizer("act", law, loss=loss, terms=["R1"])
    penalty(model, x, y).backward()
    weight = model.first.weight.grad.clone()
    model.zero_grad()
    nt.terms(nt.Problem(model, x, y, layer="act", law=law, loss=loss), remainder=False).R1.backward()
    assert_close(weight, model.first.weight.grad, rtol=1e-10, atol=1e-14)


# The training step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[""], ["act"]])
@pytest.mark.parametrize("last", [False, True])
def test_a_step_with_ignored_positions_has_the_mixture_of_both_losses(layers, last):
    model = copy.deepcopy(LAST if last else MODEL).train()
    loss = nt.CrossEntropy(ignore_index=255, weight=CLASS_WEIGHTS, class_dim=-1 if last else None)
    mixup = nt.NoisyFeatureMixup(model, layers, LAW, generator=torch.Generator().manual_seed(1))
    inputs, targets = mixup(X, loss.targets(MAPS, K, dtype=torch.float64))
    outputs = model(inputs)
    if last:  # F.cross_entropy takes the classes in dimension 1
        found = F.cross_entropy(outputs.flatten(0, 2), targets.flatten(0, 2))
        outputs = outputs.movedim(-1, 1)
    else:
        found = F.cross_entropy(outputs, targets)
    draw = mixup.last.draw
    first, second = (
        F.cross_entropy(outputs, labels, weight=CLASS_WEIGHTS, ignore_index=255) for labels in (MAPS, MAPS[draw.index])
    )
    assert_close(found, draw.lam[0] * first + (1 - draw.lam[0]) * second, rtol=1e-12, atol=1e-14)


def test_a_step_takes_class_maps_with_pytorchs_own_ignore_index():
    model, y = copy.deepcopy(MODEL).train(), torch.where(MAPS == 255, -100, MAPS)
    mixup = nt.NoisyFeatureMixup(model, "act", LAW, num_classes=K, label_smoothing=0.1)
    inputs, targets = mixup(X, y)
    outputs, draw = model(inputs), mixup.last.draw
    first, second = (F.cross_entropy(outputs, labels, label_smoothing=0.1) for labels in (y, y[draw.index]))
    assert targets.shape == (N, K, 2, 3)
    assert_close(F.cross_entropy(outputs, targets), draw.lam[0] * first + (1 - draw.lam[0]) * second)


def test_maps_of_eight_bits():
    loss, maps = nt.CrossEntropy(), (MAPS % K).to(torch.uint8)
    assert_close(loss.targets(maps, K), F.one_hot(maps.long(), K).movedim(-1, 1).float(), rtol=0, atol=0)
    own, labels, _ = fitted_loss(loss, randn(0, N, K, 2, 3), maps)
    assert own.name == "CrossEntropy()"
    assert_close(labels.sum(), torch.tensor(float(N), dtype=torch.float64))  # c is 1/6, and six positions count


@pytest.mark.parametrize("reduction", ["mean", "sample_mean", "sum"])
def test_targets_have_the_loss_of_the_problem(reduction):
    loss, u = nt.CrossEntropy(ignore_index=255, reduction=reduction, label_smoothing=0.1), randn(9, N, K, 2, 3)
    targets = loss.targets((MAPS, POSITION_WEIGHTS), K, dtype=torch.float64)
    own, labels, _ = fitted_loss(loss, u, (MAPS, POSITION_WEIGHTS))
    assert_close(F.cross_entropy(u, targets), own(own.layout(u), labels).mean(), rtol=1e-12, atol=1e-14)


def test_a_batch_in_which_nothing_counts_has_the_loss_zero():
    targets = nt.CrossEntropy(ignore_index=0).targets(torch.zeros(2, 3, dtype=torch.long), K)
    assert float(F.cross_entropy(torch.randn(2, K, 3), targets)) == 0


# Several inputs and outputs with parts ------------------------------------------------------------------------------


class Text(nn.Module):
    """Embedding, a layer that reads a mask, logits for each token; it returns a dict, as models of text do."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(7, 3), nn.Linear(3, 3), nn.Linear(3, K)

    def forward(self, ids, mask=None, shift=None):
        h = self.embed(ids)
        mask = torch.ones_like(ids) if mask is None else mask
        mean = (h * mask.unsqueeze(-1)).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        h = torch.tanh(self.mix(h) + mean) + (0 if shift is None else shift)
        return {"logits": self.out(h), "hidden": h}


TEXT = finish(Text, 3)
IDS, TAGS = torch.arange(N * 5).reshape(N, 5) * 3 % 7, torch.arange(N * 5).reshape(N, 5) % K
TAGS[0, 2:] = -100


@pytest.mark.parametrize("kind", ["tensor", "dict", "tuple"])
def test_tokens_with_several_inputs_and_a_dict_of_outputs(kind):
    mask = torch.ones_like(IDS)
    x = {"tensor": IDS, "dict": {"ids": IDS, "mask": mask}, "tuple": (IDS, mask)}[kind]
    options = {"layer": "embed", "law": LAW, "output": "logits"}
    problem = nt.Problem(TEXT, x, TAGS, **options)
    whole = nt.Problem(lambda h: TEXT.out(torch.tanh(TEXT.mix(h) + h.mean(1, keepdim=True))), TEXT.embed(IDS).detach(),
                       TAGS, law=LAW)  # fmt: skip
    with torch.no_grad():
        expected = F.cross_entropy(TEXT(IDS)["logits"].transpose(1, 2), TAGS)
        assert_close(problem.losses(problem.features, torch.arange(N)).mean(), expected, rtol=1e-12, atol=0)
        assert_close(nt.terms(problem).to_dict(), nt.terms(whole).to_dict(), rtol=1e-10, atol=1e-14)
    assert nt.layer_names(TEXT, x, output="logits") == ["embed", "out"]
    penalty = nt.TaylorRegularizer("embed", LAW, output="logits", num_probes=2)
    assert penalty(TEXT, x, TAGS).isfinite()
    if kind == "dict":
        loader = [{"ids": IDS[r], "mask": mask[r], "labels": TAGS[r]} for r in (slice(0, 3), slice(3, N))]
        found = nt.regularizers(nt.Problem.from_loader(TEXT, loader, **options))
        assert_close(found.R2.value, nt.regularizers(problem, "exact").R2.value.detach(), rtol=1e-10, atol=1e-15)
    mixup = nt.NoisyFeatureMixup(copy.deepcopy(TEXT).train(), "embed", LAW, num_classes=K)
    inputs, targets = mixup(x, TAGS)
    outputs = mixup._model(**inputs) if kind == "dict" else mixup._model(*inputs) if kind == "tuple" else None
    assert targets.shape == (N, K, 5)
    assert outputs is None or outputs["logits"].shape == (N, 5, K)
    mixup.disarm()


def test_an_input_beside_the_layer_that_differs_from_sample_to_sample_is_refused():
    x = {"ids": IDS, "shift": randn(0, N, 1, 3)}
    with pytest.raises(ValueError, match="depend on the inputs other than through this layer"):
        nt.Problem(TEXT, x, TAGS, layer="embed", output="logits")


# Refusals -----------------------------------------------------------------------------------------------------------

BAD = {
    "shape": ({"y": MAPS[:, :1]}, ValueError, r"class indices of shape \(5, 2, 3\)"),
    "range": ({"y": MAPS, "loss": "cross_entropy"}, ValueError, r"in 0\.\.3 \(K = 4\), or -100"),
    "nothing counts": ({"y": torch.full_like(MAPS, 255)}, ValueError, "a position that counts"),
    "weights": ({"y": (MAPS, torch.ones(N, 2))}, ValueError, r"weights: expected one for each sample, \(5,\)"),
    "negative weights": ({"y": (MAPS, -torch.ones(N))}, ValueError, "finite numbers >= 0"),
    "length": ({"y": (MAPS, torch.ones(3))}, ValueError, "same number of samples, got 5 and 5 and 3"),
    "no tensors": ({"y": [0, 1, 2, 3, 0]}, TypeError, r"pair \(labels, weights\)"),
    "class weights": ({"loss": nt.CrossEntropy(weight=torch.ones(3), ignore_index=255)}, ValueError, r"class, \(4,\)"),
    "square": ({"loss": "square"}, ValueError, "use 'cross_entropy', 'bce' or 'mse'"),
    "weights of a callable": (
        {"loss": lambda u, y: u.flatten(1).sum(1), "y": (MAPS, torch.ones(N))}, TypeError, "weights of labels are for",
    ),
    "a mean over samples": ({"loss": nn.HuberLoss(), "y": randn(0, N, K, 2, 3)}, ValueError, "but not over samples"),
    "binary": ({"loss": "bce", "y": 2 * torch.ones(N, K, 2, 3)}, ValueError, "0, 1 or probabilities"),
    "binary shape": ({"loss": "bce"}, ValueError, "the shape of the outputs"),
    "distributions": ({"y": torch.ones(N, K, 2, 3)}, ValueError, "expected distributions of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_labels_that_do_not_fit_are_refused(name):
    changes, error, match = BAD[name]
    options = {"y": MAPS, "loss": nt.CrossEntropy(ignore_index=255), **changes}
    with pytest.raises(error, match=match):
        nt.Problem(MODEL, X, options.pop("y"), layer="act", **options)


def test_classes_in_either_dimension_must_be_named():
    u = randn(0, 2, 3, 3)
    with pytest.raises(ValueError, match="class_dim=1"):
        nt.CrossEntropy().fitted(u, torch.zeros(2, 3, dtype=torch.long))
    first, last = (nt.CrossEntropy(class_dim=dim).fitted(u, torch.tensor([[0, 1, 2]] * 2)) for dim in (1, -1))
    assert_close(
        first.loss(first.loss.layout(u), first.labels).mean(), F.cross_entropy(u, torch.tensor([[0, 1, 2]] * 2))
    )
    assert_close(
        last.loss(last.loss.layout(u), last.labels).mean(), F.cross_entropy(u.mT, torch.tensor([[0, 1, 2]] * 2))
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nt.CrossEntropy(reduction="none"), "reduction: expected one of"),
        (lambda: nt.CrossEntropy(label_smoothing=1.0), "label_smoothing"),
        (lambda: nt.CrossEntropy(class_dim=2), "class_dim"),
        (lambda: nt.CrossEntropy().targets(torch.ones(2), 3), "class indices"),
        (lambda: nt.CrossEntropy().targets(torch.tensor([3]), 3), r"in 0\.\.2"),
        (lambda: nt.adversarial.pgd_attack(problem_of("module"), radius=0.1), "one label for each sample"),
        (lambda: nt.terms(problem_of("module"), reduction="sum"), "reduction: expected one of"),
        (lambda: nt.Branches(MODEL, torch.stack([X, X]), law=LAW), r"expected outputs \(n, K\) of every branch"),
        (lambda: mixable_labels(randn(0, N, 3, 2), torch.float64, None, 0.1), "no classes in dimension 1"),
    ],
)
def test_options_out_of_range_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_usual_losses_stay_what_they_were():
    """Without options, certificates and margins go on to know cross entropy and the logistic loss."""
    problem = nt.Problem(MULTI, FLAT, torch.arange(N) % K, loss=nn.CrossEntropyLoss())
    assert problem.loss.name == "cross_entropy"
    assert hard_labels(problem.labels, problem.loss).all()
    assert str(chosen_loss(TORCH)) == "CrossEntropy(weight=..., ignore_index=255, label_smoothing=0.1)"
