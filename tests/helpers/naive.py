"""The theory written a second time, with loops over samples, partners and coordinates and dense derivatives."""

import itertools

import torch
from torch.func import hessian, jacrev


def third(function, h):
    """Dense third derivative, `(d, d, d)`."""
    return torch.func.jacfwd(hessian(function))(h)


def naive_terms(head, features, labels, potential, *, moments, add_second=0.0, mult_second=0.0, partners=None):
    """Terms of the expansion for losses `potential(u) - y.u`; `*_second` are σ² E ξ², `partners` is P(r|i)."""
    m1, m2, m3 = moments
    n, d = features.shape
    names = ("standard", "R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult", "C3")
    total = dict.fromkeys(names, 0.0)
    for i in range(n):
        g, y = features[i], labels[i]

        def f(h):
            return head(h[None])[0]

        def loss(h, f=f, y=y):
            return potential(f(h)) - y @ f(h)

        u = f(g)
        slope = jacrev(potential)(u) - y
        curvature = hessian(potential)(u)
        jac = jacrev(f)(g)
        bend = torch.einsum("k,kij->ij", slope, hessian(f)(g))
        gauss_newton = jac.T @ curvature @ jac
        full, cubic = hessian(loss)(g), third(loss, g)
        total["standard"] += loss(g)
        for r in range(n):
            v, p = features[r] - g, 1 / n if partners is None else partners[i, r]
            total["R1"] += p * m1 * slope @ jac @ v
            total["R2"] += p * m2 / 2 * v @ gauss_newton @ v
            total["R3"] += p * m2 / 2 * v @ bend @ v
            total["C3"] += p * m3 / 6 * torch.einsum("ijk,i,j,k", cubic, v, v, v)
            for j in range(d):
                total["C3"] += p * m1 / 2 * (add_second + mult_second * g[j] ** 2) * (cubic[j, j] @ v)
                total["C3"] += p * m1 * mult_second * full[j, j] * v[j] * g[j]
        for j in range(d):
            total["R2_add"] += add_second / 2 * gauss_newton[j, j]
            total["R3_add"] += add_second / 2 * bend[j, j]
            total["R2_mult"] += mult_second / 2 * gauss_newton[j, j] * g[j] ** 2
            total["R3_mult"] += mult_second / 2 * bend[j, j] * g[j] ** 2
    return {name: value / n for name, value in total.items()}


def naive_rademacher_loss(head, features, labels, potential, *, lam, weights, eps, add_noise, mult_noise):
    """The unmixed loss for Rademacher noise, every sign pattern of both noises and every pair in a loop."""
    n, d = features.shape
    signs = [torch.tensor(s, dtype=features.dtype) for s in itertools.product((-1.0, 1.0), repeat=d)]
    total = 0.0
    for i, r in itertools.product(range(n), repeat=2):
        for share, weight in zip(lam, weights, strict=True):
            mixed = features[i] + eps * (1 - share) * (features[r] - features[i])
            for a, b in itertools.product(signs, signs):
                u = head(((1 + eps * mult_noise * b) * mixed + eps * add_noise * a)[None])[0]
                total = total + weight * (potential(u) - labels[i] @ u) / len(signs) ** 2
    return total / n**2
