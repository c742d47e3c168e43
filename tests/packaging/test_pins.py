"""The pins of constraints.txt can be installed with every Python that the package supports."""

import platform
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
#: The first release of each minor version, and those of long-lived distributions.
PYTHONS = ("3.10.0", "3.10.12", "3.11.0", "3.11.2", "3.12.0", "3.12.3", "3.13.0")
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
PINS = [Requirement(line) for line in LINES]
#: Packages that PyTorch pins itself.
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$|pytorch-triton")


def applies(marker: Marker | None, python: str) -> bool:
    facts = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    return marker is None or marker.evaluate(facts)


def pinned(python: str) -> dict[str, str]:
    found = [(canonicalize_name(pin.name), str(pin.specifier)) for pin in PINS if applies(pin.marker, python)]
    names = [name for name, _ in found]
    assert sorted(set(names)) == sorted(names), "two pins of one package apply at once"
    return dict(found)


def dependencies(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Everything that is installed for a distribution, without itself."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(name), extras)]
    while waiting:
        item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        for text in metadata.distribution(item[0]).requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in item[1] | {""}):
                waiting.append((canonicalize_name(wanted.name), frozenset(wanted.extras)))
    return {found for found, _ in seen} - {canonicalize_name(name)}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_python_has_one_pin_for_each_package(python):
    assert set(pinned(python)) >= {"torch", "numpy", "soupsieve", "pytest", "basedpyright"}


def test_what_is_installed_here_supports_every_python_that_its_pin_is_for():
    wrong, checked = [], 0
    for pin in PINS:
        try:
            found = metadata.distribution(pin.name)
        except metadata.PackageNotFoundError:
            continue  # for another platform or another Python
        needs = SpecifierSet(found.metadata.get("Requires-Python") or "")
        if found.version.partition("+")[0] != str(pin.specifier).removeprefix("=="):
            continue  # the pin of another Python
        checked += 1
        wrong += [f"{pin} needs Python {needs}, not {v}" for v in PYTHONS if applies(pin.marker, v) and v not in needs]
    assert checked > 100
    assert wrong == []


def test_every_package_of_the_development_install_is_pinned():
    python = platform.python_version()
    known = pinned(python)
    assert {name for name in dependencies("nfm_theory", frozenset({"dev"})) if not OF_TORCH.match(name)} <= set(known)
