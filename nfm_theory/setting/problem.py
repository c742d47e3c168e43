r"""One layer of one network with its data, loss and laws: the setting in which every statement is made.

| symbol | here |
|---|---|
| $g_i$, features at layer k | `Problem.features[i]` |
| $f_k$, the head | `Problem.head` |
| $\ell(f_k(\cdot), y_i)$ | `Problem.losses(h, i)` |
| $e_i(\varepsilon)$ | `perturb(...) - features[i]` |
| $\varphi(\varepsilon)$, the loss along a draw | `Problem.path(draw)` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..calculus.replacements import exact_derivatives
from .draws import Draw, sample_draw
from .laws import MixingLaw, NoiseLaw, noise_laws
from .layers import split
from .pointwise import PointwiseLoss, pointwise_loss

#: Memory that a block of head evaluations may take unless the caller says otherwise, in bytes.
MEMORY_LIMIT = 2**27


def perturbation(
    features: Tensor, draw: Draw, *, add_noise: float = 0.0, mult_noise: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The perturbation of every row as a polynomial in ε: `(g_i, e¹, e²)` with `e_i(ε) = ε e¹ + ε² e²`.

    `e²` is `None` where it vanishes (no multiplicative noise). Arguments as `perturb`.
    """
    first = features[draw.anchor]
    linear = (1 - draw.lam).reshape(-1, *[1] * (features.ndim - 1)) * (features[draw.index] - first)
    quadratic = None
    if draw.mult is not None and mult_noise:
        factor = mult_noise * draw.mult
        quadratic = factor * linear
        linear = linear + factor * first
    if draw.add is not None and add_noise:
        linear = linear + add_noise * draw.add
    return first, linear, quadratic


def _displace(parts: tuple[Tensor, Tensor, Tensor | None], eps: float | Tensor) -> Tensor:
    """`g + ε e¹ + ε² e²` in as few operations as possible: it is differentiated in ε many times."""
    first, linear, quadratic = parts
    if isinstance(eps, float) and eps == 1.0:  # as in training, where every operation on large features counts
        moved = first + linear
        return moved if quadratic is None else moved.add_(quadratic)
    if isinstance(eps, Tensor) and eps.ndim:
        eps = eps.reshape(-1, *[1] * (first.ndim - 1))
    return first + eps * (linear if quadratic is None else linear + eps * quadratic)


def perturb(
    features: Tensor,
    draw: Draw,
    *,
    eps: float | Tensor = 1.0,
    add_noise: float = 0.0,
    mult_noise: float = 0.0,
) -> Tensor:
    r"""Mixed and noisy features `g_i + e_i(ε)` of every row of a draw.

    $$ (1 + \varepsilon\sigma_{mult}\,\xi_{mult}) \odot \big(g_i + \varepsilon(1-\lambda)(g_r - g_i)\big)
       + \varepsilon\sigma_{add}\,\xi_{add} \qquad \text{(book: eq-perturbation)} $$

    Args:
        features: features g of the samples, `(n, *feature)`.
        draw: rows of randomness.
        eps: scale of the perturbation, a number, 0-dim or one per row `(rows,)`; 1 is what is trained.
        add_noise: σ_add ≥ 0.
        mult_noise: σ_mult ≥ 0.

    Returns:
        `(rows, *feature)`.

    Example:
        >>> from nfm_theory import Draw
        >>> g = torch.tensor([[0.0, 0.0], [4.0, 8.0]])
        >>> rows = Draw(anchor=torch.tensor([0]), lam=torch.tensor([0.75]), index=torch.tensor([1]))
        >>> perturb(g, rows)
        tensor([[1., 2.]])
    """
    return _displace(perturbation(features, draw, add_noise=add_noise, mult_noise=mult_noise), eps)


class _OutputBytes(TorchFunctionMode):
    """Adds up the size of everything computed: an upper bound of the memory of one pass."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.total += out.nbytes
        return out


@dataclass(frozen=True)
class Problem:
    """The setting of the theory; built by `build_problem`.

    Attributes:
        layer: name of the layer, `""` for the input.
        features: g, `(n, *feature)`.
        labels: labels in the form the loss expects, `(n, ...)`.
        head: features `(b, *feature)` to outputs `(b, K)`.
        loss: the pointwise loss.
        mixing: law of λ.
        add_noise: σ_add.
        mult_noise: σ_mult.
        laws: laws of the additive and the multiplicative noise.
    """

    layer: str
    features: Tensor
    labels: Tensor
    head: Callable[[Tensor], Tensor]
    loss: PointwiseLoss
    mixing: MixingLaw
    add_noise: float
    mult_noise: float
    laws: tuple[NoiseLaw, NoiseLaw]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        return tuple(self.features.shape[1:])

    @property
    def active_laws(self) -> tuple[NoiseLaw | None, NoiseLaw | None]:
        """The noise laws, `None` where the level is 0."""
        return (
            self.laws[0] if self.add_noise else None,
            self.laws[1] if self.mult_noise else None,
        )

    def losses(self, h: Tensor, rows: Tensor) -> Tensor:
        """ℓ(f(h_b), y_{rows_b}), `(b,)`."""
        return self.loss(self.head(h), self.labels[rows])

    def perturbation(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
        """`(g_i, e¹, e²)` of every row."""
        return perturbation(self.features, draw, add_noise=self.add_noise, mult_noise=self.mult_noise)

    def draw(self, num_samples: int, replicates: int, **options) -> Draw:
        """Sample rows of this problem's laws; options as `sample_draw`."""
        add, mult = self.active_laws
        return sample_draw(
            num_samples,
            self.feature_shape,
            mixing=self.mixing,
            noise=self.laws,
            replicates=replicates,
            additive=add is not None,
            multiplicative=mult is not None,
            dtype=self.features.dtype,
            device=self.features.device,
            **options,
        )

    def path(self, draw: Draw) -> Path:
        """φ: ε (0-dim, or one per row) to the losses of the rows, label of the first sample, `(rows,)`."""
        return Path(self, draw.anchor, *self.perturbation(draw))

    def mixed_label_losses(self, draw: Draw) -> Tensor:
        """Losses at ε = 1 with the mixed label, `(rows,)`; λ of the rows from Beta(α, β)."""
        outputs = self.head(_displace(self.perturbation(draw), 1.0))
        first, second = (self.loss(outputs, self.labels[rows]) for rows in (draw.anchor, draw.index))
        return draw.lam * first + (1 - draw.lam) * second

    def block_rows(self, memory_limit: int | None = None, *, passes: int = 1) -> int:
        """Rows that fit in `memory_limit` bytes when each costs the memory of `passes` forward passes."""
        totals = []
        for rows in (1, 2):  # the difference: what lies before the layer runs once, however many rows there are
            with torch.no_grad(), _OutputBytes() as count:
                index = torch.zeros(rows, dtype=torch.long, device=self.features.device)
                self.losses(self.features[index], index)
            totals.append(count.total)
        per_row = (totals[1] - totals[0] + 4 * self.features[0].nbytes) * passes
        if memory_limit is not None and memory_limit < per_row:
            raise ValueError(f"memory_limit: one row alone needs about {per_row} bytes, got a limit of {memory_limit}.")
        return max(1, int((MEMORY_LIMIT if memory_limit is None else memory_limit) // per_row))


@dataclass(frozen=True)
class Path:
    """The loss along every row of a draw, φ: a function of ε; made by `Problem.path`.

    Attributes:
        problem: the setting.
        anchor: index i of the rows, `(rows,)`.
        first: g_i, `(rows, *feature)`.
        linear: e¹.
        quadratic: e², `None` where it vanishes.
    """

    problem: Problem
    anchor: Tensor
    first: Tensor
    linear: Tensor
    quadratic: Tensor | None

    def __call__(self, eps: float | Tensor) -> Tensor:
        """φ(ε), `(rows,)`; ε a number, 0-dim, or one per row."""
        return self.problem.losses(_displace((self.first, self.linear, self.quadratic), eps), self.anchor)


def check_level(name: str, value: float) -> float:
    """A noise level, refused unless finite and not negative."""
    if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}.")
    return float(value)


def build_problem(
    model: nn.Module | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    layer: str = "",
    params: Mapping[str, Tensor] | None = None,
    alpha: float = 1.0,
    beta: float | None = None,
    add_noise: float = 0.0,
    mult_noise: float = 0.0,
    noise: str | NoiseLaw | tuple[NoiseLaw, NoiseLaw] = "normal",
    loss: str | PointwiseLoss | Callable = "cross_entropy",
) -> Problem:
    """Check everything a user passes and put it into one record.

    Args:
        model: network in eval mode, or any callable from inputs to outputs `(n, K)` or `(n,)`.
        x: inputs, `(n, *input)`; fixes device and dtype.
        y: labels, see `losses`.
        layer: dotted name of the layer whose output is perturbed; `""` is the input.
        params: parameters to use instead of the model's own, by name.
        alpha: first Beta parameter; 0 for no mixing.
        beta: second Beta parameter, `None` means `alpha`.
        add_noise: σ_add.
        mult_noise: σ_mult.
        noise: law of the noise, see `noise_laws`.
        loss: pointwise loss, see `pointwise_loss`.

    Raises:
        ValueError: for data, laws, labels or layers that do not fit (and, by `split`, for unfit models).
        TypeError: for arguments of the wrong kind.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise TypeError(f"x and y: expected tensors, got {type(x).__name__} and {type(y).__name__}.")
    if len(x) != len(y):
        raise ValueError(f"x and y: expected the same number of samples, got {len(x)} and {len(y)}.")
    with exact_derivatives():
        parts = split(model, x, layer=layer, params=params)
        features = parts.encode(x)

        def head(h: Tensor) -> Tensor:
            with exact_derivatives():
                outputs = parts.head(h)
            return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs

        outputs = head(features)
    loss = pointwise_loss(loss)
    labels = loss.prepare(outputs.detach(), y.to(x.device))
    values = loss(outputs, labels)
    if values.shape != (len(x),):
        raise ValueError(f"loss: expected one value per sample, shape ({len(x)},), got {tuple(values.shape)}.")
    if not values.isfinite().all():
        raise ValueError(f"loss: {int((~values.isfinite()).sum())} of {len(x)} per-sample losses are not finite.")
    return Problem(
        layer=layer,
        features=features,
        labels=labels,
        head=head,
        loss=loss,
        mixing=MixingLaw(alpha, beta),
        add_noise=check_level("add_noise", add_noise),
        mult_noise=check_level("mult_noise", mult_noise),
        laws=noise_laws(noise),
    )


def build_problems(model, x: Tensor, y: Tensor, *, layer: str | Sequence[str] = "", **options) -> list[Problem]:
    """One `Problem` per layer; `layer` may be a sequence of names, over which the theory averages uniformly.

    Raises:
        ValueError: if the sequence is empty, and as `build_problem`.
    """
    layers = [layer] if isinstance(layer, str) else list(layer)
    if not layers:
        raise ValueError("layer: expected a name or a non-empty sequence of names.")
    return [build_problem(model, x, y, layer=name, **options) for name in layers]
