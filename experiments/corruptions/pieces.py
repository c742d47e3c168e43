"""Pieces of work on a set of images, done in this process or in worker processes with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

from ..processes import process_pool

#: Number of images in a piece.
PIECE = 500

#: The source images in a worker process, set when it starts.
_SOURCE: np.ndarray | None = None


@dataclass(frozen=True)
class Piece:
    """A range of images, and the place of its result.

    Attributes:
        start: number of the first image.
        stop: number after the last image.
        row: first row of the result in the array.
        make: maps `(images, start=number of the first)` to rows; a function of a module, or a partial of one.
    """

    start: int
    stop: int
    row: int
    make: Callable


def pieces_of(count: int, make: Callable, *, row: int = 0) -> Iterator[Piece]:
    """Divide images 0 to count - 1 into pieces whose results follow each other, starting in `row`."""
    for start in range(0, count, PIECE):
        yield Piece(start, min(start + PIECE, count), row + start, make)


@contextmanager
def runner(images: np.ndarray, workers: int) -> Iterator[Callable]:
    """A `map` over pieces that also passes the source images, in this process or in worker processes."""
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}.")
    if workers == 1:
        yield lambda function, pieces: (function(piece, images) for piece in pieces)
        return
    with process_pool(workers, _begin, (images,)) as pool:
        yield pool.map


def _begin(images: np.ndarray) -> None:
    global _SOURCE
    _SOURCE = images
    # The processes already use all cores, so more threads would only slow them down.
    cv2.setNumThreads(1)


def fill(path: str, piece: Piece, images: np.ndarray | None = None) -> None:
    """Compute one piece and write it to the file."""
    source = _SOURCE if images is None else images
    rows = piece.make(source[piece.start : piece.stop], start=piece.start)
    target = np.lib.format.open_memmap(path, mode="r+")
    target[piece.row : piece.row + len(rows)] = rows
    target.flush()
