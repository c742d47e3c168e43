"""How much memory a block may take, whether progress is shown, and whether derivatives are checked first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from tqdm import tqdm

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Options:
    block_bytes: int | None = None
    progress: bool | None = None
    check_derivatives: bool = True


_DEFAULT = _Options()
_CURRENT: ContextVar[_Options] = ContextVar("nfm_theory_options", default=_DEFAULT)


@contextmanager
def options(
    *, block_bytes: int | None = None, progress: bool | None = None, check_derivatives: bool | None = None
) -> Iterator[None]:
    """Set how the computations inside the `with` block run; their results do not depend on it.

    Args:
        block_bytes: about how many bytes the activations of one block of head evaluations take. It sets the size of the
            blocks and is no limit on memory: the model, the data, a pass over all samples at once, what gradients need
            and the results come on top. Smaller blocks take less memory and more time. `None` leaves the choice to each
            function.
        progress: True shows progress bars, False shows none; `None` shows them on a terminal for long computations.
        check_derivatives: False takes the derivatives that PyTorch reports, for a model that stops a gradient on
            purpose. True, the default, first compares them once with differences of the model's values.

    Example:
        >>> with options(progress=False):
        ...     pass
    """
    changes = {"block_bytes": block_bytes, "progress": progress, "check_derivatives": check_derivatives}
    changed = replace(_CURRENT.get(), **{name: value for name, value in changes.items() if value is not None})
    token = _CURRENT.set(changed)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def block_bytes() -> int | None:
    """The bytes per block that the caller has set, `None` if none."""
    return _CURRENT.get().block_bytes


def checks_derivatives() -> bool:
    """Whether derivatives are compared with differences of values before they are used."""
    return _CURRENT.get().check_derivatives


def shows_progress(*, default: bool) -> bool:
    """Whether the caller wants to see progress; `default` on a terminal if nothing was said."""
    progress = _CURRENT.get().progress
    return default and sys.stderr.isatty() if progress is None else progress


def progress_bar(
    items: Iterable[Item] | None = None, *, title: str, total: int | None = None, unit: str = "it"
) -> tqdm[Item]:
    """A progress bar that obeys `options`, around an iterable or to be moved by `update`."""
    progress = _CURRENT.get().progress
    bar = tqdm(
        items, desc=title, total=total, unit=unit, unit_scale=unit == "row", delay=2, leave=False,
        disable=None if progress is None else not progress,
    )  # fmt: skip
    return cast("tqdm[Item]", bar)  # without items the stub says tqdm[NoReturn]
