import pytest
import torch
from building import build_problem
from problems import mlp, randn

import nfm_theory as nt

MODEL, X, Y = mlp(0, [3, 5, 3]), randn(1, 6, 3), torch.tensor([0, 1, 2, 1, 0, 2])


def broken(outputs, labels):
    return (outputs - outputs).sum() / 0


BAD = [
    ({"x": X.numpy()}, TypeError, "expected tensors, got ndarray"),
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
