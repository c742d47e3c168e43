"""Data flows one way: nfm_theory -> experiments -> figures -> book, and the library has no side effects."""

import ast
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"nfm_theory", "experiments", "figures", "book", "tests", "benchmarks"}
# What each folder may import of ours, and, where it is limited, of others.
MAY_USE = {
    "nfm_theory": {"nfm_theory"},
    "experiments": {"nfm_theory", "experiments"},
    "figures": {"nfm_theory", "experiments", "figures"},
}
LIBRARY_NEEDS = {"torch", "numpy", "scipy", "sympy", "tqdm", "lazy_loader"}
INTEGRATIONS = {"lightning", "transformers"}  # a module of this name in nfm_theory/integrations needs its library
COMMAND_NEEDS = {"typer"}  # only in the folder of the command, which alone reads and writes files
LIBRARY_NEEDS_LAZILY = {"matplotlib"}  # only inside a function: `import nfm_theory` works without it
MAX_LINES = 400

FORBIDDEN_CALLS = {
    "print", "input", "open", "exec", "eval", "breakpoint",
    "torch.save", "torch.load", "torch.manual_seed", "torch.seed", "torch.random.manual_seed",
    "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.set_rng_state",
    "torch.set_default_dtype", "torch.set_default_device", "torch.set_grad_enabled", "torch.set_num_threads",
    "torch.use_deterministic_algorithms", "np.random.seed", "numpy.random.seed", "random.seed",
    "np.save", "np.load", "np.savez", "plt.show", "matplotlib.use", "logging.basicConfig",
}  # fmt: skip
FORBIDDEN_METHODS = {"write_text", "read_text", "write_bytes", "read_bytes"}


def modules(*folders: str) -> list[Path]:
    """The Python files of some folders, in a fixed order (xdist collects in several processes)."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_command(path: Path) -> bool:
    return path.is_relative_to(ROOT / "nfm_theory" / "cli")


def package(path: Path, level: int) -> list[str]:
    """The package that a relative import of this level starts from."""
    parents = list(path.relative_to(ROOT).parent.parts)
    return parents[: len(parents) - level + 1]


def under_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, lazy: bool) -> set[str]:
    """Dotted names that a module imports: inside functions (`lazy`), or when it is imported itself."""
    return all_imports(path)[lazy]


@cache
def all_imports(path: Path) -> tuple[set[str], set[str]]:
    """What a module imports when it is imported itself, and inside functions."""
    found = set(), set()

    def visit(node: ast.AST, inside: bool) -> None:
        if under_type_checking(node):
            return
        if isinstance(node, ast.Import):
            found[inside].update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package(path, node.level) if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            found[inside].update(f"{base}.{alias.name}" for alias in node.names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr):
                visit(child, inside)

    visit(parsed(path), False)
    return found


def roots(dotted: set[str]) -> set[str]:
    return {target.split(".")[0] for target in dotted}


@pytest.mark.parametrize("path", modules(*MAY_USE), ids=name)
def test_arrows_point_one_way(path):
    used = roots(imports(path, lazy=False) | imports(path, lazy=True)) & OURS
    assert used <= MAY_USE[path.relative_to(ROOT).parts[0]]


@pytest.mark.parametrize("path", modules("nfm_theory"), ids=name)
def test_library_needs_few_packages(path):
    allowed = set(sys.stdlib_module_names) | LIBRARY_NEEDS | {"nfm_theory"}
    allowed |= COMMAND_NEEDS if is_command(path) else set()
    allowed |= {path.stem} & INTEGRATIONS if path.parent.name == "integrations" else set()
    assert roots(imports(path, lazy=False)) <= allowed
    assert roots(imports(path, lazy=True)) <= allowed | LIBRARY_NEEDS_LAZILY


LIBRARY = [path for path in modules("nfm_theory") if not is_command(path)]


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_does_without_the_command(path):
    used = imports(path, lazy=False) | imports(path, lazy=True)
    assert not [target for target in used if f"{target}.".startswith("nfm_theory.cli.")]


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_has_no_side_effects(path):
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    for call in calls:
        called = ast.unparse(call.func)
        method = called.rsplit(".", 1)[-1]
        assert called not in FORBIDDEN_CALLS, f"{name(path)}:{call.lineno} calls {called}"
        assert method not in FORBIDDEN_METHODS, f"{name(path)}:{call.lineno} calls {called}"


def test_library_has_no_import_cycle():
    """Read top to bottom: a module uses only what stands before it."""
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules("nfm_theory")}
    graph = {}
    for module, path in dotted.items():
        if path.stem == "__init__":
            continue
        targets = imports(path, lazy=False)
        graph[module] = {
            known for known in dotted if known in targets or any(t.rsplit(".", 1)[0] == known for t in targets)
        }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) >= set(graph)


@pytest.mark.parametrize("path", modules(*MAY_USE), ids=name)
def test_a_module_is_one_job(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_the_checks_see_what_they_must(tmp_path, monkeypatch):
    """The walk above finds absolute, relative, lazy and aliased imports."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "nfm_theory").mkdir()
    path = tmp_path / "nfm_theory" / "bad.py"
    path.write_text(
        "import experiments.data as d\nfrom .draws import Draw\nfrom . import laws\n"
        "def f():\n    from figures import style\n    import matplotlib.pyplot as plt\n"
    )
    assert imports(path, lazy=False) == {"experiments.data", "nfm_theory.draws.Draw", "nfm_theory.laws"}
    assert imports(path, lazy=True) == {"figures.style", "matplotlib.pyplot"}
    with pytest.raises(AssertionError):
        test_arrows_point_one_way(path)
