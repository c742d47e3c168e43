from collections import namedtuple

import pytest
import torch
from building import build_problem
from naive import naive_terms
from problems import mlp, randn
from tiers import slow
from torch import nn

import nfm_theory as nt

MODEL, X, Y = mlp(0, [3, 5, 3]), randn(1, 6, 3), torch.tensor([0, 1, 2, 1, 0, 2])


def broken(outputs, labels):
    return (outputs - outputs).sum() / 0


BAD = [
    ({"x": X.numpy()}, TypeError, "expected a tensor .*got ndarray"),
    ({"y": Y[:4]}, ValueError, "same number of samples, got 6 and 4"),
    ({"x": X.round().long()}, TypeError, "(?i)integer|floating"),
    ({"x": torch.full_like(X, float("nan"))}, ValueError, "(?i)finite"),
    ({"layer": "7"}, ValueError, "7"),
    ({"model": mlp(0, [4, 5, 3])}, (ValueError, RuntimeError), "."),
    ({"loss": broken}, ValueError, "one value per sample|not finite"),
    ({"loss": lambda u, y: u.sum(-1) * float("nan")}, ValueError, "6 of 6 per-sample losses are not finite"),
    ({"add_noise": float("nan")}, ValueError, "add_noise"),
    ({"alpha": -1.0}, ValueError, "alpha"),
    ({"noise": 3}, TypeError, "noise"),
]


@pytest.mark.parametrize(("change", "error", "match"), BAD)
def test_unfit_arguments_are_refused(change, error, match):
    arguments = {"model": MODEL, "x": X, "y": Y, **change}
    with pytest.raises(error, match=match):
        build_problem(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_single_output_heads_may_drop_the_last_dimension():
    y = torch.tensor([0.0, 1, 1, 0, 1, 0])
    flat = nt.terms(build_problem(lambda h: torch.tanh(h).sum(-1), X, y, loss="logistic", add_noise=0.1))
    wide = nt.terms(build_problem(lambda h: torch.tanh(h).sum(-1, keepdim=True), X, y, loss="logistic", add_noise=0.1))
    assert flat.to_dict() == wide.to_dict()


def test_block_bytes_set_the_rows_of_a_block():
    problem = build_problem(MODEL, X, Y)
    with nt.options(block_bytes=10_000):
        small, quarter = problem.block_rows(), problem.block_rows(passes=4)
    with nt.options(block_bytes=1_000_000):
        large = problem.block_rows()
    assert 1 <= quarter < small < large
    assert large == pytest.approx(100 * small, rel=0.05)
    with nt.options(block_bytes=8), pytest.raises(ValueError, match="block_bytes: one row alone needs about"):
        problem.block_rows()


def test_a_custom_loss_with_its_own_labels():
    def pinball(outputs, labels):
        gap = labels - outputs[:, 0]
        return torch.nn.functional.softplus(gap) - 0.3 * gap

    y = randn(2, 6)
    terms = nt.terms(build_problem(MODEL, X, y, loss=pinball, add_noise=0.2))
    rows = nt.coefficients(build_problem(MODEL, X, y, loss=pinball, add_noise=0.2), order=3, rule="cubature-3")
    torch.testing.assert_close(rows, torch.stack(terms.coefficients(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_everything_follows_the_device_of_its_inputs(dtype):
    model, x, y = mlp(0, [3, 5, 3]).to("cuda", dtype), X.to("cuda", dtype), Y.cuda()
    report = nt.verify(build_problem(model, x, y, add_noise=0.3, mult_noise=0.2))
    assert report.verdict == "holds"
    on_cpu = nt.terms(build_problem(MODEL, X, Y, add_noise=0.3, mult_noise=0.2)).to_dict()
    on_gpu = nt.terms(build_problem(model, x, y, add_noise=0.3, mult_noise=0.2))
    assert on_gpu.C3.device.type == "cuda"
    assert on_gpu.to_dict() == pytest.approx(on_cpu, rel=1e-9 if dtype == torch.float64 else 1e-3, abs=1e-6)
    options = {"samples": 2_000, "generator": torch.Generator().manual_seed(0)}
    loss = nt.loss(build_problem(model, x, y, add_noise=0.3), method="monte_carlo", **options)
    assert loss.value.device.type == "cuda"


# Settings that are missing, or of the wrong kind ---------------------------------------------------------------------

NEED_A_LAW = {
    "terms": nt.terms,
    "loss": nt.loss,
    "verify": nt.verify,
    "coefficients": nt.coefficients,
    "regularizers": nt.regularizers,
    "error_curve": lambda p: nt.error_curve(p, [0.1]),
    "bound": nt.adversarial.bound,
}


@pytest.mark.parametrize("verb", NEED_A_LAW)
def test_a_missing_law_is_asked_for(verb):
    with pytest.raises(ValueError, match=r"law: expected a law of mixing and noise; build .* law=nfm_theory\.Law"):
        NEED_A_LAW[verb](nt.Problem(MODEL, X, Y))


@pytest.mark.parametrize("verb", NEED_A_LAW)
@pytest.mark.parametrize("wrong", [MODEL, None, [MODEL]], ids=["model", "nothing", "list"])
def test_verbs_refuse_what_is_no_problem(verb, wrong):
    with pytest.raises(TypeError, match=r"problem: expected (an|one) nfm_theory\.Problem"):
        NEED_A_LAW[verb](wrong)


@pytest.mark.parametrize("verb", [name for name in NEED_A_LAW if name != "bound"])
def test_verbs_refuse_an_empty_list(verb):
    with pytest.raises(ValueError, match="expected at least one problem"):
        NEED_A_LAW[verb]([])


def test_what_needs_no_law_takes_none():
    problem = nt.Problem(MODEL, X, MODEL(X).argmax(1))
    assert (nt.generalization.jacobian_norms(problem).spectral > 0).all()
    assert nt.adversarial.pgd_attack(problem, 0.1, steps=2, restarts=1) is not None
    assert "no law" in repr(problem)


def test_wrong_kinds_say_what_was_expected():
    for options, match in (
        ({"law": {"add_noise": 0.1}}, r"law: expected an nfm_theory\.Law, got dict"),
        ({"layer": ["", "1"]}, r"layer: expected one name, got \['', '1'\]; at_layers"),
        ({"loss": 3}, "expected a name or a callable"),
    ):
        with pytest.raises(TypeError, match=match):
            nt.Problem(MODEL, X, Y, **options)
    with pytest.raises(ValueError, match=r"loss: expected one of .*did you mean 'cross_entropy'"):
        nt.Problem(MODEL, X, Y, loss="cross_entropi")


# Several layers ------------------------------------------------------------------------------------------------------


def test_a_list_of_problems_averages():
    law, layers = nt.Law(add_noise=0.3), ["", "1"]
    both = nt.Problem.at_layers(MODEL, X, Y, layers=layers, law=law)
    assert [p.layer for p in both] == layers
    terms = [nt.terms(p) for p in both]
    mean = nt.terms(both)
    assert list(mean.per_layer) == layers
    for name in ("standard", "R1", "R2", "R3", "R2_add", "R3_add", "C3"):
        torch.testing.assert_close(mean[name], (terms[0][name] + terms[1][name]) / 2)
    rule = nt.Quadrature(num_noise=3)
    parts = [float(nt.loss(p, 0.5, "exact", quadrature=rule)) for p in both]
    assert float(nt.loss(both, 0.5, "exact", quadrature=rule)) == pytest.approx(sum(parts) / 2, rel=1e-12)
    found, alone = nt.regularizers(both, "exact"), [nt.regularizers(p, "exact") for p in both]
    for name in found.estimates:
        torch.testing.assert_close(found[name].value, (alone[0][name].value + alone[1][name].value) / 2)
    rows = [nt.coefficients(p, 2) for p in both]
    torch.testing.assert_close(nt.coefficients(both, 2), (rows[0] + rows[1]) / 2)
    assert nt.verify(both).layer == ("", "1")


@pytest.mark.parametrize("layers", [[], "1"])
def test_layers_are_a_sequence_of_names(layers):
    with pytest.raises(ValueError, match="layers: expected a non-empty sequence of names"):
        nt.Problem.at_layers(MODEL, X, Y, layers=layers)


# What the model returns ----------------------------------------------------------------------------------------------


class Answer(nn.Module):
    """A model that wraps its logits."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = MODEL, wrap

    def forward(self, x):
        return self.wrap(self.body(x))


Record = namedtuple("Record", ["loss", "logits"])
WRAPPED = {
    "a key": (lambda u: {"logits": u, "extra": 2 * u}, "logits"),
    "a key that is a method of dict": (lambda u: {"values": u}, "values"),
    "a position": (lambda u: (u.sum(), u), 1),
    "an attribute": (lambda u: Record(None, u), "logits"),
    "a function": (lambda u: {"parts": [u / 2, u / 2]}, lambda found: sum(found["parts"])),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("layer", ["", "body.1"])
def test_the_outputs_are_a_part_of_what_the_model_returns(name, layer):
    wrap, output = WRAPPED[name]
    law = nt.Law(add_noise=0.3)
    problem = nt.Problem(Answer(wrap), X, Y, layer=layer, law=law, output=output)
    plain = nt.Problem(MODEL, X, Y, layer=layer.removeprefix("body."), law=law)
    assert nt.terms(problem).to_dict() == pytest.approx(nt.terms(plain).to_dict(), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(
    ("wrap", "output"), [(lambda u: {"logits": u}, "logit"), (lambda u: (u,), 3), (lambda u: Record(None, u), "probs")]
)
def test_a_part_that_is_not_there_is_refused_with_the_way_out(wrap, output):
    with pytest.raises(ValueError, match=rf"output: the model returns \w+, which has no {output!r}; name a key"):
        nt.Problem(Answer(wrap), X, Y, output=output)


def test_a_model_that_returns_more_than_outputs_is_told_of_output():
    with pytest.raises(TypeError, match=r"got dict; name the part .*output='logits'"):
        nt.Problem(Answer(lambda u: {"logits": u}), X, Y)


# Partners that are not uniform, with noise ---------------------------------------------------------------------------

PARTNERS = randn(9, 6, 6).abs() / randn(9, 6, 6).abs().sum(1, keepdim=True)
NOISY = nt.Law(0.7, 1.5, add_noise=0.4, mult_noise=0.3)


@pytest.mark.parametrize("law", [NOISY, nt.Law(lam=0.5, add_noise=0.2), nt.Law(add_noise=0.3, noise="rademacher")])
def test_terms_with_partners_and_noise_are_those_of_loops(law):
    found = nt.terms(nt.Problem(MODEL, X, Y, law=law, partners=PARTNERS))
    add, mult = law.noises
    naive = naive_terms(
        MODEL, X, nn.functional.one_hot(Y).double(), lambda u: u.logsumexp(-1),
        moments=[law.mixing.moment(j) for j in (1, 2, 3)], add_second=law.add_noise**2 * add.second,
        mult_second=law.mult_noise**2 * mult.second, partners=PARTNERS,
    )  # fmt: skip
    for name, value in naive.items():
        torch.testing.assert_close(
            found[name], torch.as_tensor(value, dtype=torch.float64), rtol=1e-9, atol=1e-12, msg=f"{name}"
        )


def loss_by_draws(problem, eps, draws, seed):
    """Mean and standard error of the loss, every draw written out: the partner from P(r|i), λ and noise."""
    law, n = problem.law, len(X)
    generator, total = torch.Generator().manual_seed(seed), []
    lam = law.mixing.sample((draws, n), generator=generator, dtype=torch.float64)
    for i in range(n):
        r = torch.multinomial(PARTNERS[i], draws, replacement=True, generator=generator)
        xi = torch.randn(2, draws, X.shape[1], generator=generator, dtype=torch.float64)
        mixed = X[i] + eps * (1 - lam[:, i : i + 1]) * (X[r] - X[i])
        moved = (1 + eps * law.mult_noise * xi[1]) * mixed + eps * law.add_noise * xi[0]
        total.append(nn.functional.cross_entropy(MODEL(moved), Y[i].expand(draws), reduction="none"))
    rows = torch.stack(total)
    return float(rows.mean()), float((rows.var(1) / draws / n**2).sum().sqrt())


@pytest.mark.parametrize("eps", [1.0, *slow([0.5])])
@torch.no_grad()
def test_the_loss_with_partners_and_noise_is_that_of_draws(eps):
    problem = nt.Problem(MODEL, X, Y, law=NOISY, partners=PARTNERS)
    exact = float(nt.loss(problem, eps, "exact", quadrature=nt.Quadrature(num_lam=4, num_noise=3)))
    value, stderr = loss_by_draws(problem, eps, 20_000, seed=0)
    assert abs(value - exact) <= 5 * stderr
    sampled = nt.loss(problem, eps, "monte_carlo", samples=20_000, generator=torch.Generator().manual_seed(0))
    assert abs(float(sampled) - exact) <= 5 * float(sampled.stderr)
    other = nt.Problem(MODEL, X, Y, law=NOISY)
    uniform = float(nt.loss(other, eps, "exact", quadrature=nt.Quadrature(num_lam=4, num_noise=3)))
    assert abs(uniform - exact) > 5 * stderr  # the partners matter


@pytest.mark.parametrize("layer", ["", "1"])
def test_the_expansion_with_partners_and_noise_holds(layer):
    report = nt.verify(nt.Problem(MODEL, X, Y, layer=layer, law=NOISY, partners=PARTNERS))
    assert report.verdict == "holds", report
    wrong = nt.terms(nt.Problem(MODEL, X, Y, layer=layer, law=NOISY))  # of uniform partners
    problem = nt.Problem(MODEL, X, Y, layer=layer, law=NOISY, partners=PARTNERS)
    assert nt.verify(problem, terms=wrong).verdict == "refuted"


def test_uniform_partners_are_no_partners():
    uniform = nt.Problem(MODEL, X, Y, law=NOISY, partners=torch.full((6, 6), 1 / 6, dtype=torch.float64))
    plain = nt.Problem(MODEL, X, Y, law=NOISY)
    assert nt.terms(uniform).to_dict() == pytest.approx(nt.terms(plain).to_dict(), rel=1e-10, abs=1e-13)
    rule = nt.Quadrature(num_lam=4, num_noise=3)
    losses = [nt.loss(p, [0.5, 1.0], "exact", quadrature=rule).value for p in (uniform, plain)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(nt.coefficients(uniform, 3), nt.coefficients(plain, 3), rtol=1e-10, atol=1e-13)
    probes = [
        nt.regularizers(p, "exact")["R3"].value for p in (uniform, plain)
    ]  # fmt: skip
    torch.testing.assert_close(probes[0], probes[1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("partners", "match"),
    [
        (PARTNERS[:3], r"expected P\(r\|i\) of shape \(6, 6\), got torch.Size\(\[3, 6\]\)"),
        (PARTNERS.tolist(), "of shape"),
        (2 * PARTNERS, "non-negative rows that sum to 1"),
        (PARTNERS.T.contiguous(), "sum to 1"),
        (2 * PARTNERS - torch.eye(6, dtype=torch.float64).roll(1, 0), "non-negative"),
        (torch.full((6, 6), float("nan")), "sum to 1"),
    ],
)
def test_wrong_partners_are_refused(partners, match):
    with pytest.raises(ValueError, match=f"partners: .*{match}"):
        nt.Problem(MODEL, X, Y, law=nt.Law(), partners=partners)


def test_a_permutation_of_a_batch_has_uniform_partners():
    problem = nt.Problem(MODEL, X, Y, law=nt.Law(), partners=PARTNERS)
    with pytest.raises(ValueError, match=r"partners: one permutation .* use method='monte_carlo'"):
        nt.loss(problem, method="as_trained")


@pytest.mark.parametrize("branches", [False, True])
def test_another_law_is_as_good_as_a_new_problem(branches):
    def built(law):
        return nt.Branches(MODEL, [X, X + 0.1], Y, law=law, gamma=2.0) if branches else nt.Problem(MODEL, X, Y, law=law)

    first = built(nt.Law(2.0, add_noise=0.1))
    before, other = nt.terms(first), nt.Law(1.0, add_noise=0.5, mult_noise=0.3)
    changed = first.with_law(other)
    assert type(changed) is type(first)
    assert changed.law == other
    assert nt.terms(changed).to_dict() == nt.terms(built(other)).to_dict()
    assert nt.terms(first).to_dict() == before.to_dict() != nt.terms(changed).to_dict()
