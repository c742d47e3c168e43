r"""Rows of randomness: everything random about one evaluation of the NFM loss, drawn before any mathematics.

A row says: first sample `anchor`, its weight `lam`, partner `index`, noises `add` and `mult`. Deterministic rules
(`quadrature.py`) and Monte Carlo produce the same record, so that every formula is evaluated by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .laws import MixingLaw, NoiseLaw, noise_laws


@dataclass(frozen=True)
class Draw:
    """A replayable batch of rows.

    Attributes:
        anchor: index i of the first sample, `(rows,)`.
        lam: weight of the first sample, `(rows,)`.
        index: index r of the partner, `(rows,)`.
        add: unscaled additive noise ξ_add, `(rows, *feature)`, or `None` for no noise.
        mult: unscaled multiplicative noise ξ_mult, `(rows, *feature)`, or `None`.
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
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Draw(**{name: None if part is None else part[rows] for name, part in parts.items()})


def sample_draw(
    num_samples: int,
    feature_shape: tuple[int, ...],
    *,
    mixing: MixingLaw | None = None,
    noise: str | NoiseLaw | tuple[NoiseLaw, NoiseLaw] = "normal",
    replicates: int = 1,
    unmixed: bool = True,
    as_trained: bool = False,
    additive: bool = True,
    multiplicative: bool = True,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Draw:
    """Draw `replicates` sweeps over the samples: `replicates * num_samples` rows, sample index fastest.

    Args:
        num_samples: n, number of samples in the data (or in the minibatch).
        feature_shape: shape of one sample's features.
        mixing: law of λ; `None` means Beta(1, 1).
        noise: law of the noise, see `noise_laws`.
        replicates: number of sweeps.
        unmixed: draw λ from the unmixed law (label of the first sample) instead of Beta(α, β).
        as_trained: one λ, one permutation and one noise scale per sweep, as in training, instead of
            independent rows with uniform partners.
        additive: whether to draw additive noise.
        multiplicative: whether to draw multiplicative noise.
        generator: seeds everything; the global generator is used otherwise.
        dtype: floating dtype of λ and noise.
        device: where the record lives.

    Raises:
        ValueError: if `num_samples` or `replicates` is not positive.
    """
    if num_samples < 1 or replicates < 1:
        raise ValueError(f"Expected num_samples >= 1 and replicates >= 1, got {num_samples} and {replicates}.")
    add_law, mult_law = noise_laws(noise)
    mixing = MixingLaw() if mixing is None else mixing
    n, rows = num_samples, num_samples * replicates
    source = generator.device if generator is not None else device
    kwargs = {"generator": generator, "dtype": dtype, "device": device}
    if as_trained:
        lam = mixing.sample((replicates,), unmixed=unmixed, **kwargs).repeat_interleave(n)
        index = torch.rand((replicates, n), generator=generator, device=source).argsort(1).flatten()
    else:
        lam = mixing.sample((rows,), unmixed=unmixed, **kwargs)
        index = torch.randint(n, (rows,), generator=generator, device=source)
    shared = n if as_trained else 1
    return Draw(
        anchor=torch.arange(n, device=device).repeat(replicates),
        lam=lam,
        index=index.to(lam.device),
        add=add_law.sample((rows, *feature_shape), shared=shared, **kwargs) if additive else None,
        mult=mult_law.sample((rows, *feature_shape), shared=shared, **kwargs) if multiplicative else None,
    )


def antithetic(draw: Draw) -> Draw:
    """The same rows with both noises reversed: averaging the pair removes every odd power of the noise."""
    return replace(
        draw,
        add=None if draw.add is None else -draw.add,
        mult=None if draw.mult is None else -draw.mult,
    )
