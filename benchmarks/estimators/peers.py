r"""Other ways to compute the same numbers, all with derivatives that PyTorch offers itself.

They differentiate the network as its user has it. Behind the rewritings of `exact_derivatives`, which
`Problem.head` applies, the same calls may be faster (batch norm in evaluation mode is one multiplication and one
addition there), and some that fail or are wrong on the network itself are right; `rewritten=True` takes that head.
Parameters do not require gradients, so that nothing is kept; under `no_grad` PyTorch refuses to differentiate some
activations twice.

Unless said otherwise a peer maps a case and sets of directions v, each `(m, b, *feature)` with b = 1 (shared by the
samples) or b = n, to a 0-dim tensor: the mean over the samples of `½ Σ_j Dv_jᵀ · A_i · v_j` over all directions, with

| quantity | A_i |
|---|---|
| `"R2+R3"` | Hessian of the loss in the features, Gauss-Newton and residual part together |
| `"R3"` | residual part alone, `∇²(a_i · f)` with `a = ∂ℓ/∂u` held constant |
| `"R2"` | Gauss-Newton part alone, `Jᵀ F J` |

`peer_packages.py` has those that need another package.
"""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from nfm_theory.calculus.derivatives import directional_derivatives

from .cases import Case


def _twice_differentiable(head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The head with attention by plain operations: PyTorch's fused kernels have a first derivative only."""

    def call(h: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return head(h)

    return call


def sample_function(case: Case, quantity: str, *, rewritten: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The function `(points (b, *feature), samples (b,)) -> (b,)` whose second derivative the quantity is."""
    problem, head = case.problem, case.problem.head if rewritten else _twice_differentiable(case.plain_head)
    if quantity == "R2+R3":
        return lambda h, rows: problem.loss.function(head(h), problem.labels[rows])
    if quantity != "R3":
        raise ValueError(f"quantity: expected 'R2+R3' or 'R3', got {quantity!r}.")
    with torch.no_grad():
        slope = problem.loss.gradient(head(problem.features), problem.labels)
    return lambda h, rows: (slope[rows] * head(h)).sum(-1)


def mean_function(case: Case, quantity: str, **options) -> Callable[[Tensor], Tensor]:
    """`sample_function` at all samples, averaged: points `(n, *feature)` to a 0-dim tensor."""
    function = sample_function(case, quantity, **options)
    rows = torch.arange(len(case.problem.features), device=case.problem.features.device)
    return lambda h: function(h, rows).mean()


def _contracted(square: Tensor, sets: tuple[Tensor, ...], part: Tensor) -> Tensor:
    """`Σ_i Σ_j v_jᵀ A_i v_j` over the samples `part`, whose matrices are given `(b, d, d)`."""
    total = square.new_zeros(())
    for v in sets:
        v = v[:, part] if v.shape[1] > 1 else v.expand(-1, len(part), *v.shape[2:])
        flat = v.flatten(2).transpose(0, 1)
        total = total + ((flat @ square) * flat).sum()
    return total


def full_hessian(case: Case, *sets: Tensor, quantity: str = "R2+R3", chunk: int = 64) -> Tensor:
    """`vmap(hessian)` over `chunk` samples at a time, contracted with the directions."""
    g, function = case.problem.features, sample_function(case, quantity)
    rows, d = torch.arange(len(g), device=g.device), g[0].numel()
    total = g.new_zeros(())
    for part in rows.split(chunk):
        square = vmap(hessian(lambda h, row: function(h[None], row[None])[0]))(g[part], part).reshape(-1, d, d)
        total = total + _contracted(square, sets, part)
    return total / (2 * len(g))


def output_hessians(case: Case, *sets: Tensor, quantity: str = "R2+R3", chunk: int = 64) -> Tensor:
    """The formulas as they are written, `Σ_k a_k ∇²f_k + Jᵀ F J`: `vmap(hessian)` and `vmap(jacrev)` of every output.

    The same as `full_hessian`, which weights the outputs before it differentiates, at K times the derivatives.
    """
    problem, head = case.problem, _twice_differentiable(case.plain_head)
    g, d = problem.features, problem.features[0].numel()
    with torch.no_grad():
        outputs = head(g)
        slope, curvature = problem.loss.gradient(outputs, problem.labels), problem.loss.hessian(outputs, problem.labels)
    total = g.new_zeros(())
    for part in torch.arange(len(g), device=g.device).split(chunk):
        each = vmap(hessian(lambda h: head(h[None])[0]))(g[part]).reshape(len(part), -1, d * d)
        square = (slope[part, None] @ each).reshape(-1, d, d)
        if quantity == "R2+R3":
            rows = vmap(jacrev(lambda h: head(h[None])[0]))(g[part]).flatten(2)
            square = square + rows.mT @ curvature[part] @ rows
        total = total + _contracted(square, sets, part)
    return total / (2 * len(g))


def double_backward(case: Case, *sets: Tensor, quantity: str = "R2+R3") -> Tensor:
    """A loop over the directions of Hessian-vector products, each one backward pass through the gradient."""
    h = case.problem.features.detach().requires_grad_()
    with torch.enable_grad():
        value = mean_function(case, quantity)(h)
        (slope,) = torch.autograd.grad(value, h, create_graph=True)
    total = h.new_zeros(())
    for row in chain.from_iterable(sets):
        v = row.expand_as(h)
        (product,) = torch.autograd.grad(slope, h, v, retain_graph=True)
        total = total + (product * v).sum()
    return total / 2


def _over_directions(form: Callable[[Tensor], Tensor], sets: tuple[Tensor, ...], chunk: int | None) -> Tensor:
    return sum(vmap(form, chunk_size=chunk)(v).sum() for v in sets) / 2


def jvp_of_grad(
    case: Case, *sets: Tensor, quantity: str = "R2+R3", chunk: int | None = None, rewritten: bool = False
) -> Tensor:
    """`jvp(grad)`, forward over reverse, under `vmap` over `chunk` directions at a time."""
    g, function = case.problem.features, mean_function(case, quantity, rewritten=rewritten)

    def form(v: Tensor) -> Tensor:
        v = v.expand_as(g)
        return (jvp(grad(function), (g,), (v,))[1] * v).sum()

    return _over_directions(form, sets, chunk)


def jvp_of_jvp(
    case: Case, *sets: Tensor, quantity: str = "R2+R3", chunk: int | None = None, rewritten: bool = False
) -> Tensor:
    """Nested forward mode under `vmap` over `chunk` directions at a time."""
    g, function = case.problem.features, mean_function(case, quantity, rewritten=rewritten)
    return _over_directions(lambda v: directional_derivatives(function, g, v.expand_as(g), 2)[2], sets, chunk)


def jvp_of_jvp_of_jvp(case: Case, *sets: Tensor, chunk: int | None = None) -> Tensor:
    r"""`Σ_j D³ℓ[v_j, v_j, v_j] / 6` by three nested derivatives under `vmap` over `chunk` directions at a time."""
    g, function = case.problem.features, mean_function(case, "R2+R3", rewritten=True)
    return _over_directions(lambda v: directional_derivatives(function, g, v.expand_as(g), 3)[3] / 3, sets, chunk)


def finite_differences(case: Case, *sets: Tensor, quantity: str = "R2+R3") -> Tensor:
    """Central second differences in float64, a loop over the directions; the step balances truncation and rounding."""
    g, function = case.double.problem.features, sample_function(case.double, quantity)
    rows, total = torch.arange(len(g), device=g.device), g.new_zeros(())
    with torch.no_grad():
        centre = function(g, rows)
        for row in chain.from_iterable(sets):
            v = row.to(g).expand_as(g)
            length = v.flatten(1).norm(dim=1).clamp_min(torch.finfo(v.dtype).tiny)
            step = 4e-3 / length
            shift = step.reshape(-1, *[1] * (g.ndim - 1)) * v
            second = function(g + shift, rows) - 2 * centre + function(g - shift, rows)
            total = total + (second / step**2).mean()
    return (total / 2).to(case.x.dtype)


def monte_carlo(case: Case, *, replicates: int = 64, step: float = 1e-2, seed: int = 0) -> Tensor:
    """Plain Monte Carlo of all six second-order terms: `(replicates,)` values, whose mean is the estimate.

    Second differences in ε of the NFM loss along sampled draws (mixing weight, partner, both noises); float64 if the
    step is to be small, because the difference cancels.
    """
    problem, device = case.problem, case.x.device
    draw = problem.draw(len(case.x), replicates, generator=torch.Generator(device).manual_seed(seed))
    with torch.no_grad():
        path = problem.path(draw)
        plus, centre, minus = (path(torch.tensor(t, dtype=case.x.dtype, device=device)) for t in (step, 0.0, -step))
    return ((plus - 2 * centre + minus) / (2 * step**2)).reshape(replicates, -1).mean(1)


def jacobian_projections(case: Case, *, projections: int = 1, seed: int = 0) -> Tensor:
    r"""R2_add by random projections of the Jacobian's rows (Hoffman, Roberts, Yaida 2019): `(projections,)` values.

    $$ \tfrac{\sigma^2}{2}\, K\, E_u \|J^\top F^{1/2} u\|^2, \qquad u \text{ uniform on the unit sphere in } R^K $$

    With F = I (square loss) it is their Jacobian regularizer. One backward pass for each projection.
    """
    problem = case.problem
    h = problem.features.detach().requires_grad_()
    with torch.enable_grad():
        outputs = case.plain_head(h)
    values, vectors = torch.linalg.eigh(problem.loss.hessian(outputs.detach(), problem.labels))
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    generator = torch.Generator(h.device).manual_seed(seed)
    samples = []
    for _ in range(projections):
        u = torch.randn(outputs.shape, generator=generator, dtype=h.dtype, device=h.device)
        u = u / u.norm(dim=-1, keepdim=True)
        (pulled,) = torch.autograd.grad(outputs, h, (root @ u.unsqueeze(-1)).squeeze(-1), retain_graph=True)
        samples.append(pulled.square().sum() / len(h))
    return case.sigma**2 / 2 * outputs.shape[-1] * torch.stack(samples)


# Training: value and parameter gradient ----------------------------------------------------------------------


def _penalised(case: Case, penalty: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> tuple[Tensor, ...]:
    """`(penalty, *parameter gradient of mean loss + penalty)` of one training step."""
    if case.setting.layer:
        raise NotImplementedError("gradient peers perturb the input only")
    trained = case.trained
    with torch.enable_grad():
        function = mean_function(trained, "R2+R3")
        value = penalty(function)
        gradient = torch.autograd.grad(function(trained.x) + value, list(trained.model.parameters()))
    return value.detach(), *gradient


def train_double_backward(case: Case, probes: Tensor) -> tuple[Tensor, ...]:
    """R2 + R3 along probes `(m, n, *input)` by double backward, and its parameter gradient by a third pass.

    Returns the penalty and the parameter gradient of mean loss + penalty.
    """

    def penalty(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = case.x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
        products = (torch.autograd.grad(slope, x, v, create_graph=True)[0] for v in probes)
        return sum((product * v).sum() for product, v in zip(products, probes, strict=True)) / 2

    return _penalised(case, penalty)


def train_jvp_of_grad(case: Case, probes: Tensor) -> tuple[Tensor, ...]:
    """The same by `vmap(jvp(grad))` over the probes and one backward pass."""

    def penalty(function: Callable[[Tensor], Tensor]) -> Tensor:
        return vmap(lambda v: (jvp(grad(function), (case.x,), (v,))[1] * v).sum())(probes).sum() / 2

    return _penalised(case, penalty)
