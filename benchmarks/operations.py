"""Derivatives of every operation of PyTorch in `exact_derivatives()`: `python -m benchmarks.operations [--json PATH]`.

The operations and their arguments are those with which PyTorch tests itself. All arguments move along a random
direction, and the outputs are summed with random weights: a function φ(t) of one number. Its derivatives of order 1 to
3, by the compositions that the library nests, are compared with those of a polynomial that interpolates *values* of φ.

| verdict | meaning |
|---|---|
| right | agrees in every composition and for every sample |
| refused | the library raises an error of its own |
| raises | PyTorch raises an error; the library explains it, see `nfm_theory.calculus.failures` |
| rough | constant, random or not smooth near every sample: there is nothing to compare |
| wrong | differs; no operation may have this verdict |

It takes about two minutes on one core, and needs the package `expecttest`, which PyTorch's own tests import.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from nfm_theory.calculus.failures import DerivativeError
from nfm_theory.calculus.replacements import exact_derivatives

RECORD = Path(__file__).parent / "results" / "operations.json"
#: Samples of each operation, spread over all that PyTorch has, and the seconds after which no new sample is begun.
SAMPLES, SECONDS = 7, 8.0
#: Nodes of the interpolation, and the half widths of its interval, of which the first with a small tail is taken.
NODES, WIDTHS = 13, (0.05, 0.01, 2e-3, 4e-4, 1e-4)
#: Relative size of a coefficient at the end of the series of a smooth function, and the relative error of agreement.
SMALL_TAIL, AGREEMENT = 1e-9, 1e-6
ZERO = torch.zeros((), dtype=torch.float64)


def forward(phi):
    """The derivative of a function of one number by forward mode."""
    return lambda t: jvp(phi, (t,), (torch.ones_like(t),))[1]


#: Name -> (transforms from the inside out); j is forward mode, g reverse mode.
COMPOSITIONS = {
    "j": (forward,), "jj": (forward,) * 2, "jjj": (forward,) * 3,
    "g": (grad,), "gj": (forward, grad), "gjj": (forward, forward, grad),
}  # fmt: skip


def operations() -> dict:
    """The differentiable operations of the installed PyTorch in float64, by name."""
    from torch.testing._internal.common_methods_invocations import op_db

    known = [op for op in op_db if op.supports_autograd and torch.float64 in op.supported_dtypes("cpu")]
    return {".".join(filter(None, (op.name, op.variant_test_name))): op for op in known}


def samples_of(op) -> Iterator:
    """A few of PyTorch's samples, from the first to the last."""
    every = list(islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), 200))
    every = [z for z in every if not isinstance(z.input, Tensor) or z.input.numel()] or every
    return islice(every[:: max(1, len(every) // SAMPLES)], SAMPLES)


class _Rounded(Exception):
    """An operation rounds to a lower precision, in which values change by steps."""


class Curve:
    """φ(t): an operation whose arguments move along a random direction, its outputs summed with random weights."""

    def __init__(self, op, sample):
        self.op, self.sample, self.weights = op, sample, []
        flat, self.spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        generator = torch.Generator().manual_seed(1)
        self.start = [item.detach() if isinstance(item, Tensor) else item for item in flat]
        self.directions = {
            k: torch.randn(item.shape, generator=generator, dtype=item.dtype)
            for k, item in enumerate(flat)
            if isinstance(item, Tensor) and item.requires_grad and item.dtype == torch.float64 and item.numel()
        }
        self(ZERO)

    def __call__(self, t: Tensor) -> Tensor:
        items = list(self.start)
        for k, direction in self.directions.items():
            items[k] = items[k] + t * direction
        first, args, kwargs = tree_unflatten(items, self.spec)
        with torch.random.fork_rng(devices=[]):
            out = self.op.gradcheck_wrapper(self.op.op, first, *args, **kwargs)
        if self.sample.output_process_fn_grad is not None:
            out = self.sample.output_process_fn_grad(out)
        parts = [torch.view_as_real(z.resolve_conj()) if z.is_complex() else z for z in tree_flatten(out)[0]
                 if isinstance(z, Tensor) and (z.is_floating_point() or z.is_complex())]  # fmt: skip
        if any(z.dtype != torch.float64 for z in parts):
            raise _Rounded
        if not self.weights:
            generator = torch.Generator().manual_seed(2)
            self.weights = [torch.randn(z.shape, generator=generator, dtype=torch.float64) for z in parts]
        return sum(((z * w).sum() for z, w in zip(parts, self.weights, strict=True)), ZERO)


def from_values(phi) -> tuple[np.ndarray, np.ndarray] | None:
    """φ', φ'', φ''' at 0 and their errors, from values alone; `None` if φ is not smooth."""
    nodes = np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
    order = np.arange(4)
    for width in WIDTHS:
        with exact_derivatives(), torch.no_grad():
            values = np.array([float(phi(torch.tensor(width * x, dtype=torch.float64))) for x in nodes])
        if not np.isfinite(values).all():
            continue
        series = np.linalg.solve(np.polynomial.chebyshev.chebvander(nodes, NODES - 1), values)
        tail, size = np.abs(series[-3:]).max(), np.abs(series).max()
        if tail <= SMALL_TAIL * size:
            at_zero = [np.polynomial.chebyshev.chebval(0.0, np.polynomial.chebyshev.chebder(series, k)) for k in order]
            errors = (tail + 4e-16 * np.abs(values).max()) * float(NODES) ** (2 * order) / width**order
            return (np.array(at_zero) / width**order)[1:], errors[1:]
    return None


def _differs(found: float, known: float, error: float) -> bool:
    return not abs(found - known) <= AGREEMENT * abs(known) + 20 * error + 1e-9


def compare(phi: Curve, known: np.ndarray, errors: np.ndarray) -> Iterator[tuple[str, str]]:
    """(composition, what went wrong) for each composition that is not right."""

    def doubled(s: Tensor) -> Tensor:
        return forward(forward(lambda t: phi(s * t)))(ZERO)

    for name, transforms in COMPOSITIONS.items():
        derivative, order = phi, len(transforms)
        for transform in transforms:
            derivative = transform(derivative)
        try:
            with exact_derivatives():
                found = float(derivative(ZERO))
        except Exception as error:
            yield name, _sentence(error)
            continue
        if _differs(found, known[order - 1], errors[order - 1]):
            yield name, f"wrong: {found:.6g} for {known[order - 1]:.6g}"
    try:
        with exact_derivatives():
            found = float(vmap(doubled)(torch.tensor([1.0, 2.0], dtype=torch.float64))[1])
    except Exception as error:
        yield "vmap(jj)", _sentence(error)
        return
    if _differs(found / 4, known[1], errors[1]):
        yield "vmap(jj)", f"wrong: {found / 4:.6g} for {known[1]:.6g}"


def _sentence(error: Exception) -> str:
    kind = "refused" if isinstance(error, DerivativeError) else "raises"
    return f"{kind}: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}"


def examine(op) -> dict:
    """The verdict on one operation, and what is not right about it."""
    found: dict[str, str] = {}
    compared, start = 0, time.perf_counter()
    for sample in samples_of(op):
        if time.perf_counter() - start > SECONDS:
            break
        try:
            phi = Curve(op, sample)
            if not phi.directions or float(phi(ZERO)) != float(phi(ZERO)):
                continue
            known = from_values(phi)
        except _Rounded:
            continue
        except Exception as error:
            found.setdefault("value", _sentence(error))
            continue
        if known is None:
            continue
        compared += 1
        for name, what in compare(phi, *known):
            if name not in found or what.startswith("wrong"):
                found[name] = what
    words = {what.split(":")[0] for what in found.values()}
    verdict = next((word for word in ("wrong", "raises", "refused") if word in words), "right" if compared else "rough")
    return {"verdict": verdict, "samples": compared, **({"found": found} if found else {})}


def run(names: list[str] | None = None) -> dict:
    """The record: versions, and the verdict on every operation, or on those that are named."""
    warnings.simplefilter("ignore")
    every = operations()
    examined = {}
    for name, op in every.items():
        if names is None or name in names:
            torch.manual_seed(0)
            examined[name] = examine(op)
    counts = dict.fromkeys(("right", "refused", "raises", "rough", "wrong"), 0)
    for result in examined.values():
        counts[result["verdict"]] += 1
    versions = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    return {"versions": versions, "counts": counts, "operations": examined}


def main() -> None:
    """Examine all operations, or those that are named, and write or print the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the record goes; printed if it is left out")
    parser.add_argument("--operation", nargs="*", help="names of operations; all if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = run(options.operation)
    text = json.dumps(record, indent=1) + "\n"
    if options.json is None:
        print(text)
    else:
        options.json.write_text(text)
        print(record["counts"])


if __name__ == "__main__":
    main()
