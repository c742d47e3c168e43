"""Sphinx extension of the book: the API reference, made from the docstrings, and the options of the command line.

In an `eval-rst` block of a page:

    .. reference:: nfm_theory.adversarial

       bound
       validity_radius

documents these names of a module by autodoc, `.. statements:: nfm_theory nfm_theory.adversarial` prints the tables of
statements and functions of these modules as one, `.. contents-of:: api_bounds` lists what a page documents, with first
sentences, and `.. commands::` prints the commands of `nfm` and
of `python -m experiments`. A name is documented once; the other places it can be
imported from are named there.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path

from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).resolve().parent))
from docstrings import SENTENCE, inline, to_rst

BOOK = Path(__file__).resolve().parents[1]
ROOT = BOOK.parent
#: What users import from.
PUBLIC = (
    "nfm_theory", "nfm_theory.adversarial", "nfm_theory.generalization",
    "nfm_theory.symbolic", "nfm_theory.symbolic.divergence_proofs", "nfm_theory.calculus.engine",
)  # fmt: skip

_BLOCK = re.compile(r"^\.\. reference:: *(\S+)\n((?:[ \t]+\S.*\n|\s*\n)*)", re.MULTILINE)


def declared_in(source: str) -> list[str]:
    """Full names that the `reference` directives of a page list, in their order.

    Args:
        source: text of the page.
    """
    return [f"{module}.{name}" for module, names in _BLOCK.findall(source) for name in names.split()]


@cache
def declared(book: Path = BOOK) -> dict[str, str]:
    """Every documented name and the page it stands on.

    Args:
        book: folder of the pages.
    """
    pages = sorted(book.glob("api*.md"))
    return {name: page.stem for page in pages for name in declared_in(page.read_text(encoding="utf-8"))}


def resolve(name: str):
    """The object with a full name.

    Args:
        name: the name of a module, or of something in one.

    Raises:
        AttributeError: if the module has no such name.
        ModuleNotFoundError: if there is no such module.
    """
    module, _, rest = name.rpartition(".")
    if name in PUBLIC or not module:
        return importlib.import_module(name)
    return getattr(importlib.import_module(module), rest)


def public_names(module: str) -> list[str]:
    """Names for users: `__all__`, or else what is defined in the module without an underscore.

    Args:
        module: full name.
    """
    found = importlib.import_module(module)
    own = [name for name, value in vars(found).items() if getattr(value, "__module__", "") == module]
    return list(getattr(found, "__all__", [name for name in own if not name.startswith("_")]))


@cache
def documented_as() -> dict[str, str]:
    """From every public name to the name it is documented under; submodules to themselves.

    Functions and classes are recognised as the same object; data by being declared under that very name.
    """
    by_identity = {id(resolve(name)): name for name in declared()}
    found = {name: name for name in (*declared(), *PUBLIC)}
    for module in PUBLIC:
        for name in public_names(module):
            full, value = f"{module}.{name}", resolve(f"{module}.{name}")
            if inspect.ismodule(value):
                found.setdefault(full, value.__name__)
            elif id(value) in by_identity and (inspect.isroutine(value) or inspect.isclass(value)):
                found.setdefault(full, by_identity[id(value)])
    return found


def find_link(name: str, home: str) -> str | None:
    """The full name under which something mentioned in a docstring is documented.

    Args:
        name: the name as it is written, such as `terms`, `nt.terms` or `adversarial.worst_case`.
        home: the module of the docstring; the packages around it are searched from the inside out.
    """
    known, parts = documented_as(), home.split(".")
    name = re.sub(r"^nt\.", "nfm_theory.", name)
    scopes = [".".join(parts[:k]) for k in range(len(parts), 0, -1)] + [""]
    for full in (f"{scope}.{name}".lstrip(".") for scope in scopes):
        if full in known:
            return known[full]
        owner, _, member = full.rpartition(".")  # a method or an attribute: the class it belongs to
        if owner in known and owner not in PUBLIC and hasattr(resolve(known[owner]), member):
            return known[owner]
    return None


def _home(value, fallback: str) -> str:
    return value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or fallback


def summary(name: str) -> str:
    """First sentence of what a name documents, in reStructuredText, without its references to the book.

    Args:
        name: full name.
    """
    value = resolve(name)
    text = "\n".join(comment(name)) if _is_data(value) else inspect.getdoc(value) or ""
    first = " ".join(text.split("\n\n")[0].split())
    first = re.split(r"(?<=[^.\s]\.)\s", re.sub(r"\s*\((?:book: |[^()]*; book: |theory §)[^)]*\)", "", first))[0]
    return inline(first, lambda other: find_link(other, _home(value, name.rpartition(".")[0])))


def _is_data(value) -> bool:
    return not (inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value))


def comment(name: str) -> list[str]:
    """The `#:` comment of a constant, wherever in the package it is defined.

    Args:
        name: full name.

    Raises:
        LookupError: if no module of the package has one.
    """
    value, short = resolve(name), name.rpartition(".")[2]
    package = importlib.import_module(name.split(".")[0])
    importlib.import_module(name.rpartition(".")[0])
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for module in (sys.modules[m] for m in names if m in sys.modules):
        if getattr(module, short, None) is value:
            analyzer = ModuleAnalyzer.for_module(module.__name__)
            analyzer.analyze()
            if ("", short) in analyzer.attr_docs:
                return [line for line in analyzer.attr_docs["", short] if line]
    raise LookupError(f"{name}: expected a comment `#: ...` where it is defined; write one")


def _also(name: str) -> list[str]:
    """A sentence on the other places to import a name from."""
    others = sorted(other for other, target in documented_as().items() if target == name != other)
    return ["", "   Also " + ", ".join(f"``{other}``" for other in others) + "."] if others else []


def entry(name: str) -> list[str]:
    """The directive that documents one name.

    Args:
        name: full name.
    """
    value = resolve(name)
    if _is_data(value):
        lines = to_rst(comment(name), lambda other: find_link(other, name.rpartition(".")[0]))
        module, _, short = name.rpartition(".")
        return ["", f".. py:data:: {short}", f"   :module: {module}", "", *(f"   {line}" for line in lines), ""]
    if not inspect.isclass(value):
        return ["", f".. autofunction:: {name}", *_also(name), ""]
    special = [m for m in ("__call__", "__getitem__", "__str__") if getattr(vars(value).get(m), "__doc__", None)]
    options = ["   :members:", *([f"   :special-members: {', '.join(special)}"] if special else [])]
    return ["", f".. autoclass:: {name}", *options, *_also(name), ""]


def statement_rows(module: str) -> list[list[str]]:
    """Rows of the first table in a module's docstring, cells in reStructuredText.

    Args:
        module: full name.
    """
    rows = [line for line in inspect.getdoc(importlib.import_module(module)).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]
    return [[inline(cell, lambda name: find_link(name, module)) for cell in row] for row in cells]


def list_table(header: list[str], rows: list[list[str]], widths: str = "auto") -> list[str]:
    """A table.

    Args:
        header: titles.
        rows: cells in reStructuredText.
        widths: the widths of the columns.
    """
    lines = ["", ".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in [header, *rows]:
        lines += [f"   {'* ' if k == 0 else '  '}- {cell}".rstrip() for k, cell in enumerate(row)]
    return [*lines, ""]


def command_lines(command, path: str) -> list[str]:
    """A command of the parser with its arguments and options, then those below it.

    Args:
        command: a click command or group.
        path: what to type, such as `nfm ledger`.
    """
    below = getattr(command, "commands", {})
    lines = []
    if not below or getattr(command, "invoke_without_command", False):
        shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
        names = [p.name.upper() if p.param_type_name == "argument" else "" for p in shown]
        usage = " ".join([path, *filter(None, names), "[options]" if not all(names) else ""]).strip()
        lines += [f".. rubric:: {path}", "", "::", "", f"   {usage}", ""]
        for part in inspect.cleandoc(command.help or "").split("\n\n"):
            lines += ["::", "", part, ""] if part.startswith("    ") else [_help(part) + "\n"]
        rows = [[_option_name(p), _option_default(p), _help(p.help or "")] for p in shown]
        lines += list_table(["option", "default", ""], rows, "30 20 50") if rows else []
    for name, one in below.items():
        lines += command_lines(one, f"{path} {name}")
    return "\n".join(lines).split("\n")


def _help(text: str) -> str:
    """A help text, options in it as code: typography would make a dash of their two hyphens."""
    return inline(re.sub(r"(?<![\w`-])--[a-z][a-z-]*", r"`\g<0>`", " ".join(text.split())))


def _option_name(parameter) -> str:
    names = [parameter.name.upper()] if parameter.param_type_name == "argument" else parameter.opts
    return ", ".join(f"``{name}``" for name in names)


def _option_default(parameter) -> str:
    if getattr(parameter, "is_flag", False) or parameter.default in (None, "", ()):
        return ""
    value = parameter.default
    if isinstance(value, Path) and value.is_absolute():  # where it lies depends on the machine
        value = value.relative_to(ROOT).as_posix() if value.is_relative_to(ROOT) else value.name
    return f"``{value}``"


class _Generated(Directive):
    """A directive that is replaced by reStructuredText."""

    has_content = True
    optional_arguments = 100

    def run(self):
        source = f"{self.state_machine.input_lines.source(0)}:{self.name}"
        self.state_machine.insert_input(StringList(self.lines(), source), source)
        return []

    def lines(self) -> list[str]:
        raise NotImplementedError


class Reference(_Generated):
    def lines(self):
        names = [f"{self.arguments[0]}.{name}" for name in " ".join(self.content).split()]
        return [line for name in names for line in entry(name)]


class Statements(_Generated):
    def lines(self):
        rows = [row for module in self.arguments for row in statement_rows(module)]
        return list_table(["statement", "function"], rows, "60 40")


class ContentsOf(_Generated):
    def lines(self):
        names = [name for name, page in declared().items() if page in self.arguments]
        rows = [[f":py:obj:`{_short(name)} <{name}>`", summary(name)] for name in names]
        return list_table(["name", ""], rows, "35 65")


class Commands(_Generated):
    def lines(self):
        import typer

        from experiments.commands import app as experiments_app
        from nfm_theory.cli.app import app

        apps = {"nfm": app, "python -m experiments": experiments_app}
        return [line for path, one in apps.items() for line in command_lines(typer.main.get_command(one), path)]


def _short(name: str) -> str:
    return name.removeprefix("nfm_theory.").removeprefix("experiments.")


def convert(app, what, name, obj, options, lines) -> None:
    """Listener of `autodoc-process-docstring`, before napoleon."""
    home = _home(obj, name.rpartition(".")[0])
    lines[:] = to_rst(lines, lambda other: find_link(other, home))
    if what in ("property", "attribute"):
        lines.insert(0, SENTENCE)


def portable(signature: str) -> str:
    """A signature without folders of this machine.

    Args:
        signature: with default values as Python prints them.
    """

    def relative(found: re.Match) -> str:
        path = Path(found[1])
        return f"Path({(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()!r})"

    return re.sub(r"(?:Posix|Windows)Path\('([^']*)'\)", relative, signature)


def process_signature(app, what, name, obj, options, signature, annotation):
    """Listener of `autodoc-process-signature`."""
    return None if signature is None else (portable(signature), annotation)


def ignore_builtins(app, config) -> None:
    """Listener of `config-inited`: what Python defines has no page here, and is no fault of `-n`."""
    config.nitpick_ignore_regex = [*config.nitpick_ignore_regex, ("py:(class|exc|obj)", "|".join(dir(builtins)))]


def skip(app, what, name, obj, skip, options):
    """Listener of `autodoc-skip-member`: no fields of named tuples, whose documentation says nothing."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


def setup(app):
    """Connect everything; napoleon must come after the conversion."""
    for extension in ("sphinx.ext.autodoc", "sphinx.ext.napoleon"):
        app.setup_extension(extension)
    app.connect("autodoc-process-docstring", convert, priority=100)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("config-inited", ignore_builtins)
    directives = {"reference": Reference, "statements": Statements, "contents-of": ContentsOf, "commands": Commands}
    for name, directive in directives.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
