"""The log of a training for TensorBoard, if that is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

#: What the log has of each epoch, and its name in TensorBoard.
_CURVES = {"loss": "train/loss", "learning_rate": "train/learning_rate", "test_accuracy": "test/accuracy"}


def check_board() -> None:
    """Refuse TensorBoard if it is not installed.

    Raises:
        ValueError: if it is not.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"tensorboard: expected the package to be installed ({error}); install it with `pip install tensorboard`, "
            "or leave the option out: the same numbers are in log.jsonl."
        ) from error


def open_board(folder: Path) -> Callable[[dict], None]:
    """A function that writes one line of the log, of an epoch, to files for TensorBoard.

    Raises:
        ValueError: if TensorBoard is not installed.
    """
    check_board()
    from torch.utils.tensorboard import SummaryWriter

    def write(line: dict) -> None:
        # A writer for each epoch, so that nothing is open when a training is killed
        with SummaryWriter(str(folder)) as writer:
            for name, curve in _CURVES.items():
                if name in line:
                    writer.add_scalar(curve, line[name], line["epoch"] + 1)

    return write
