r"""Taylor coefficients of a function of one number from its values at Chebyshev points, with a measured error.

The function is evaluated at the points $x_k = a \cos(\pi k/M)$ and expanded in Chebyshev polynomials, whose
coefficients fall geometrically if the function is smooth on [-a, a]. The last coefficients are therefore the error of
the fit: what the polynomial leaves out where they still fall, and the rounding of the values where they do not. No
precision is assumed: an error of the values is seen wherever it comes from.

Source: L. N. Trefethen, *Approximation Theory and Approximation Practice*, 2013, chapters 3 and 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

#: Number of last Chebyshev coefficients that measure the error of a fit.
TAIL = 3
#: A tail below this many rounding errors of the values cannot be improved by a smaller interval.
RESTING = 30.0


@cache
def _matrices(degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """The points on [-1, 1]; values to Chebyshev coefficients; Chebyshev coefficients to powers."""
    points = np.cos(np.pi * np.arange(degree + 1) / degree)
    points = (points - points[::-1]) / 2  # symmetric to the last bit, with an exact 0
    to_chebyshev = np.linalg.inv(np.polynomial.chebyshev.chebvander(points, degree))
    to_powers = np.zeros((degree + 1, degree + 1))
    for k in range(degree + 1):
        powers = np.polynomial.chebyshev.cheb2poly(np.eye(degree + 1)[k])
        to_powers[: len(powers), k] = powers
    return torch.from_numpy(points), torch.from_numpy(to_chebyshev), torch.from_numpy(to_powers)


def chebyshev_points(degree: int) -> Tensor:
    """The points `cos(πk/M)`, k = 0..M, of a fit of an even degree M, in float64; the middle one is 0.

    Example:
        >>> chebyshev_points(2).tolist()
        [1.0, 0.0, -1.0]
    """
    return _matrices(degree)[0]


@dataclass(frozen=True)
class Fit:
    """A polynomial on [-1, 1] through the values of many functions.

    Attributes:
        chebyshev: coefficients of the Chebyshev polynomials, `(M + 1, *rest)`.
        tail: the largest of the last coefficients, `(*rest)`.
    """

    chebyshev: Tensor
    tail: Tensor

    @staticmethod
    def of(values: Tensor) -> Fit:
        """Fit values `(M + 1, *rest)` at `chebyshev_points(M)`, in float64."""
        coefficients = torch.tensordot(_matrices(len(values) - 1)[1].to(values.device), values.double(), dims=1)
        return Fit(coefficients, coefficients[-min(TAIL, len(values) // 2) :].abs().amax(0))

    @property
    def middle(self) -> Tensor:
        """The largest of the middle coefficients, `(*rest)`."""
        half = len(self.chebyshev) // 2
        return self.chebyshev[half - 1 : half + 1].abs().amax(0)

    def powers(self) -> Tensor:
        """Coefficients of x⁰ .. x^M, `(M + 1, *rest)`."""
        return torch.tensordot(_matrices(len(self.chebyshev) - 1)[2].to(self.chebyshev), self.chebyshev, dims=1)

    def error(self, power: int) -> Tensor:
        """The error of the coefficient of x^power that the tail explains, `(*rest)`.

        Example:
            >>> x = chebyshev_points(12)
            >>> fit = Fit.of(x.exp())
            >>> bool((fit.powers()[2] - 0.5).abs() <= fit.error(2))
            True
        """
        return self.tail * amplification(len(self.chebyshev) - 1, power)


def amplification(degree: int, power: int) -> float:
    """How much the coefficient of x^power may be off for an error of 1 in every Chebyshev coefficient.

    Example:
        >>> amplification(4, 2)  # x² in T₂ = 2 x² - 1 and T₄ = 8 x⁴ - 8 x² + 1
        10.0
    """
    return float(_matrices(degree)[2][power].abs().sum())
