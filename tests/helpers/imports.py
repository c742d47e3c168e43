"""Which files of the repository a module imports, read from the sources without importing anything."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def file_of(module: str) -> Path | None:
    """The file of a module of this repository, `None` for anything else.

    Args:
        module: dotted name.
    """
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


@cache
def imported(module: str) -> frozenset[str]:
    """Modules of the repository that the statements of one module import, packages on the way included.

    Args:
        module: dotted name of a module of the repository.
    """
    path = file_of(module)
    parts = module.split(".")
    package = parts if path.name == "__init__.py" else parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            found |= {start} | {f"{start}.{alias.name}" for alias in node.names}
    above = {name.rsplit(".", k)[0] for name in found | {module} for k in range(1, name.count(".") + 1)}
    return frozenset(name for name in found | above if file_of(name))


def imported_files(module: str) -> set[Path]:
    """The file of a module and of everything in the repository that it imports, directly or not.

    Args:
        module: dotted name of a module of the repository.
    """
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imported(name)
    return {file_of(name) for name in seen}
