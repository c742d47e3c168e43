r"""The regularizers by pixel, by direction of the data, and by image.

Every second-order term is a sum `½ tr(A_i C_i)` (book: eq-second-moment). Its summands show which pixels, directions
and images contribute to the regularizer of a network:

| term | resolved by | contribution |
|---|---|---|
| R2_add, R3_add | image and pixel | `½ σ_add² E ξ² A_jj` |
| R2_mult, R3_mult | image and pixel | `½ σ_mult² E ξ² g_j² A_jj` |
| R2, R3 | direction w_s of the data covariance | `½ m2 (1/n) Σ_i w_sᵀ A_i w_s`; the rest is the way to the mean |
| all, and R1 | image | the summands of the mean |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import nfm_theory as nt
from nfm_theory.calculus.derivatives import gauss_newton_forms
from nfm_theory.calculus.directions import coordinate_basis, second_moment_directions

from ..data.digits import load_digits, verification_subset
from .networks import trained_network

#: How the compared networks are trained: plainly, with Mixup at the input, and with NFM at three layers.
SCHEMES: Mapping[str, dict] = {
    "erm": {},
    "mixup": {"alpha": 1.0},
    "nfm": {"alpha": 1.0, "add_noise": 0.4, "mult_noise": 0.2, "layers": ("", "hidden1", "hidden2")},
}
#: The law with which the terms of all networks are evaluated, which is that of training with NFM.
LAW = nt.Law(add_noise=0.4, mult_noise=0.2)
SAMPLES = 200


@dataclass(frozen=True)
class RegularizerMaps:
    """The terms as sums over pixels, directions and images.

    Attributes:
        images: the features at which they were computed, `(n, *feature)`.
        labels: class indices, `(n,)`.
        pixels: R2_add, R3_add, R2_mult, R3_mult by image and pixel, `(n, *feature)`.
        directions: scaled eigen-directions of the data covariance, the largest first, `(s, *feature)`.
        along: R2 and R3 by direction, `(s,)`.
        mean_way: R2 and R3 along the vectors to the mean; added to the sum of `along` they give the terms.
        by_image: R1 and all second-order terms by image, `(n,)`: their means are the terms.
        losses: plain loss of each image, `(n,)`.
    """

    images: Tensor
    labels: Tensor
    pixels: Mapping[str, Tensor]
    directions: Tensor
    along: Mapping[str, Tensor]
    mean_way: Mapping[str, Tensor]
    by_image: Mapping[str, Tensor]
    losses: Tensor

    def terms(self) -> dict[str, float]:
        """The terms, as sums of the maps."""
        return {name: float(values.mean()) for name, values in self.by_image.items()}


@torch.no_grad()
def regularizer_maps(problem: nt.Problem, y: Tensor) -> RegularizerMaps:
    """Compute the summands of R1 and of the second-order terms of a network on some images.

    The cost is one tangent pass for each pixel and for each direction of the data.

    Args:
        problem: network, layer, images and law.
        y: class indices of the images, `(n,)`.
    """
    g, n = problem.features, len(problem.features)
    at = nt.linearize(problem.head, g, differentiable=False)
    slope, curvature = (f(at.outputs, problem.labels) for f in (problem.loss.gradient, problem.loss.hessian))

    def forms(directions: Tensor) -> tuple[Tensor, Tensor]:
        """Gauss-Newton and residual curvature along `(m, 1 or n, *feature)`, `(n, m)` each."""
        tangents, hessian_forms = at.sweep(directions, slope)
        return gauss_newton_forms(curvature, tangents.permute(1, 2, 0)), hessian_forms.T

    diagonal = forms(coordinate_basis(g).unsqueeze(1))
    squares = g.flatten(1) ** 2
    half = [problem.law.scales.get(source, 0.0) for source in ("additive", "multiplicative")]
    flat = {f"{order}_add": half[0] * d for order, d in zip(("R2", "R3"), diagonal, strict=True)}
    flat |= {f"{order}_mult": half[1] * d * squares for order, d in zip(("R2", "R3"), diagonal, strict=True)}
    half_data = problem.mixing.moment(2) / 2
    directions, drift = second_moment_directions(g), g.mean(0) - g
    spread = [half_data * form for form in forms(directions.unsqueeze(1))]
    way = [half_data * form.squeeze(1) for form in forms(drift.unsqueeze(0))]
    tangent = at.sweep(drift.unsqueeze(0))[0].squeeze(0)
    by_image = {"R1": problem.mixing.moment(1) * (slope * tangent).sum(1)}
    by_image |= {order: s.sum(1) + w for order, s, w in zip(("R2", "R3"), spread, way, strict=True)}
    by_image |= {name: values.sum(1) for name, values in flat.items()}
    return RegularizerMaps(
        images=g, labels=y, pixels={name: values.reshape(g.shape) for name, values in flat.items()},
        directions=directions, along=dict(zip(("R2", "R3"), (s.mean(0) for s in spread), strict=True)),
        mean_way=dict(zip(("R2", "R3"), (w.mean() for w in way), strict=True)), by_image=by_image,
        losses=problem.losses(g, torch.arange(n)),
    )  # fmt: skip


def digits_maps() -> dict[str, RegularizerMaps]:
    """The maps of an MLP on digits for each of `SCHEMES`, at the input and with the same `LAW`."""
    x, y = verification_subset(load_digits(10), SAMPLES)
    return {
        scheme: regularizer_maps(nt.Problem(trained_network("mlp", **options).model, x, y, law=LAW), y)
        for scheme, options in SCHEMES.items()
    }
