"""Measure every method of the cases, keep the numbers in a file as they come, print them as tables."""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from .cases import Case, build_case
from .measure import interleaved, machine, num_threads, peak_memory, timed, versions
from .method import Method
from .methods import METHODS
from .peer_packages import DISTRIBUTIONS

UNIT = {"value": "forward pass", "gradient": "training step"}


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        repeats: timed calls of each method.
        budget: seconds for the timed calls of one method; what needs more for a single call is not started.
        threads: threads of PyTorch.
        device: where the cases live.
        only: measure only methods whose `(quantity, name)` it accepts.
        again: measure also what is in the record, and put the new numbers in its place.
    """

    repeats: int = 9
    budget: float = 20.0
    threads: int = 1
    device: str = "cpu"
    only: Callable[[str, str], bool] = lambda quantity, name: True
    again: bool = False


class Record:
    """The numbers of a run, one cell for each case, quantity and method, kept in a JSON file if there is a path.

    Args:
        path: the file; cells in it are kept and not measured again.
        about: machine and versions; a file with others is refused, because ratios of two machines do not mix.
        fresh: forget what is in the file.
    """

    def __init__(self, path: str | Path | None, about: dict, *, fresh: bool = False):
        self.path = None if path is None else Path(path)
        self.content = about | {"cells": []}
        if self.path is not None and self.path.exists() and not fresh:
            found = json.loads(self.path.read_text())
            if any(found.get(key) != value for key, value in about.items()):
                raise ValueError(f"{self.path} was measured on another machine or with other versions; use --fresh.")
            self.content = found

    @property
    def cells(self) -> list[dict]:
        """What is there so far."""
        return self.content["cells"]

    def has(self, case: str, method: Method) -> bool:
        """Whether the cell is measured; what was skipped is tried again."""
        return any(
            (cell["case"], cell["quantity"], cell["method"]) == (case, method.quantity, method.name) and "time" in cell
            for cell in self.cells
        )

    def add(self, cell: dict) -> None:
        """Put a cell in the place of its predecessor, and write the file."""
        key = ("case", "quantity", "method")
        self.content["cells"] = [old for old in self.cells if any(old[k] != cell[k] for k in key)] + [cell]
        if self.path is not None:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.content, indent=1) + "\n")
            os.replace(partial, self.path)


def _reason(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    name = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return (name + text)[:160]


@dataclass
class _Unit:
    """A forward pass or a training step of a case, with its memory and a first guess of its time."""

    call: Callable[[], object]
    seconds: float
    memory: int

    @classmethod
    def of(cls, case: Case, kind: str) -> "_Unit":
        call = case.forward if kind == "value" else case.training_step
        call()
        return cls(call, timed(call)[0], max(1, peak_memory(call, case.x.device)))


def measure_group(case: Case, unit: _Unit, methods: Iterable[Method], options: Options) -> list[dict]:
    """Cells of methods that compute the same quantity: memory one by one, time in turn with the unit."""
    cells, calls = {}, {}
    for method in methods:
        cell = {"case": case.name, "quantity": method.quantity, "method": method.name, "kind": method.kind}
        cells[method.name] = cell
        if method.passes * unit.seconds > options.budget:
            cell["skipped"] = f"over budget: about {method.passes * unit.seconds:.0f} s a call expected"
            continue
        values = []
        try:
            call = method.ready()
            cell["memory"] = (
                peak_memory(lambda f=call, into=values: into.append(float(f())), case.x.device) / unit.memory
            )
        except Exception as error:  # whatever a method raises is its result
            cell["skipped"] = _reason(error)
            continue
        cell["value"] = values[0]
        calls[method.name] = call
    timings = interleaved({"": unit.call} | calls, repeats=options.repeats, warmup=0, budget=options.budget)
    one = timings[""].median
    for name in calls:
        time = timings[name]
        quartiles = [time.lower / one, time.upper / one]
        cells[name] |= {"time": time.median / one, "quartiles": quartiles, "repeats": time.repeats, "unit_seconds": one}
    return list(cells.values())


def run(names: Iterable[str], record: Record, options: Options, show: Callable[[str], None] = print) -> None:
    """Measure what is not in the record yet or is asked for again, a case at a time, and show the table of each."""
    with num_threads(options.threads):
        for name in names:
            case, units = build_case(name, device=options.device), {}
            methods = [m for m in METHODS[name](case) if options.only(m.quantity, m.name)]
            methods = [m for m in methods if options.again or not record.has(name, m)]
            by_quantity = sorted(methods, key=lambda m: (m.kind, m.quantity))
            for (kind, _), group in groupby(by_quantity, key=lambda m: (m.kind, m.quantity)):
                if kind not in units:
                    units[kind] = _Unit.of(case, kind)
                for cell in measure_group(case, units[kind], group, options):
                    record.add(cell)
            show(table(name, record.cells))


def about(options: Options) -> dict:
    """Machine and versions of a run."""
    with num_threads(options.threads):
        found = machine(options.device)
    packages = dict(versions(*DISTRIBUTIONS))
    with suppress(AttributeError):
        packages["cuda"] = torch.version.cuda or "none"
    return {"machine": found, "versions": packages}


def table(name: str, cells: list[dict]) -> str:
    """The cells of one case as text: multiples of the unit, fastest first, then what was not measured and why."""
    lines = [f"\n{name}", f"{'quantity':30}{'method':36}{'time':>9}{'memory':>9}{'calls':>7}{'value':>14}  unit"]
    mine = sorted(
        (cell for cell in cells if cell["case"] == name),
        key=lambda c: (c["kind"] != "value", c["quantity"], c.get("time", float("inf"))),
    )
    for cell in mine:
        start = f"{cell['quantity']:30}{cell['method']:36}"
        if "time" in cell:
            numbers = f"{cell['time']:9.3g}{cell['memory']:9.3g}{cell['repeats']:7}{cell['value']:14.5g}"
            lines.append(f"{start}{numbers}  {UNIT[cell['kind']]}")
        else:
            lines.append(f"{start}{'-':>9}  {cell['skipped']}")
    return "\n".join(lines)
