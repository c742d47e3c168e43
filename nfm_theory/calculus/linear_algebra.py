r"""Linear algebra whose derivatives are right at every order, composed from factorizations, solves and products.

PyTorch's formulas for the forward derivatives of these functions hold the factorization constant, so that nested
forward mode, and every gradient through it, is silently wrong (PyTorch issues 196697, 192540, 198017).

Eigenvectors are different: PyTorch's formula is right, but its gradient is nan. With the eigenvectors Q of the matrix
held constant, $Q^H A Q$ is diagonal, and only its derivatives are not. A few steps of an iteration that converges
quadratically then give all derivatives up to order 15 (T. Ogita and K. Aishima, Iterative refinement for symmetric
eigenvalue decomposition, 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _named(name: str, parts: tuple):
    """Several results in the type that PyTorch has for them."""
    return getattr(torch.return_types, name)(parts)


def _factorized(A: Tensor) -> tuple[Tensor, Tensor]:
    LU, pivots = torch.linalg.lu_factor_ex(A)[:2]  # a singular matrix has the determinant 0, and no inverse
    return LU, pivots


def _sign_and_diagonal(A: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of the permutation, and the diagonal of the upper triangular factor, `(*, n)`."""
    LU, pivots = _factorized(A)
    swaps = pivots != torch.arange(1, A.shape[-1] + 1, device=A.device, dtype=pivots.dtype)
    return (1 - 2 * (swaps.sum(-1) % 2)).to(A.dtype), LU.diagonal(dim1=-2, dim2=-1)


def _det(A: Tensor) -> Tensor:
    sign, diagonal = _sign_and_diagonal(A)
    return sign * product(diagonal, -1)


def product(z: Tensor, dim: int) -> Tensor:
    """The product of the entries along a dimension, by halves; right also if entries are 0."""
    while z.shape[dim] > 1:
        half = z.shape[dim] // 2
        pairs = z.narrow(dim, 0, half) * z.narrow(dim, half, half)
        z = pairs if z.shape[dim] == 2 * half else torch.cat([pairs, z.narrow(dim, 2 * half, 1)], dim)
    return z.squeeze(dim) if z.shape[dim] == 1 else torch.ones_like(z.sum(dim))


def _sign_and_log(A: Tensor) -> tuple[Tensor, Tensor]:
    sign, diagonal = _sign_and_diagonal(A)
    return sign * product(torch.sgn(diagonal), -1), diagonal.abs().log().sum(-1)


def _slogdet(A: Tensor):
    return _named("linalg_slogdet", _sign_and_log(A))


def _old_slogdet(input: Tensor):
    return _named("slogdet", _sign_and_log(input))


def _logdet(input: Tensor) -> Tensor:
    sign, log = _sign_and_log(input)
    return torch.where(sign == -1, torch.nan, log)


def _solve(A: Tensor, B: Tensor, *, left: bool = True, out=None) -> Tensor:
    if out is not None:
        return torch.linalg.solve(A, B, left=left, out=out)
    vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    columns = B.unsqueeze(-1) if vector else B
    LU, pivots = _factorized(A)
    found = torch.linalg.lu_solve(LU, pivots, columns, left=left)
    return found.squeeze(-1) if vector else found


def _solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False, out=None):
    info = torch.linalg.lu_factor_ex(A, check_errors=check_errors).info
    return _named("linalg_solve_ex", (_solve(A, B, left=left), info))


def _tensorsolve(A: Tensor, B: Tensor, dims=None, *, out=None) -> Tensor:
    if dims is not None:
        last = [d % A.ndim for d in dims]
        A = A.permute([d for d in range(A.ndim) if d not in last] + last)
    unknown = A.shape[B.ndim :]
    return _solve(A.reshape(B.numel(), -1), B.reshape(-1)).reshape(unknown)


def _cholesky_inverse(L: Tensor, upper: bool = False, *, out=None) -> Tensor:
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device)
    inverse = torch.linalg.solve_triangular(L, eye.expand(L.shape), upper=upper)
    return inverse @ inverse.mH if upper else inverse.mH @ inverse


def _householder_product(input: Tensor, tau: Tensor, *, out=None) -> Tensor:
    m, n = input.shape[-2:]
    eye = torch.eye(m, dtype=input.dtype, device=input.device)
    below = torch.ones_like(eye).tril(-1)
    result = eye[:, :n].expand(input.shape)
    for k in reversed(range(tau.shape[-1])):
        v = (input[..., k] * below[:, k] + eye[:, k]).unsqueeze(-1)
        result = result - tau[..., k, None, None] * v @ (v.mH @ result)
    return result


def _cholesky(input: Tensor, upper: bool = False, *, out=None) -> Tensor:
    return torch.linalg.cholesky(input, upper=upper)


def _lstsq(A: Tensor, B: Tensor, rcond: float | None = None, *, driver: str | None = None):
    found = torch.linalg.lstsq(A, B, rcond, driver=driver)
    residuals, singular = found.residuals, found.singular_values
    if residuals.numel():  # PyTorch reports neither their derivative nor that of the singular values
        residuals = ((A @ found.solution - B).abs() ** 2).sum(-2)
    singular = torch.linalg.svdvals(A) if singular.numel() else singular
    return _named("linalg_lstsq", (found.solution, residuals, found.rank, singular))


# Eigenvalues ------------------------------------------------------------------------------------------------

#: Each step doubles the order up to which derivatives are right, plus one: 1, 3, 7, 15.
_REFINEMENTS = 4


def _eigen(A: Tensor, UPLO: str = "L") -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the Hermitian matrix whose lower or upper triangle is that of `A`."""
    A = A.tril() + A.tril(-1).mH if UPLO.upper() == "L" else A.triu() + A.triu(1).mH
    values, start = torch.linalg.eigh(A.detach())
    start, values = start.detach(), values.detach()
    same = torch.eye(A.shape[-1], dtype=torch.bool, device=A.device)
    inner, eye = start.mH @ A @ start, same.to(A.dtype)
    inner = inner - inner.detach() + torch.diag_embed(values)  # without the rounding errors of the product
    vectors, refined = eye.expand(A.shape), values
    for _ in range(_REFINEMENTS):
        defect, form = eye - vectors.mH @ vectors, vectors.mH @ inner @ vectors
        diagonal = (z.diagonal(dim1=-2, dim2=-1).real for z in (form, defect))
        form_diagonal, defect_diagonal = diagonal
        refined = form_diagonal / (1 - defect_diagonal)
        spread = torch.where(same, 1, refined.unsqueeze(-2) - refined.unsqueeze(-1))
        step = torch.where(same, defect / 2, (form + refined.unsqueeze(-2) * defect) / spread)
        vectors = vectors + vectors @ step
    return refined, start @ vectors


def _eigh(A: Tensor, UPLO: str = "L", *, out=None):
    return _named("linalg_eigh", _eigen(A, UPLO))


def _eigvalsh(A: Tensor, UPLO: str = "L", *, out=None) -> Tensor:
    return _eigen(A, UPLO)[0]


#: Maps a function of PyTorch to a composition with the same signature and the same value.
LINEAR_ALGEBRA: dict[Callable, Callable] = {
    torch.linalg.det: _det,
    torch.det: _det,
    Tensor.det: _det,
    torch.linalg.slogdet: _slogdet,
    torch.slogdet: _old_slogdet,
    Tensor.slogdet: _old_slogdet,
    torch.logdet: _logdet,
    Tensor.logdet: _logdet,
    torch.linalg.solve: _solve,
    torch.linalg.solve_ex: _solve_ex,
    torch.linalg.tensorsolve: _tensorsolve,
    torch.cholesky_inverse: _cholesky_inverse,
    Tensor.cholesky_inverse: _cholesky_inverse,
    torch.linalg.householder_product: _householder_product,
    torch.orgqr: _householder_product,
    Tensor.orgqr: _householder_product,
    torch.cholesky: _cholesky,
    Tensor.cholesky: _cholesky,
    torch.linalg.lstsq: _lstsq,
    torch.linalg.eigh: _eigh,
    torch.linalg.eigvalsh: _eigvalsh,
}
