"""What each way has to compute, whatever the machine: `python -m benchmarks.estimators.arithmetic --json PATH`.

Counts the floating-point operations of matrix products, convolutions and attention (PyTorch's formulas) in
multiples of a forward pass, or of a training step, and adds them to the measured cells of the file of
`python -m benchmarks.estimators`. A way that needs k times the arithmetic of another can only be made less than k times
slower by wasting less of the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from rich.progress import track
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .cases import Case, build_case
from .measure import num_threads
from .methods import METHODS

_aten = torch.ops.aten
#: Operations that PyTorch's table lacks, and those with the same formula.
_LIKE = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}


class _Counter(TorchDispatchMode):
    """`FlopCounterMode` also follows modules, by hooks that refuse `torch.autograd.grad` with respect to inputs."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        operation = _LIKE.get(func._overloadpacket, func._overloadpacket)
        if operation in flop_registry:
            self.flops += flop_registry[operation](*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of one call, element-wise ones left out."""
    with _Counter() as counter:
        call()
    return counter.flops


def case_flops(case: Case, cells: list[dict]) -> None:
    """Put `"flops"` into the cells that were measured and lack it, in multiples of the unit of their kind.

    Args:
        case: built case.
        cells: the cells of that case; changed in place.
    """
    known = {(method.quantity, method.name): method for method in METHODS[case.name](case)}
    for variant in (case, case.trained, case.double):
        _ = variant.problem  # what is built once and kept is no part of a call
    units = {"value": count_flops(case.forward), "gradient": count_flops(case.training_step)}
    for cell in cells:
        method = known.get((cell["quantity"], cell["method"]))
        if method is not None and "time" in cell and "flops" not in cell:
            with suppress(NotImplementedError):  # as many probes as an accuracy needs may be too many this time
                cell["flops"] = count_flops(method.ready()) / units[cell["kind"]]


def main() -> None:
    """Count, and add to the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimators.arithmetic", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file of `python -m benchmarks.estimators`")
    path = parser.parse_args().json
    record = json.loads(path.read_text())
    names = dict.fromkeys(cell["case"] for cell in record["cells"])
    with num_threads(1):
        for name in track(names, description="counting"):
            case_flops(build_case(name), [cell for cell in record["cells"] if cell["case"] == name])
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
