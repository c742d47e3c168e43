r"""Everything random about one evaluation of the NFM loss, drawn before any mathematics.

Each evaluation of the head is one row: first sample `anchor`, its weight `lam`, partner `index`, noises `add` and
`mult`. Deterministic rules (`quadrature`) and Monte Carlo produce the same record, so that the same code evaluates
every formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .law import Law
from .random_numbers import at_least_single, home_of


@dataclass(frozen=True)
class Draw:
    """A batch of rows that can be replayed.

    Attributes:
        anchor: index i of the first sample, `(rows,)`.
        lam: weight of the first sample, `(rows,)`.
        index: index r of the partner, `(rows,)`.
        add: additive noise ξ_add without its level, `(rows, *feature)`, or `None` for no noise.
        mult: multiplicative noise ξ_mult without its level, `(rows, *feature)`, or `None`.
    """

    anchor: Tensor
    lam: Tensor
    index: Tensor
    add: Tensor | None = None
    mult: Tensor | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lam)

    def __getitem__(self, rows) -> Draw:
        """The rows selected by a slice or an index tensor."""
        add, mult = (None if part is None else part[rows] for part in (self.add, self.mult))
        return Draw(self.anchor[rows], self.lam[rows], self.index[rows], add, mult)


def sample_draw(
    num_samples: int,
    feature_shape: tuple[int, ...],
    law: Law,
    *,
    replicates: int = 1,
    unmixed: bool = True,
    as_trained: bool = False,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Draw:
    """Draw `replicates` times over all samples: `replicates * num_samples` rows, the sample index fastest.

    Args:
        num_samples: n, number of samples in the data or in the minibatch.
        feature_shape: shape of the features of one sample.
        law: law of mixing and noise; a noise of level 0 is not drawn.
        replicates: how often each sample is the first one of a row.
        unmixed: True draws λ from the law after label unmixing, False from Beta(α, β).
        as_trained: True draws one λ, one permutation and one scale of the noise for all samples, as in training;
            False draws every row independently, with uniform partners.
        generator: random generator of everything; the global one if `None`.
        dtype: floating dtype of λ and noise.
        device: device of the record.

    Raises:
        ValueError: if `num_samples` or `replicates` is not positive.
    """
    if num_samples < 1 or replicates < 1:
        raise ValueError(f"Expected num_samples >= 1 and replicates >= 1, got {num_samples} and {replicates}.")
    n, rows = num_samples, num_samples * replicates
    source = home_of(generator, device)
    place = {"generator": generator, "dtype": dtype, "device": device}
    if as_trained:
        lam = law.mixing.sample((replicates,), unmixed=unmixed, **place).repeat_interleave(n)
        order = torch.rand((replicates, n), generator=generator, dtype=at_least_single(), device=source)
        index = order.argsort(1).flatten()
    else:
        lam = law.mixing.sample((rows,), unmixed=unmixed, **place)
        index = torch.randint(n, (rows,), generator=generator, device=source)
    shape, shared, (add, mult) = (rows, *feature_shape), n if as_trained else 1, law.noises
    return Draw(
        anchor=torch.arange(n, device=device).repeat(replicates),
        lam=lam,
        index=index.to(lam.device),
        add=add.sample(shape, shared=shared, **place) if law.add_noise else None,
        mult=mult.sample(shape, shared=shared, **place) if law.mult_noise else None,
    )


def antithetic(draw: Draw) -> Draw:
    """The same rows with both noises reversed; the mean of the pair has no odd power of the noise."""
    return replace(draw, add=None if draw.add is None else -draw.add, mult=None if draw.mult is None else -draw.mult)
