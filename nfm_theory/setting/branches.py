r"""The setting of NoisyMix: several perturbed versions of each example under one loss (book: eq-jsd).

$$ L(\varepsilon) = \frac1n \sum_i \mathbb E\, \Phi_i\big(f_k(g_i^1 + e_i^1(\varepsilon)), \dots,
   f_k(g_i^m + e_i^m(\varepsilon))\big) $$

| symbol | here |
|---|---|
| $g_i^j$, features of branch j; branch 1 is clean | `Branches.features[i, j - 1]` |
| $f_k$ | `Branches.branch_head`; for all branches at once `Branches.head` |
| $\Phi_i$, the loss as a function of all logits | `Branches.loss` of outputs `(b, m K)` |
| $\mathrm{JSD}_\pi$, its gradient and Hessian in the logits | `jensen_shannon`, `jsd_gradient`, `jsd_hessian` |
| $L_{NFM} + \gamma L_{JSD}$ (book: eq-noisymix) | `gamma=12.0` |

The branches share λ and the partner r. Each has its own noise unless `shared_noise` is set. The stacked features
`G_i = (g_i^1, .., g_i^m)` are one feature vector with the head `F(G) = (f(g^1), .., f(g^m))`. `Branches` is therefore
a `Problem`: paths, Lagrange intervals, quadrature, Monte Carlo and verification work for them. NFM is the case m = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..calculus.replacements import exact_derivatives
from .ambient import undisturbed
from .checks import checked_lengths, level
from .divergence import checked_weights, jensen_shannon, log_probabilities
from .inputs import each
from .law import Law
from .noise import NoiseLaw
from .pointwise import PointwiseLoss, columns
from .problem import Model, Problem
from .rules import Rule, RuleKind
from .targets import Labels, Loss, chosen_loss, fitted_loss


@dataclass(frozen=True)
class BranchNoise(NoiseLaw):
    """Noise of m stacked branches, where each branch has its own scale b, as in the released code.

    The fields of `NoiseLaw` are followed by the number m of branches and the number of features of one branch.
    """

    branches: int = 1
    size: int = 1

    @property
    def mixed_fourth(self) -> np.ndarray:
        """E ξ_j² ξ_k² for every pair of elements, `(m size, m size)`. Different branches are independent."""
        own = NoiseLaw(self.base, self.beta_scaled, self.sparsity).mixed_fourth
        return np.kron(np.eye(self.branches), np.full((self.size, self.size), own - self.second**2)) + self.second**2

    def scale_nodes(self, num: int, kind: RuleKind = "gauss") -> Rule:
        """Nodes of the m scales b, each repeated for the features of its branch, `(num^m, m size)`, and weights."""
        scale, weight = super().scale_nodes(num, kind)
        picks = np.indices([len(scale)] * self.branches).reshape(self.branches, -1)
        return np.repeat(scale[picks], self.size, axis=0).T, weight[picks].prod(0)

    def sample(self, shape: tuple[int, ...], *, shared: int = 1, generator=None, dtype=None, device=None) -> Tensor:
        """Random noise `(rows, m, *feature)`. Each branch is drawn by `NoiseLaw.sample`."""
        one, options = (shape[0], *shape[2:]), {"generator": generator, "dtype": dtype, "device": device}
        parts = [NoiseLaw.sample(self, one, shared=shared, **options) for _ in range(self.branches)]
        return torch.stack(parts, dim=1)


def _centered_logarithms(logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`p`, `1 - p`, `p / mixture` and `log(p / mixture) - KL`, each `(m, b, max(K, 2))`, all accurate to rounding."""
    log_p = log_probabilities(logits.transpose(0, 1))
    pi = weights.to(log_p).reshape(-1, 1, 1)
    p, gap = log_p.exp(), log_p - (log_p + pi.log()).logsumexp(0)
    # If the most likely class is almost certain, its 1 - p and its gap to the mean are differences of nearly equal
    # numbers. Both are therefore computed from the other classes.
    top = torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0).bool()
    rest = torch.where(top, p.masked_fill(top, 0.0).sum(-1, keepdim=True), 1 - p)
    relative = gap - gap.masked_fill(~top, 0.0).sum(-1, keepdim=True)
    ratio = gap.masked_fill(pi == 0, 0.0).exp()  # without weight it is not needed, and may overflow
    return p, rest, ratio, relative - (p * relative).sum(-1, keepdim=True)


def jsd_gradient(logits: Tensor, weights: Tensor) -> Tensor:
    r"""Gradient of the Jensen-Shannon divergence in the logits, accurate even for probabilities of 0 and 1.

    $$ \partial_{u_{jk}} \mathrm{JSD}_\pi = \pi_j\, p_{jk} \Big( \log\frac{p_{jk}}{\bar p_k}
       - \mathrm{KL}(p_j \| \bar p) \Big), \qquad \bar p = \textstyle\sum_j \pi_j p_j \qquad \text{(book: eq-jsd)} $$

    The logits and the result are `(b, m, K)`, where K = 1 means the logit of class 1; the weights π are `(m,)`.

    Example:
        >>> jsd_gradient(torch.tensor([[[900.0, 0.0], [0.0, 900.0]]]), torch.tensor([0.5, 0.5])).abs().max()
        tensor(0.)
    """
    p, _, _, centered = _centered_logarithms(logits, weights)
    gradient = weights.to(p).reshape(-1, 1, 1) * p * centered
    return (gradient[..., 1:] if logits.shape[-1] == 1 else gradient).transpose(0, 1)


def jsd_hessian(logits: Tensor, weights: Tensor) -> Tensor:
    r"""Hessian of the Jensen-Shannon divergence in all logits, accurate even for probabilities of 0 and 1.

    $$ \nabla^2_{jl} = \delta_{jl}\, \pi_j \big( F_j + \operatorname{diag}(p_j c_j)
       - p_j (p_j c_j)^\top - (p_j c_j)\, p_j^\top \big) - \pi_j \pi_l F_j \operatorname{diag}(1/\bar p) F_l,
       \qquad F_j = \operatorname{diag} p_j - p_j p_j^\top \qquad \text{(book: eq-jsd-second)} $$

    Here `c_j = log(p_j / p̄) - KL(p_j ‖ p̄)`. There is no division by a probability: the ratios `p_l / p̄ ≤ 1 / π_l` are
    computed from logarithms, and `1 - p` is the sum over the other classes. The arguments are those of `jsd_gradient`,
    the result is `(b, m, K, m, K)`.

    Example:
        >>> equal = torch.zeros(1, 2, 1, dtype=torch.float64)
        >>> jsd_hessian(equal, torch.tensor([0.5, 0.5])).flatten().tolist()  # (π_j δ_jl - π_j π_l) p (1 - p)
        [0.0625, -0.0625, -0.0625, 0.0625]
    """
    p, rest, ratio, centered = _centered_logarithms(logits, weights)
    pi, m = weights.to(p), len(p)
    same = torch.eye(p.shape[-1], dtype=torch.bool, device=p.device)
    shift = torch.where(same, rest.unsqueeze(-1), -p.unsqueeze(-2))  # I - 1 pᵀ, so that F = diag(p) shift
    own = p * centered
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
    """The JSD as a loss of outputs `(b, m K)`."""
    cut = lambda outputs: outputs.unflatten(1, (m, -1))  # noqa: E731
    return PointwiseLoss(
        "jensen_shannon",
        lambda u, y: jensen_shannon(cut(u).transpose(0, 1), weights.to(u), reduction="none"),
        lambda u, y: y,
        closed_gradient=lambda u, y: jsd_gradient(cut(u), weights).flatten(1),
        closed_hessian=lambda u, y: jsd_hessian(cut(u), weights).flatten(3).flatten(1, 2),
    )


def _noisymix(m: int, weights: Tensor, gamma: float, label: PointwiseLoss) -> PointwiseLoss:
    """The loss of the clean branch plus γ times the JSD of all branches, as a loss of outputs `(b, m K)`."""
    jsd = _stability(m, weights)

    def clean(u: Tensor) -> Tensor:
        return u[:, : u.shape[1] // m]

    def gradient(u: Tensor, y: Tensor) -> Tensor:
        first = label.gradient(clean(u), y)
        return gamma * jsd.gradient(u, y) + torch.cat([first, u[:, first.shape[1] :] * 0], dim=1)

    def hessian(u: Tensor, y: Tensor) -> Tensor:
        first = label.hessian(clean(u), y)
        first = torch.diag_embed(first.flatten(1)) if first.ndim == 4 else first  # of single outputs
        more = u.shape[1] - first.shape[1]
        return gamma * jsd.hessian(u, y) + nn.functional.pad(first, (0, more, 0, more))

    value = lambda u, y: label(clean(u), y) + gamma * jsd(u, y)  # noqa: E731
    return PointwiseLoss("noisymix", value, label.prepare, closed_gradient=gradient, closed_hessian=hessian)


class Branches(Problem):
    r"""Several perturbed versions of each sample under one loss, for use in place of a `Problem`.

    $$ L_{JSD}(\varepsilon) = \frac1n \sum_i \mathbb E_{\lambda \sim \tilde D}\, \frac1n \sum_r \mathbb E_\xi\,
       \mathrm{JSD}_\pi\big(f_k(g_i^1 + e_i^1(\varepsilon)), \dots, f_k(g_i^m + e_i^m(\varepsilon))\big)
       \qquad \text{(book: eq-jsd)} $$

    Without `gamma` the loss is this stability loss. The divergence has no label; because λ + (1 - λ) = 1, its mean is
    the same under the unmixed law D̃. With `gamma` the loss is the NoisyMix loss, `L_NFM + γ L_JSD` (book: eq-noisymix),
    whose label is that of the clean branch `xs[0]`. For several layers, use a list with one `Branches` for each layer.

    Source: NoisyMix, Lemma 2 and Theorem 2, as stated in the book on the page on notation; here for any number m.

    Args:
        model: network in evaluation mode, or any callable from inputs to outputs `(n, K)` or `(n,)`.
        xs: the branches, `(m, n, *input)` or a sequence of m tensors: clean inputs, then augmented copies.
        y: labels of the samples. They are required with `gamma`, and for a callable `loss` that reads them.
        layer: dotted name of the layer whose output is perturbed; `""` is the input.
        law: law of mixing and noise. All branches share λ and the partner.
        weights: π, m numbers ≥ 0 that sum to 1; `None` means 1/m each.
        gamma: γ ≥ 0, the weight of the stability loss in the NoisyMix loss (12 in the released code); `None` means the
            stability loss alone.
        shared_noise: True gives all branches the same noise, False gives each branch its own.
        loss: with `gamma`, the loss of the labels; `None` means `"cross_entropy"`, and one output needs `"logistic"`.
            Without `gamma`, a smooth callable `(outputs (b, m, K), labels) -> (b,)` that replaces the divergence.
        params: parameters by name, used instead of the model's own.

    Attributes:
        features: g of all branches, `(n, m, *feature)`.
        weights: π, `(m,)`.

    Raises:
        ValueError: for branches, weights, labels or layers that do not fit together.
        TypeError: for arguments of a wrong type.

    Example:
        >>> two = Branches(lambda x: x, torch.zeros(2, 5, 3), weights=[0.3, 0.7])
        >>> two.branches, two.features.shape, two.loss.name
        (2, torch.Size([5, 2, 3]), 'jensen_shannon')
    """

    @undisturbed()
    def __init__(
        self,
        model: Model,
        xs: Tensor | Sequence[Tensor],
        y: Labels | None = None,
        *,
        layer: str = "",
        law: Law | None = None,
        weights: Tensor | Sequence[float] | None = None,
        gamma: float | None = None,
        shared_noise: bool = False,
        loss: Loss | None = None,
        params: Mapping[str, Tensor] | None = None,
    ):
        xs = _stacked_inputs(xs)
        m, n = xs.shape[:2]
        if m < 2 and not callable(loss):
            raise ValueError(f"xs: expected m >= 2 branches (m, n, *input) to compare, got shape {tuple(xs.shape)}.")
        if y is not None:
            checked_lengths(xs[0], y)
        self._open(model, xs.flatten(0, 1), layer, law, params)
        self.features = self.features.unflatten(0, (m, n)).transpose(0, 1)
        self.partners, self.shared_noise = None, shared_noise
        self.gamma = None if gamma is None else level("gamma", gamma)
        pi = torch.full((m,), 1 / m, dtype=torch.float64) if weights is None else checked_weights(weights, m)
        self.weights = pi.to(xs.device)
        self.label_loss: PointwiseLoss | None = None
        with exact_derivatives():
            outputs = columns(self._split.head(self.features.flatten(0, 1)), flat=False).unflatten(0, (n, m))
        if outputs.ndim > 3 and (gamma is not None or not callable(loss)):
            raise ValueError(
                f"model: expected outputs (n, K) of every branch, got {tuple(outputs.shape[2:])} for each sample; the "
                "divergence of positions is a callable loss=."
            )
        if self.gamma is not None:
            if y is None:
                raise ValueError("y: expected the labels of the samples, which the NoisyMix loss needs, got None.")
            chosen, clean = chosen_loss("cross_entropy" if loss is None else loss), outputs[:, 0].detach()
            self.label_loss, labels, _ = fitted_loss(chosen, clean, each(y, lambda z: z.to(xs.device)))
            # The labels have the form that the loss of one branch expects
            joint = replace(_noisymix(m, self.weights, self.gamma, self.label_loss), prepare=lambda u, t: labels)
        elif loss is None:
            joint = _stability(m, self.weights)
        elif callable(loss) and not isinstance(loss, PointwiseLoss):
            name, cut = getattr(loss, "__name__", "custom"), (m, -1)
            joint = PointwiseLoss(name, lambda u, t: loss(u.unflatten(1, cut), t), lambda u, t: t)
        else:
            raise ValueError(f"loss: {loss!r} is a loss of labels and needs gamma=; without gamma, leave it out.")
        if y is None or gamma is not None or loss is None:  # the loss knows its labels, or reads none
            y = xs.new_zeros(n)
        self._set_loss(joint, y, outputs.flatten(1))

    @property
    def branches(self) -> int:
        """The number m of branches."""
        return self.features.shape[1]

    @property
    def objective(self) -> str:
        """The name of the loss in reports."""
        if self.gamma is not None:
            return "NoisyMix loss"
        return "stability loss" if self.loss.name == "jensen_shannon" else "loss of the branches"

    @property
    def clean(self) -> Problem:
        """The first branch alone, with the loss of the labels.

        Raises:
            ValueError: without `gamma`, because there are no labels.
        """
        if self.label_loss is None:
            raise ValueError("gamma: expected the NoisyMix loss, whose labels belong to the clean branch; set gamma=.")
        return self.single(features=self.features[:, 0], loss=self.label_loss)

    def single(self, features: Tensor, loss: PointwiseLoss, labels: Tensor | None = None) -> Problem:
        """A problem with the head of one branch, and with these features, loss and labels (by default the same)."""
        problem = Problem.__new__(Problem)
        vars(problem).update(vars(self))
        return problem._changed(features=features, loss=loss, labels=self.labels if labels is None else labels)

    @property
    def divergence(self) -> Branches:
        """The same branches with the stability loss alone."""
        return self._changed(loss=_stability(self.branches, self.weights), gamma=None, label_loss=None)

    @property
    def _sampled_law(self) -> Law:
        """The law of the stacked noise. In the released code, each branch has its own scale of the noise."""
        if self.shared_noise or not any(noise.beta_scaled for noise in self.law.noises):
            return self.law
        size = self.features[0, 0].numel()
        apart = tuple(
            BranchNoise(one.base, True, one.sparsity, branches=self.branches, size=size) if one.beta_scaled else one
            for one in self.law.noises
        )
        return replace(self.law, noise=apart)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of the noise of one row. Shared noise has a single branch and is broadcast."""
        return (1 if self.shared_noise else self.branches, *self.features.shape[2:])

    def branch_head(self, h: Tensor) -> Tensor:
        """Map features of one branch `(b, *feature)` to outputs `(b, K)`."""
        with exact_derivatives():
            return columns(self._split.head(h))

    def head(self, h: Tensor) -> Tensor:
        """Map features of all branches `(b, m, *feature)` to all outputs, `(b, m K)`."""
        with exact_derivatives():
            return self._split.head(h.flatten(0, 1)).unflatten(0, (len(h), -1)).flatten(1)


def as_problem(problem: Problem) -> Problem:
    """A single problem, refused if it is anything else.

    Raises:
        TypeError: for branches, lists of problems, and for a model in place of a problem.
    """
    if isinstance(problem, Branches):
        raise TypeError(
            "problem: expected a Problem, got Branches; `branches.clean` is the problem of their first one."
        )
    if not isinstance(problem, Problem):
        raise TypeError(
            f"problem: expected one nfm_theory.Problem, got {type(problem).__name__}; build it with "
            "nfm_theory.Problem(model, x, y, layer=..., loss=...)."
        )
    return problem


def _stacked_inputs(xs: Tensor | Sequence[Tensor]) -> Tensor:
    """The branches as one tensor `(m, n, *input)`."""
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
