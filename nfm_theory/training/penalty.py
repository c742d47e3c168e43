r"""The second-order theory as a penalty in a training loss: `criterion(model(x), y) + penalty(model, x, y)`.

For a batch of b samples the penalty is an unbiased estimate, with P random directions v for each sample,

$$ \varepsilon R_1 + \varepsilon^2 \cdot \frac1{2bP}
   \sum_{i,p} \Big[ (J v)^\top F\,(J v) + (p_i - y_i)\cdot\nabla^2 f[v, v] \Big], $$

$$ v = \sqrt{m_2}\,(g_r - g_i) + \sigma_{add}\,\xi + \sigma_{mult}\,\xi' \odot g_i, $$

Each direction is the sum over all sources, since their cross terms have expectation zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..calculus.cuts import check_problem
from ..calculus.derivatives import gauss_newton_forms
from ..calculus.engine import linearize_layer
from ..estimators.probes import random_signs
from ..expansion.second_order import SOURCES
from ..setting.ambient import recordable, taking_turns, undisturbed
from ..setting.checks import checked_lengths, level, one_of
from ..setting.inputs import Inputs, as_inputs, each, leaves
from ..setting.law import Law
from ..setting.network import Output, picked
from ..setting.problem import Problem
from ..setting.random_numbers import at_least_single, checked_generator, home_of
from ..setting.targets import Labels, Loss, TargetLoss, chosen_loss, fitted_loss
from .hooks import uncompiled, unwrap

Term = Literal["R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult"]
TERMS = get_args(Term)


class TaylorRegularizer(nn.Module):
    r"""The regularizers of NFM as a differentiable penalty, for any model, layer and training loop.

    For the penalty the model runs in evaluation mode, with the running statistics of batch norm and without dropout,
    because only then does each output depend on one sample. Its mode is restored afterwards. The gradient of the
    penalty reaches all parameters, including those in front of the layer.

    Inside autocast the penalty is computed in full precision. A model or inputs in half precision are refused, since
    rounding would hide second derivatives. A compiled model runs uncompiled for the penalty, and a compiled training
    step leaves its graph for it.

    Args:
        layer: dotted name of the layer whose output is perturbed; `""` is the input.
        law: law of mixing and noise, such as the law of the training; noise enters through its second moment.
        loss: name of the loss, a loss with options or a smooth callable, as in `Problem`.
        eps: scale ε; 1 is the scale of NFM training.
        terms: names of the terms in the penalty, among `R1, R2, R3, R2_add, R3_add, R2_mult, R3_mult`; `None` takes
            all terms that are not zero under the law. Without R3 terms no second derivatives are computed.
        num_probes: number P ≥ 1 of random directions for each sample.
        distribution: law of the entries of noise directions, `"rademacher"` or `"normal"`.
        generator: random generator of the directions; the global one if `None`.
        output: which part of what the model returns are the outputs, see `Problem`.
        reduction: `"none"` gives a penalty for each sample, `(b,)`, whose mean is the penalty.

    Attributes:
        last: values of the last call without ε: `"R1"`, and the sums over all sources of the Gauss-Newton terms,
            `"R2"`, and of the residual terms, `"R3"`. They are detached.
        engine: how the last call computed second derivatives.

    Raises:
        TypeError: if `layer` is no name of a layer, or `law` is no `Law`.
        ValueError: for options out of range, and if the penalty would have no terms.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> from nfm_theory import Law
        >>> penalty = TaylorRegularizer("1", Law(add_noise=0.4))
        >>> loss = torch.nn.functional.cross_entropy(model(x), y) + penalty(model, x, y)
        >>> loss.backward()
        >>> sorted(penalty.last), penalty.engine
        (['R1', 'R2', 'R3'], 'tangent-adjoint')
    """

    def __init__(
        self,
        layer: str,
        law: Law,
        *,
        loss: Loss = "cross_entropy",
        eps: float = 1.0,
        terms: Collection[Term] | None = None,
        num_probes: int = 1,
        distribution: Literal["rademacher", "normal"] = "rademacher",
        generator: torch.Generator | None = None,
        output: Output = None,
        reduction: Literal["mean", "none"] = "mean",
    ):
        super().__init__()
        if not isinstance(layer, str) or not isinstance(law, Law):
            raise TypeError(
                "expected TaylorRegularizer(layer, law) with the name of one layer and an nfm_theory.Law, got "
                f"{type(layer).__name__} and {type(law).__name__}."
            )
        mixing, (add_law, mult_law) = law.mixing, law.noises
        # m2, σ²: the second moments of the sources
        scales = {
            "data": mixing.moment(2) if mixing.mixes else 0.0,
            "additive": law.add_noise**2 * add_law.second,
            "multiplicative": law.mult_noise**2 * mult_law.second,
        }
        self.law = law
        self.scales = {source: scale for source, scale in scales.items() if scale}
        known = ["R1"] * bool(scales["data"]) + [f"{r}{SOURCES[s]}" for s in self.scales for r in ("R2", "R3")]
        chosen = known if terms is None else list(terms)
        for name in chosen:
            one_of("terms", name, TERMS)
        if idle := [name for name in chosen if name not in known]:
            raise ValueError(
                f"terms: {idle} are zero, because the law lacks their source; set its alpha, add_noise or mult_noise."
            )
        if not chosen:
            raise ValueError("terms: nothing to penalize; give the law a source of perturbation, and name a term.")
        if not isinstance(num_probes, Integral) or num_probes < 1:
            raise ValueError(f"num_probes: expected >= 1, an integer, got {num_probes!r}.")
        self.layer, self.eps, self.num_probes = layer, level("eps", eps), num_probes
        self.terms, self.distribution, self.generator = tuple(chosen), distribution, checked_generator(generator)
        self.drift = mixing.moment(1) if "R1" in chosen else 0.0
        self.loss, self.output = chosen_loss(loss), output
        self.reduction = one_of("reduction", reduction, ("mean", "none"))
        # Sources with the same parts, R2 or R3 or both, share their directions
        self._groups: dict[tuple[bool, bool], list[str]] = {}
        for source in self.scales:
            parts = (f"R2{SOURCES[source]}" in chosen, f"R3{SOURCES[source]}" in chosen)
            if any(parts):
                self._groups.setdefault(parts, []).append(source)
        self.last: dict[str, Tensor] = {}
        self.engine = ""
        self._layouts: WeakKeyDictionary[nn.Module, Callable[[Tensor], Tensor]] = WeakKeyDictionary()  # once checked

    @uncompiled
    def forward(self, model: nn.Module, x: Inputs, y: Labels) -> Tensor:
        """The penalty of one batch, 0-dim or `(b,)`, differentiable in the parameters.

        Args:
            model: network; it may be wrapped by `DistributedDataParallel` or `torch.compile`.
            x: inputs, `(b, *input)`, or a tuple or dict of such.
            y: labels, in the form that `loss` expects, as in `Problem`.

        Raises:
            TypeError: for half precision.
            ValueError: if the labels do not fit, if the model cannot be cut at the layer, or if it cuts a derivative;
                this is checked at the first call for each model.
        """
        model, x = unwrap(model), as_inputs(x)
        checked_lengths(x, y)
        for name, tensor in (*(("x", leaf) for leaf in leaves(x)), *model.named_parameters()):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                raise TypeError(
                    f"{name}: expected float32 or float64, got {tensor.dtype}, whose rounding hides second "
                    "derivatives; keep the parameters in float32 and use torch.autocast for the rest of the step."
                )
        with undisturbed(), taking_turns():
            modes = [(module, module.training) for module in model.modules()]
            try:
                model.eval()
                return self._penalty(model, *(each(z, recordable) for z in (x, y)))
            finally:
                for module, training in modes:
                    module.training = training

    def _penalty(self, model: nn.Module, x: Any, y: Any) -> Tensor:
        if model not in self._layouts:
            few = [each(z, lambda leaf: leaf[:8]) for z in (x, y)]
            loss = replace(self.loss, reduction="sum") if isinstance(self.loss, TargetLoss) else self.loss
            problem = Problem(model, *few, layer=self.layer, loss=loss, output=self.output)
            check_problem(problem, 2 if any(residual for _, residual in self._groups) else 1)
            self._layouts[model] = problem.loss.layout
        y, layout, returned = each(y, lambda leaf: leaf.to(leaves(x)[0].device)), self._layouts[model], []

        def outputs(found: Any) -> Tensor:
            returned[:] = [picked(self.output, found)]
            return layout(returned[0])

        at = linearize_layer(model, x, self.layer, output=outputs)
        self.engine = at.path
        loss, labels, _ = fitted_loss(self.loss, returned[0].detach(), y)
        slope, curvature = loss.gradient(at.outputs, labels), loss.hessian(at.outputs, labels)
        g, whole = at.h, self.reduction == "mean"
        parts = {name: g.new_zeros(() if whole else len(g)) for name in ("R1", "R2", "R3")}
        if self.drift:  # comes first, because the second derivatives reuse its reverse sweep
            drift = at.propagate((g.mean(0) - g).unsqueeze(0))[0]
            slopes = (at.pullback(slope) * drift).sum(1)
            parts["R1"] = self.drift * (slopes.mean() if whole else slopes)
        for (gauss_newton, residual), sources in self._groups.items():
            curved = residual and not at.piecewise_linear
            directions = self._directions(g, sources)
            tangents, hessian_forms = at.sweep(directions, slope if curved else None, tangents=gauss_newton)
            if gauss_newton:
                assert tangents is not None  # it was asked for
                forms = gauss_newton_forms(curvature, tangents.permute(1, 2, 0))
                parts["R2"] = parts["R2"] + (forms.mean() if whole else forms.mean(1)) / 2
            if curved:
                assert hessian_forms is not None  # there is a slope
                parts["R3"] = parts["R3"] + (hessian_forms.mean() if whole else hessian_forms.mean(0)) / 2
        self.last = {name: value.detach() for name, value in parts.items()}
        return self.eps * parts["R1"] + self.eps**2 * (parts["R2"] + parts["R3"])

    def _directions(self, g: Tensor, sources: list[str]) -> Tensor:
        """Random directions, `(P, b, *feature)`, whose second moment is the sum of those of the sources."""
        total: Tensor | None = None
        for source in sources:
            size = self.scales[source] ** 0.5
            if source == "data":
                home = home_of(self.generator, g.device)
                shape, dtype = (self.num_probes, len(g)), at_least_single()
                order = torch.rand(shape, generator=self.generator, dtype=dtype, device=home)
                part = g[order.argsort(1).to(g.device)] - g
            else:
                part = random_signs((self.num_probes, *g.shape), g, self.distribution, self.generator)
                part = part * g if source == "multiplicative" else part
            total = size * part if total is None else total + size * part
        assert total is not None  # no group is without sources
        return total

    def extra_repr(self) -> str:
        """The options in one line, for `print(model)`."""
        parts = f"terms={list(self.terms)}, eps={self.eps}, num_probes={self.num_probes}"
        return f"layer={self.layer!r}, law={self.law}, {parts}"
