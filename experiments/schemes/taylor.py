r"""Training with the second-order theory instead of the exact scheme: Taylor-NFM and Taylor-NoisyMix.

No paper has these schemes. They show how much of a scheme's effect its expansion explains. The loss is the plain loss
plus the regularizers that the theory derives from the exact step, with the same α, levels and layers.

| scheme | loss |
|---|---|
| Taylor-NFM | $L_{std} + \varepsilon R_1 + \varepsilon^2 (R_2 + R_3 + \dots)$ |
| Taylor-NoisyMix | the same $+ \gamma\,(S_0 + \varepsilon S_1 + \varepsilon^2 S_2)$ |

The regularizers are unbiased estimates from one random direction per example and step. As in the exact schemes, the
layer is drawn for each batch. Derivatives are computed for each sample separately, so in evaluation mode. They use the
batch norm statistics of the plain pass in the same step, since early in a training the running statistics belong to a
very different network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nfm_theory as nt
from nfm_theory.calculus.engine import linearize_layer

from ..recipes.recipe import Scheme
from .step import Step


class BatchStatistics:
    """Batch norm with the statistics of a training pass, held constant in the features but not in the weights.

    If they were constant in the weights too, a penalty on derivatives would shrink the weights before a batch norm.
    That changes nothing but the effective learning rate. The hooks stay on the model until `close`.
    """

    def __init__(self, model: nn.Module):
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        self._found: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}
        self._handles = [norm.register_forward_pre_hook(self._keep) for norm in norms]

    def _keep(self, norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if norm.training:
            variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0, keepdim=True)
            self._found[norm] = (mean, variance)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context every batch norm is the affine map of the last training pass."""
        try:
            for norm, (mean, variance) in self._found.items():
                norm.forward = partial(_affine, norm, mean, variance)
            yield
        finally:
            for norm in self._found:
                del norm.forward
            self._found = {}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _affine(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    scale = norm.weight.reshape(mean.shape) * (variance + norm.eps).rsqrt()
    return x * scale + (norm.bias.reshape(mean.shape) - mean * scale)


class TaylorStep(Step):
    """Taylor-NFM: the plain loss and the regularizers of one layer."""

    def __init__(self, scheme: Scheme, model: nn.Module, **options):
        super().__init__(scheme, model, **options)
        penalty = {"eps": scheme.eps, "terms": scheme.terms, "generator": self.generator}
        self.penalties = [nt.TaylorRegularizer(layer, law, **penalty) for layer, law in self.laws.items()]
        self.statistics = BatchStatistics(model)

    def close(self) -> None:
        """Remove the hooks."""
        self.statistics.close()

    def _layer(self) -> int:
        return int(torch.randint(len(self.layers), (), generator=self.generator))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy of the clean views, plus their regularizers."""
        plain = F.cross_entropy(self.forward(x), y)
        with self.statistics.applied():
            return plain + self.penalties[self._layer()](self.model, x, y)


class TaylorNoisyMixStep(TaylorStep):
    """Taylor-NoisyMix: Taylor-NFM on the clean view, plus the expansion of the divergence between three views."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy of the clean views, their regularizers, and the divergence with its expansion."""
        views, layer = self.scheme.views, self._layer()
        logits = self.forward(x).chunk(views)
        loss = F.cross_entropy(logits[0], y) + self.scheme.jsd * nt.jensen_shannon(logits)
        with self.statistics.applied():
            loss = loss + self.penalties[layer](self.model, x[: len(y)], y)
            name = self.layers[layer]
            return loss + self.scheme.jsd * stability_penalty(
                self.model, x, self.laws[name], layer=name, views=views, eps=self.scheme.eps,
                view_noise=self.scheme.view_noise or (1.0,) * views, generator=self.generator,
            )  # fmt: skip


def stability_penalty(
    model: nn.Module,
    x: Tensor,
    law: nt.Law,
    *,
    layer: str,
    views: int,
    eps: float,
    view_noise: tuple[float, ...],
    generator: torch.Generator,
) -> Tensor:
    r"""An unbiased, differentiable estimate of $\varepsilon S_1 + \varepsilon^2 S_2$ (book: eq-jsd-expansion).

    With $D$ the divergence of the views' outputs as a function of their features, and u the features of all views,

    $$ S_1 = m_1\, \frac1n \sum_r \nabla D \cdot (u_r - u), \qquad
       S_2 = \tfrac12\, \mathbb E\, \nabla^2 D[v, v], \quad
       v = \sqrt{m_2}\,(u_r - u) + \sigma_{add}\,\xi + \sigma_{mult}\,\xi' \odot u $$

    where all views of an example share the partner r, and the noise of each view is independent.

    Args:
        model: network; it runs in evaluation mode here, and its mode is restored.
        x: views, `(views * n, *input)`.
        law: law of mixing and noise.
        layer: name of the layer, `""` for the input.
        views: number m of views.
        eps: ε.
        view_noise: factor of σ_add for each view.
        generator: source of partners and noise.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        at = linearize_layer(model, x, layer)
    finally:
        for module, training in modes:
            module.training = training
    g, n = at.h, len(x) // views
    outputs = at.outputs.unflatten(0, (views, n))
    slope = torch.func.grad(nt.jensen_shannon)(outputs) * n  # of the sum over examples
    by_view = g.unflatten(0, (views, n))
    drift = (by_view.mean(1, keepdim=True) - by_view).flatten(0, 1)
    first = law.mixing.moment(1) * (at.pullback(slope.flatten(0, 1)) * at.propagate(drift.unsqueeze(0))[0]).sum() / n
    direction = _direction(by_view, law, view_noise, generator).flatten(0, 1)
    tangents, hessian_forms = at.sweep(direction.unsqueeze(0), None if at.piecewise_linear else slope.flatten(0, 1))
    tangents = tangents[0].unflatten(0, (views, n))
    _, turned = torch.func.jvp(torch.func.grad(nt.jensen_shannon), (outputs,), (tangents,))
    second = (turned * tangents).sum() / 2
    if hessian_forms is not None:
        second = second + hessian_forms.sum() / (2 * n)
    return eps * first + eps**2 * second


def _direction(by_view: Tensor, law: nt.Law, view_noise: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """The direction v of all views, `(views, n, *feature)`."""
    partner = torch.rand(by_view.shape[1], generator=generator).argsort().to(by_view.device)
    total = (law.mixing.moment(2) if law.mixing.mixes else 0.0) ** 0.5 * (by_view[:, partner] - by_view)
    add, mult = law.noises
    for level, noise, multiplicative in ((law.add_noise, add, False), (law.mult_noise, mult, True)):
        if level:
            signs = (torch.rand(by_view.shape, generator=generator) < 0.5).to(by_view) * 2 - 1
            scale = level * noise.second**0.5
            if multiplicative:
                total = total + scale * signs * by_view
            else:
                factors = torch.tensor(view_noise, dtype=by_view.dtype, device=by_view.device)
                total = total + scale * signs * factors.reshape(-1, *[1] * (by_view.ndim - 1))
    return total
