"""Stand-ins for small packages of the library that a bare machine lacks, so that it can be measured there.

A package that is installed is used. `tqdm` without bars, `lazy_loader` for the stub of this library, and `cv2`, whose
use is an `ImportError` that names the package: what needs it fails by itself, and the rest runs.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class NoBar:
    """The part of `tqdm.tqdm` that the library uses, without a bar."""

    def __init__(self, items: Iterable | None = None, **options):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Show nothing."""

    def close(self) -> None:
        """End nothing."""

    @staticmethod
    def write(text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr)


def attach_stub(package: str, file: str) -> tuple[Callable, Callable, list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names are listed in the stub beside its file.

    Args:
        package: name of the package.
        file: its `__init__.py`.
    """
    places: dict[str, str] = {}
    for node in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                places[alias.name] = f"{package}.{node.module}" if node.module else ""

    def load(name: str):
        if name not in places:
            raise AttributeError(f"No {package} attribute {name}")
        if not places[name]:
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(places), sorted(places)


def _module(name: str, **contents) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, loader=None)  # PyTorch asks for it
    vars(made).update(contents)
    return made


def _missing(package: str) -> Callable:
    def refuse(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{package} is not installed")

    return refuse


def stand_ins() -> dict[str, ModuleType]:
    """All stand-ins, by the name of the module for which they stand."""
    return {
        "tqdm": _module("tqdm", tqdm=NoBar),
        "lazy_loader": _module("lazy_loader", attach_stub=attach_stub),
        "cv2": _module("cv2", __getattr__=_missing("opencv-python-headless")),
    }


def install() -> list[str]:
    """Put the stand-ins in the place of packages that are missing.

    Returns:
        The names of the packages for which one stands in.
    """
    missing = [name for name in stand_ins() if name not in sys.modules and importlib.util.find_spec(name) is None]
    sys.modules.update({name: module for name, module in stand_ins().items() if name in missing})
    return missing
