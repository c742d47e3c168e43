r"""One layer of one network with its data, its loss and its law: the setting in which every statement is made.

| symbol | here |
|---|---|
| $g_i$, features at layer k | `Problem.features[i]` |
| $f_k$, the head | `Problem.head` |
| $\ell(f_k(\cdot), y_i)$ | `Problem.losses(h, i)` |
| $P(r \mid i)$, the partner of sample i; 1/n if nothing else is said | `Problem.partners` |
| $\sum_r P(r \mid i)\, g_r - g_i$ | `Problem.drift[i]` |
| $e_i(\varepsilon)$ | `perturb(...) - features[i]` |
| $\varphi(\varepsilon)$, the loss along a draw | `Problem.path(draw)` |
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..calculus.directions import centered_features
from ..calculus.replacements import exact_derivatives
from .ambient import recordable, undisturbed
from .checks import check_losses, checked_layers, checked_lengths, checked_partners
from .draws import Draw, sample_draw
from .inputs import Inputs, as_inputs, each
from .law import Law
from .layers import split
from .memory import bytes_of_a_row, rows_that_fit
from .network import Output, taking
from .noise import NoiseLaw
from .path import Path
from .perturbation import displaced, perturbation
from .pointwise import PointwiseLoss
from .population import Population
from .quadrature import MAX_ROWS, Grid, build_grid
from .targets import Labels, Loss, TargetLoss, chosen_loss, fitted_loss

if TYPE_CHECKING:
    from .streamed import StreamedProblem

Model = nn.Module | Callable[..., Any]
Self = TypeVar("Self", bound="Problem")


class Problem:
    r"""One layer of one network with data, loss and law, checked and cut once; every verb of the library takes one.

    Args:
        model: network in eval mode, or any callable from inputs to outputs `(n, K)`, `(n,)` or `(n, *out)`.
        x: inputs, `(n, *input)`; device and dtype of everything follow them. A tuple of tensors is for `model(*x)`, a
            dict for `model(**x)`; `layer` then names a hidden layer.
        y: labels: class indices `(n, *positions)`, distributions or targets in the shape of the outputs, or 0/1 and
            targets `(n,)` for one output. A pair `(labels, weights)` gives samples or positions a weight each.
        layer: dotted name of the layer whose output is perturbed, see `layer_names`; `""` is the input.
        law: law of mixing and noise. Attacks, certificates and margins need none; everything else does.
        loss: `"cross_entropy"`, `"logistic"`, `"square"`, `"bce"`, `"mse"`; `CrossEntropy`, `BinaryCrossEntropy` or
            `MeanSquaredError` with options, or the loss of `torch.nn` of that kind; or a smooth callable
            `(outputs, labels) -> (batch,)`.
        params: parameters to use instead of the model's own, by name.
        output: which part of what the model returns are the outputs: a key, an attribute, a position, or a function;
            `None` if the model returns them alone.
        partners: probability `P(r|i)` that sample r is the partner of sample i, `(n, n)` with rows that sum to 1;
            `None` is 1/n, as in Mixup. See `k_mixup_weights` and `self_weights`.

    Attributes:
        features: g, `(n, *feature)`.
        labels: labels in the form that the loss expects, `(n, ...)`.
        mass: the weight of these samples in a mean over parts of the data, see `targets.Fitted`.

    Raises:
        ValueError: for data, labels, layers, partners or models that do not fit; the message says what to do.
        TypeError: for arguments of the wrong kind.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> Problem(model, torch.ones(5, 3), torch.tensor([0, 1, 0, 1, 1]), layer="1", law=Law(add_noise=0.4))
        Problem(layer '1': 5 samples, features (4,), 2 outputs, cross_entropy; alpha = 1, beta = 1, ... normal noise)
    """

    labels: Tensor
    loss: PointwiseLoss
    mass: Tensor | int
    population: Population | None = None

    @undisturbed()
    def __init__(
        self,
        model: Model,
        x: Inputs,
        y: Labels,
        *,
        layer: str = "",
        law: Law | None = None,
        loss: Loss = "cross_entropy",
        params: Mapping[str, Tensor] | None = None,
        output: Output = None,
        partners: Tensor | None = None,
    ):
        x = as_inputs(x)
        checked_lengths(x, y)
        self._open(model, x, layer, law, params, output)
        self._set_loss(chosen_loss(loss), y, self._returned())
        if not self.mass:
            raise ValueError("y: expected a position that counts; all are ignored, or have the weight 0.")
        self.partners = None if partners is None else checked_partners(partners, self.features)

    @staticmethod
    def at_layers(
        model: Model,
        x: Inputs,
        y: Labels,
        *,
        layers: Sequence[str],
        law: Law | None = None,
        loss: Loss = "cross_entropy",
        params: Mapping[str, Tensor] | None = None,
        output: Output = None,
        partners: Tensor | None = None,
    ) -> list[Problem]:
        """One problem for each of several layers; the verbs average over them, as training does.

        Args:
            model: network in eval mode.
            x: inputs.
            y: labels.
            layers: dotted names, `""` for the input.
            law: law of mixing and noise.
            loss: see `Problem`, like the others.
            params: parameters to use.
            output: which part of what the model returns are the outputs.
            partners: law of the partners.

        Raises:
            ValueError: if there is no layer, and for everything that `Problem` refuses.
        """
        shared = {"law": law, "loss": loss, "params": params, "output": output, "partners": partners}
        return [Problem(model, x, y, layer=layer, **shared) for layer in checked_layers(layers)]

    @staticmethod
    def from_loader(
        model: Model,
        loader: Iterable,
        *,
        layer: str = "",
        law: Law,
        loss: Loss = "cross_entropy",
        params: Mapping[str, Tensor] | None = None,
        output: Output = None,
        device: torch.device | str | None = None,
        max_features: int = 4096,
    ) -> StreamedProblem:
        """A problem for `regularizers` and `terms(..., remainder=False)` whose samples do not fit into memory.

        Args:
            model: network in eval mode.
            loader: yields batches `(x, y, ...)`, or dicts with the labels under `"labels"`, and can be read twice.
            layer: dotted name of the layer, `""` for the input.
            law: law of mixing and noise.
            loss: see `Problem`.
            params: parameters to use instead of the model's own, by name.
            output: which part of what the model returns are the outputs.
            device: device to which batches are moved, if any.
            max_features: largest number of features for which their covariance is stored.
        """
        from .streamed import StreamedProblem

        return StreamedProblem(
            model, loader, layer=layer, law=law, loss=loss, params=params, output=output, device=device,
            max_features=max_features,
        )  # fmt: skip

    def _open(self, model: Model, x: Inputs, layer: str, law, params, output=None) -> None:
        """Cut the network and keep what belongs to the setting."""
        if isinstance(layer, (list, tuple)):
            raise TypeError(f"layer: expected one name, got {layer!r}; at_layers(..., layers=[...]) takes several.")
        if law is not None and not isinstance(law, Law):
            raise TypeError(f"law: expected an nfm_theory.Law, got {type(law).__name__}.")
        self.model, self.layer, self.params, self._law = model, layer, params, law
        with exact_derivatives():
            self._split = split(model, x, layer=layer, params=params, output=output)
            self.features = self._split.encode(x)

    def _returned(self) -> Tensor:
        """What the model returns for the samples, `(n, *out)`."""
        with exact_derivatives():
            return self._split.head(self.features)

    def _set_loss(self, loss: PointwiseLoss | TargetLoss, y: Labels, outputs: Tensor) -> None:
        """Bring the labels into the form of the loss, and check its values."""
        self._chosen_loss, self.output_shape = loss, tuple(outputs.shape[1:])
        y = each(y, lambda z: recordable(z).to(outputs.device))
        self.loss, self.labels, self.mass = fitted_loss(loss, outputs.detach(), y)
        check_losses(self.loss(self.loss.layout(outputs), self.labels), len(outputs))

    def with_law(self: Self, law: Law) -> Self:
        """The same network, samples and loss with another law; the features are not computed again."""
        return self._changed(_law=law)

    def with_samples(self: Self, x: Inputs, y: Labels) -> Self:
        """The same network, layer, loss and law with other samples; the network is not checked again."""
        checked_lengths(x := as_inputs(x), y)
        self._split.network.check(x, self.layer)
        with taking(x), exact_derivatives():
            other = self._changed(features=self._split.encode(x))
            outputs = other._returned()
        other._set_loss(self._chosen_loss, y, outputs)
        return other

    def within(self: Self, population: Population) -> Self:
        """The same samples as a part of a larger data set, whose samples are their partners."""
        return self._changed(population=population)

    def _changed(self: Self, **attributes) -> Self:
        """A copy with other attributes; nothing is checked again."""
        other = copy.copy(self)
        if "features" in attributes and attributes["features"].shape != self.features.shape:
            vars(other).pop("row_bytes", None)
        vars(other).update(attributes)
        return other

    def __repr__(self) -> str:
        outputs = self.head(self.features[:1]).shape[-1]
        place = f"layer {self.layer!r}" if self.layer else "input"
        return (
            f"{type(self).__name__}({place}: {len(self.features)} samples, "
            f"features {self.feature_shape}, {outputs} outputs, {self.loss.name}; {self._law or 'no law'})"
        )

    @property
    def law(self) -> Law:
        """The law of mixing and noise.

        Raises:
            ValueError: if the problem was built without one.
        """
        if self._law is None:
            raise ValueError("law: expected a law of mixing and noise; build the problem with law=nfm_theory.Law(...).")
        return self._law

    @property
    def mixing(self):
        """The law of λ."""
        return self.law.mixing

    @property
    def noises(self) -> tuple[NoiseLaw | None, NoiseLaw | None]:
        """The laws of additive and multiplicative noise, `None` where the level is 0."""
        law = self._sampled_law
        add, mult = law.noises
        return add if law.add_noise else None, mult if law.mult_noise else None

    @property
    def _sampled_law(self) -> Law:
        """The law with which noise of the shape of the features is drawn."""
        return self.law

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        return tuple(self.features.shape[1:])

    @property
    def drift(self) -> Tensor:
        """Mean direction to the partner of every sample, `(n, *feature)`."""
        g = self.features
        if self.population is not None:
            return self.population.mean - g
        return (g.mean(0) if self.partners is None else torch.tensordot(self.partners.to(g), g, dims=1)) - g

    @property
    def spread(self) -> Tensor:
        """Directions whose second moment is the covariance of the features of all samples, `(s, *feature)`."""
        known = None if self.population is None else self.population.directions
        return centered_features(self.features) if known is None else known

    @property
    def num_partners(self) -> int:
        """The number of samples that may be a partner."""
        return len(self.features) if self.population is None else self.population.count

    def encode(self, x: Inputs) -> Tensor:
        """Inputs `(b, *input)` to features `(b, *feature)`."""
        return self._split.encode(x)

    def head(self, h: Tensor) -> Tensor:
        """Features `(b, *feature)` to outputs `(b, K)`; its derivatives of every order are right.

        Outputs with positions `(b, *out)` are flattened, with the classes last.
        """
        with exact_derivatives():
            return self.loss.layout(self._split.head(h))

    def losses(self, h: Tensor, rows: Tensor) -> Tensor:
        """ℓ(f(h_b), y_{rows_b}), `(b,)`."""
        return self.loss(self.head(h), self.labels[rows])

    def perturbation(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor | None]:
        """`(g_i, e¹, e²)` of every row, see `perturbation`."""
        return perturbation(self.features, draw, self.law)

    def draw(
        self,
        num_samples: int,
        replicates: int,
        *,
        unmixed: bool = True,
        as_trained: bool = False,
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Sample rows of this problem's law, see `sample_draw`.

        Args:
            num_samples: n, or the size of a minibatch.
            replicates: how often each sample is the first one of a row.
            unmixed: True draws λ from the law after label unmixing, False from Beta(α, β).
            as_trained: True draws one λ, one permutation and one scale of the noise for all samples.
            generator: random generator of everything.

        Raises:
            ValueError: for a permutation, or a minibatch, of partners that are not uniform.
        """
        draw = sample_draw(
            num_samples, self.feature_shape, self._sampled_law, replicates=replicates, unmixed=unmixed,
            as_trained=as_trained, generator=generator, dtype=self.features.dtype, device=self.features.device,
        )  # fmt: skip
        if self.partners is None:
            return draw
        if as_trained or num_samples != len(self.features):
            raise ValueError("partners: one permutation of a minibatch has uniform partners; use method='monte_carlo'.")
        device = draw.index.device if generator is None else generator.device
        rows = self.partners.to(device)[draw.anchor.to(device)]
        index = torch.multinomial(rows, 1, generator=generator).squeeze(1)
        return Draw(draw.anchor, draw.lam, index.to(draw.index.device), draw.add, draw.mult)

    def grid(
        self,
        *,
        rule: str,
        degree: int,
        num_lam: int,
        num_noise: int = 12,
        max_rows: int = MAX_ROWS,
        unmixed: bool = True,
    ) -> Grid:
        """The deterministic rule of this problem, see `build_grid`."""
        return build_grid(
            len(self.features), self.feature_shape, self.mixing, *self.noises, partners=self.partners, rule=rule,
            degree=degree, num_lam=num_lam, num_noise=num_noise, unmixed=unmixed, max_rows=max_rows,
        )  # fmt: skip

    def blocks(self, grid: Grid, *, title: str, passes: int = 1) -> Iterator[tuple[Draw, Tensor]]:
        """The rows of a rule with their weights, in blocks of `block_rows(passes=passes)` rows."""
        return grid.blocks(self.block_rows(passes=passes), like=self.features, title=title)

    def path(self, draw: Draw) -> Path:
        """φ: ε (0-dim, or one per row) to the losses of the rows with the label of the first sample, `(rows,)`."""
        return Path(self, draw.anchor, *self.perturbation(draw))

    def mixed_label_losses(self, draw: Draw) -> Tensor:
        """Losses at ε = 1 with the mixed label, `(rows,)`; λ of the rows from Beta(α, β)."""
        outputs = self.head(displaced(self.perturbation(draw), 1.0))
        first, second = (self.loss(outputs, self.labels[rows]) for rows in (draw.anchor, draw.index))
        return draw.lam * first + (1 - draw.lam) * second

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of everything that one evaluation of the head computes."""
        first = torch.zeros(2, dtype=torch.long, device=self.features.device)
        computed = bytes_of_a_row(lambda rows: self.losses(self.features[first[:rows]], first[:rows]))
        return computed + 4 * self.features[0].nbytes

    def block_rows(self, *, passes: int = 1) -> int:
        """Rows that fit in one block of memory when each costs the memory of `passes` forward passes.

        Raises:
            ValueError: if the caller allows less than one row takes.
        """
        return rows_that_fit(self.row_bytes * passes)


def as_problems(problem: Problem | Sequence[Problem]) -> list[Problem]:
    """One problem, or several over which a verb averages, as a list.

    Raises:
        TypeError: for anything else.
        ValueError: for an empty sequence.
    """
    problems: list[Any] = list(problem) if isinstance(problem, (list, tuple)) else [problem]
    if not all(isinstance(p, Problem) for p in problems):
        raise TypeError(
            f"problem: expected an nfm_theory.Problem or a list of them, got {type(problem).__name__}; build it with "
            "Problem(model, x, y, layer=..., law=...); only regularizers and terms take Problem.from_loader."
        )
    if not problems:
        raise ValueError("problem: expected at least one problem, got an empty list.")
    return problems
