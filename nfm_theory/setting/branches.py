r"""Several perturbed versions of each example under one loss: the setting of NoisyMix (book: eq-jsd).

$$ L(\varepsilon) = \frac1n \sum_i \mathbb E\, \Phi_i\big(f_k(g_i^1 + e_i^1(\varepsilon)), \dots,
   f_k(g_i^m + e_i^m(\varepsilon))\big) $$

| symbol | here |
|---|---|
| $g_i^j$, features of branch j, branch 1 clean | `Branches.features[i, j - 1]` |
| $f_k$ | `Branches.branch_head`; of all branches at once `Branches.head` |
| $\Phi_i$ of all logits jointly | `Branches.loss` of outputs `(b, m K)` |
| $\mathrm{JSD}_\pi$, its gradient and Hessian in the logits | `jensen_shannon`, `jsd_gradient`, `jsd_hessian` |
| $L_{NFM} + \gamma L_{JSD}$ (book: eq-noisymix) | `loss="noisymix"` |

The branches share λ and the partner r; the noise of each is its own unless `shared_noise`. Stacked, `G_i = (g_i^1, ..,
g_i^m)` is one feature vector with the head `F(G) = (f(g^1), .., f(g^m))`: a `Problem`, which everything that works on
problems takes: paths, Lagrange intervals, deterministic rules, Monte Carlo, verification. NFM is m = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from .divergence import checked_weights, jensen_shannon, log_probabilities
from .laws import NoiseLaw
from .pointwise import PointwiseLoss, pointwise_loss
from .problem import Problem, build_problem

#: NoisyMix as released: weight of the stability loss.
GAMMA = 12.0


@dataclass(frozen=True)
class BranchNoise(NoiseLaw):
    """Noise of m stacked branches whose scalars b are drawn apart, one per branch, as the released code does.

    Args:
        branches: m.
        size: number of features of one branch.
    """

    branches: int = 1
    size: int = 1

    @property
    def mixed_fourth(self) -> np.ndarray:
        """E ξ_j² ξ_k² for every pair, `(m size, m size)`: elements of two branches are independent."""
        own = NoiseLaw(self.base, self.beta_scaled, self.sparsity).mixed_fourth
        return np.kron(np.eye(self.branches), np.full((self.size, self.size), own - self.second**2)) + self.second**2

    def scale_nodes(self, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Rule of all scalars, each repeated for the features of its branch, `(num^m, m size)`, and weights."""
        scale, weight = super().scale_nodes(num)
        picks = np.indices([len(scale)] * self.branches).reshape(self.branches, -1)
        return np.repeat(scale[picks], self.size, axis=0).T, weight[picks].prod(0)

    def sample(self, shape: tuple[int, ...], **options) -> Tensor:
        """Draws `(rows, m, *feature)`; options as `NoiseLaw.sample`."""
        parts = [NoiseLaw.sample(self, (shape[0], *shape[2:]), **options) for _ in range(self.branches)]
        return torch.stack(parts, dim=1)


def _centred_logarithms(logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`p`, `1 - p`, `p / mixture` and `log(p / mixture) - KL`, each `(m, b, max(K, 2))`, to full relative precision."""
    log_p = log_probabilities(logits.transpose(0, 1))
    pi = weights.to(log_p).reshape(-1, 1, 1)
    p, gap = log_p.exp(), log_p - (log_p + pi.log()).logsumexp(0)
    # Of the likeliest class 1 - p and the gap to the mean are differences of nearly equal numbers when it is certain;
    # both follow from the other classes.
    top = torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0).bool()
    rest = torch.where(top, p.masked_fill(top, 0.0).sum(-1, keepdim=True), 1 - p)
    relative = gap - gap.masked_fill(~top, 0.0).sum(-1, keepdim=True)
    ratio = gap.masked_fill(pi == 0, 0.0).exp()  # of a branch without weight it is not needed and may overflow
    return p, rest, ratio, relative - (p * relative).sum(-1, keepdim=True)


def jsd_gradient(logits: Tensor, weights: Tensor) -> Tensor:
    r"""Gradient of the Jensen-Shannon divergence in the logits, finite and exact at saturated probabilities.

    $$ \partial_{u_{jk}} \mathrm{JSD}_\pi = \pi_j\, p_{jk} \Big( \log\frac{p_{jk}}{\bar p_k}
       - \mathrm{KL}(p_j \| \bar p) \Big), \qquad \bar p = \textstyle\sum_j \pi_j p_j \qquad \text{(book: eq-jsd)} $$

    Args:
        logits: `(b, m, K)`; K = 1 is the logit of class 1.
        weights: π, `(m,)`.

    Returns:
        `(b, m, K)`.

    Example:
        >>> jsd_gradient(torch.tensor([[[900.0, 0.0], [0.0, 900.0]]]), torch.tensor([0.5, 0.5])).abs().max()
        tensor(0.)
    """
    p, _, _, centred = _centred_logarithms(logits, weights)
    gradient = weights.to(p).reshape(-1, 1, 1) * p * centred
    return (gradient[..., 1:] if logits.shape[-1] == 1 else gradient).transpose(0, 1)


def jsd_hessian(logits: Tensor, weights: Tensor) -> Tensor:
    r"""Hessian of the Jensen-Shannon divergence in all logits, finite and exact at saturated probabilities.

    $$ \nabla^2_{jl} = \delta_{jl}\, \pi_j \big( F_j + \operatorname{diag}(p_j c_j)
       - p_j (p_j c_j)^\top - (p_j c_j)\, p_j^\top \big) - \pi_j \pi_l F_j \operatorname{diag}(1/\bar p) F_l,
       \qquad F_j = \operatorname{diag} p_j - p_j p_j^\top \qquad \text{(book: eq-jsd-second)} $$

    with `c_j = log(p_j / p̄) - KL(p_j ‖ p̄)`. Nothing is divided by a probability: the ratios `p_l / p̄ ≤ 1 / π_l` are
    taken in logarithms, and `1 - p` is summed from the other classes.

    Args:
        logits: `(b, m, K)`; K = 1 is the logit of class 1.
        weights: π, `(m,)`.

    Returns:
        `(b, m, K, m, K)`.

    Example:
        >>> equal = torch.zeros(1, 2, 1, dtype=torch.float64)
        >>> jsd_hessian(equal, torch.tensor([0.5, 0.5])).flatten().tolist()  # (π_j δ_jl - π_j π_l) p (1 - p)
        [0.0625, -0.0625, -0.0625, 0.0625]
    """
    p, rest, ratio, centred = _centred_logarithms(logits, weights)
    pi, m = weights.to(p), len(p)
    same = torch.eye(p.shape[-1], dtype=torch.bool, device=p.device)
    shift = torch.where(same, rest.unsqueeze(-1), -p.unsqueeze(-2))  # I - 1 pᵀ, so that F = diag(p) shift
    own = p * centred
    mixed = p.unsqueeze(-1) * own.unsqueeze(-2)
    diagonal = p.unsqueeze(-1) * shift + torch.diag_embed(own) - mixed - mixed.mT
    rows = []
    for j in range(m):
        blocks = [
            -pi[j] * pi[l] * (p[j].unsqueeze(-1) * ((shift[j] * ratio[l].unsqueeze(-2)) @ shift[l])) for l in range(m)
        ]
        blocks[j] = blocks[j] + pi[j] * diagonal[j]
        rows.append(torch.stack(blocks, dim=2))
    hessian = torch.stack(rows, dim=1)
    return hessian[:, :, 1:, :, 1:] if logits.shape[-1] == 1 else hessian


def _stability(m: int, weights: Tensor) -> PointwiseLoss:
    """JSD of outputs `(b, m K)`."""
    cut = lambda outputs: outputs.unflatten(1, (m, -1))  # noqa: E731
    return PointwiseLoss(
        "jensen_shannon",
        lambda u, y: jensen_shannon(cut(u).transpose(0, 1), weights.to(u), reduction="none"),
        lambda u, y: y,
        slope=lambda u, y: jsd_gradient(cut(u), weights).flatten(1),
        bend=lambda u, y: jsd_hessian(cut(u), weights).flatten(3).flatten(1, 2),
    )


def _noisymix(m: int, weights: Tensor, gamma: float, label: PointwiseLoss) -> PointwiseLoss:
    """Loss of the clean branch + γ JSD of all, of outputs `(b, m K)`."""
    jsd = _stability(m, weights)

    def clean(u: Tensor) -> Tensor:
        return u[:, : u.shape[1] // m]

    def slope(u: Tensor, y: Tensor) -> Tensor:
        first = label.gradient(clean(u), y)
        return gamma * jsd.gradient(u, y) + torch.cat([first, u[:, first.shape[1] :] * 0], dim=1)

    def bend(u: Tensor, y: Tensor) -> Tensor:
        first = label.hessian(clean(u), y)
        more = u.shape[1] - first.shape[1]
        return gamma * jsd.hessian(u, y) + nn.functional.pad(first, (0, more, 0, more))

    value = lambda u, y: label(clean(u), y) + gamma * jsd(u, y)  # noqa: E731
    return PointwiseLoss("noisymix", value, label.prepare, slope=slope, bend=bend)


@dataclass(frozen=True)
class Branches(Problem):
    """The setting of several perturbed branches; built by `build_branches`.

    A `Problem` whose features are `(n, m, *feature)`, whose head maps `(b, m, *feature)` to `(b, m K)` and whose loss
    takes all logits of an example at once.

    Attributes:
        branch_head: f_k, features of one branch `(b, *feature)` to logits `(b, K)`.
        weights: π, `(m,)`.
        shared_noise: whether all branches get the same noise.
    """

    branch_head: Callable[[Tensor], Tensor]
    weights: Tensor
    shared_noise: bool = False

    @property
    def branches(self) -> int:
        """The number m of branches."""
        return self.features.shape[1]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one row: noise that is shared has a single branch, and broadcasts."""
        return (1 if self.shared_noise else self.branches, *self.features.shape[2:])


def _stack(xs: Tensor | Sequence[Tensor]) -> Tensor:
    """Branches as one tensor `(m, n, *input)`."""
    if not isinstance(xs, Tensor):
        branches = list(xs)
        if not branches or not all(isinstance(x, Tensor) for x in branches):
            raise TypeError("xs: expected a tensor (m, n, *input), or a sequence of m tensors (n, *input).")
        shapes = sorted({tuple(x.shape) for x in branches})
        if len(shapes) > 1:
            raise ValueError(f"xs: expected branches of one shape (n, *input), got {shapes}.")
        xs = torch.stack(branches)
    if xs.ndim < 3 or 0 in xs.shape:
        raise ValueError(f"xs: expected m >= 1 branches of n >= 1 samples, (m, n, *input), got {tuple(xs.shape)}.")
    return xs


def build_branches(
    model: nn.Module | Callable[[Tensor], Tensor],
    xs: Tensor | Sequence[Tensor],
    y: Tensor | None = None,
    *,
    layer: str = "",
    params: Mapping[str, Tensor] | None = None,
    weights: Tensor | Sequence[float] | None = None,
    alpha: float = 1.0,
    beta: float | None = None,
    add_noise: float = 0.0,
    mult_noise: float = 0.0,
    noise: str | NoiseLaw | tuple[NoiseLaw, NoiseLaw] = "normal",
    shared_noise: bool = False,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "stability",
    gamma: float = GAMMA,
    label_loss: str | PointwiseLoss | Callable = "cross_entropy",
) -> Branches:
    """Check everything a user passes and put it into one record (book: eq-jsd).

    Source: NoisyMix, Lemma 2 and Theorem 2, as stated in `notation`.

    Args:
        model: network in eval mode, or any callable from inputs to outputs `(n, K)` or `(n,)`.
        xs: the branches, `(m, n, *input)` or a sequence of m tensors: clean inputs, then augmented copies.
        y: labels of the samples; needed for `loss="noisymix"` only.
        layer: dotted name of the layer whose output is perturbed; `""` is the input.
        params: parameters to use instead of the model's own, by name.
        weights: π, m numbers ≥ 0 that sum to 1; `None` means 1/m each.
        alpha: first Beta parameter of λ, which all branches share; 0 for no mixing.
        beta: second Beta parameter, `None` means `alpha`.
        add_noise: σ_add.
        mult_noise: σ_mult.
        noise: law of the noise, see `noise_laws`.
        shared_noise: the same noise for all branches, instead of one drawn for each.
        loss: `"stability"` (JSD, m ≥ 2), `"noisymix"` (loss of branch 1 plus γ JSD), or any smooth callable
            `(outputs (b, m, K), labels (b, ...)) -> (b,)`, m ≥ 1.
        gamma: γ ≥ 0, weight of the JSD in `"noisymix"`.
        label_loss: loss of the labels in `"noisymix"`, see `pointwise_loss`; `"logistic"` for K = 1.

    Raises:
        ValueError: for branches, weights, laws, labels or layers that do not fit.
        TypeError: for arguments of the wrong kind.

    Example:
        >>> two = build_branches(lambda x: x, torch.zeros(2, 5, 3), weights=[0.3, 0.7])
        >>> two.branches, two.features.shape, two.loss.name
        (2, torch.Size([5, 2, 3]), 'jensen_shannon')
    """
    xs = _stack(xs)
    m, n = xs.shape[:2]
    if loss in ("stability", "noisymix") and m < 2:
        raise ValueError(f"xs: expected m >= 2 branches (m, n, *input) to compare, got shape {tuple(xs.shape)}.")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma: expected a finite number >= 0, got {gamma!r}.")
    if y is not None and len(y) != n:
        raise ValueError(f"xs and y: expected the same number of samples, got {n} and {len(y)}.")
    base = build_problem(
        model, xs.flatten(0, 1), xs.new_zeros(m * n), layer=layer, params=params, alpha=alpha, beta=beta,
        add_noise=add_noise, mult_noise=mult_noise, noise=noise, loss=lambda outputs, labels: outputs.sum(-1),
    )  # fmt: skip
    features = base.features.unflatten(0, (m, n)).transpose(0, 1)
    pi = torch.full((m,), 1 / m, dtype=torch.float64) if weights is None else checked_weights(weights, m)
    pi = pi.to(xs.device)
    if loss == "stability":
        composite, labels = _stability(m, pi), xs.new_zeros(n)
    elif loss == "noisymix":
        if y is None:
            raise ValueError("y: expected labels of the samples for loss='noisymix', got None.")
        composite = _noisymix(m, pi, gamma, pointwise_loss(label_loss))
        labels = composite.prepare(base.head(features[:, 0]).detach(), y.to(xs.device))
    elif callable(loss):
        name = getattr(loss, "__name__", "custom")
        composite = PointwiseLoss(name, lambda u, t: loss(u.unflatten(1, (m, -1)), t), lambda u, t: t)
        labels = xs.new_zeros(n) if y is None else y.to(xs.device)
    else:
        raise ValueError(f"loss: expected 'stability', 'noisymix' or a callable, got {loss!r}.")

    def head(h: Tensor) -> Tensor:
        return base.head(h.flatten(0, 1)).unflatten(0, (len(h), m)).flatten(1)

    values = composite(head(features), labels)
    if values.shape != (n,) or not values.isfinite().all():
        raise ValueError(f"loss: expected {n} finite values, one per sample, got {values.detach()}.")
    size = features[0, 0].numel()
    laws = base.laws
    if not shared_noise:
        laws = tuple(
            BranchNoise(law.base, True, law.sparsity, branches=m, size=size) if law.beta_scaled else law for law in laws
        )
    same = {f.name: getattr(base, f.name) for f in fields(base)}
    return Branches(
        **same | {"features": features, "labels": labels, "head": head, "loss": composite, "laws": laws},
        branch_head=base.head,
        weights=pi,
        shared_noise=shared_noise,
    )


def build_layers(model, xs, y=None, *, layer: str | Sequence[str] = "", **options) -> list[Branches]:
    """One `Branches` per layer; `layer` may be a sequence of names, over which the theory averages uniformly.

    Raises:
        ValueError: if the sequence is empty, and as `build_branches`.
    """
    layers = [layer] if isinstance(layer, str) else list(layer)
    if not layers:
        raise ValueError("layer: expected a name or a non-empty sequence of names.")
    return [build_branches(model, xs, y, layer=name, **options) for name in layers]
