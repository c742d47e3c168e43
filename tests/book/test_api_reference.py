"""The API reference names everything users import, and the docstrings survive the way from Markdown to the page."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import experiments.recipes
import experiments.record.ledger
import nfm_theory as nt

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "_ext"))

import docstrings
import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "book").glob("api*.md"))
MODULES = sorted(path for folder in ("nfm_theory", "experiments") for path in (ROOT / folder).rglob("*.py"))


def docs(path: Path):
    """(where, docstring) of everything in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'module')}", text


# The reference -------------------------------------------------------------------------------------------------------


def test_public_modules_are_all_that_the_library_exports():
    """A new public submodule must be added to the reference."""
    found = {"nfm_theory", "nfm_theory.calculus.engine"}
    for name in list(found):
        found |= {
            v.__name__ for n in reference.public_names(name) if inspect.ismodule(v := getattr(sys.modules[name], n))
        }
    found |= {
        value.__name__
        for name in list(found)
        for n in reference.public_names(name)
        if inspect.ismodule(value := getattr(sys.modules[name], n))
    }
    assert set(reference.PUBLIC) == found


@pytest.mark.parametrize("module", reference.PUBLIC)
def test_every_public_name_is_in_the_reference(module):
    names = reference.public_names(module)
    assert names
    missing = [name for name in names if f"{module}.{name}" not in reference.documented_as()]
    assert not missing, f"add them to one of {[page.name for page in PAGES]}"


def test_experiments_users_call_are_in_the_reference():
    wanted = [f"{m.__name__}.{name}" for m in (experiments.recipes, experiments.record.ledger) for name in m.__all__]
    assert set(wanted) <= set(reference.declared())


def test_a_name_is_documented_once():
    listed = [name for page in PAGES for name in reference.declared_in(page.read_text(encoding="utf-8"))]
    assert len(listed) > 100
    assert sorted(set(listed)) == sorted(listed)
    objects = [id(value) for name in listed if callable(value := reference.resolve(name))]
    assert len(set(objects)) == len(objects)


def test_a_missing_name_would_be_seen(monkeypatch):
    names = {name: page for name, page in reference.declared().items() if name != "nfm_theory.loss"}
    monkeypatch.setattr(reference, "declared", lambda: names)
    assert "nfm_theory.loss" not in reference.documented_as.__wrapped__()
    assert "nfm_theory.terms" in reference.documented_as.__wrapped__()


@pytest.mark.parametrize("name", list(reference.declared()))
def test_every_entry_can_be_written(name):
    assert reference.resolve(name) is not None
    assert reference.summary(name).strip()
    assert any(line.startswith(".. ") for line in reference.entry(name))


def test_overview_lists_every_page():
    overview = (ROOT / "book" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\.\. contents-of:: (\w+)", overview)) == {page.stem for page in PAGES} - {"api"}


def test_statements_lead_to_functions():
    rows = reference.statement_rows("nfm_theory")
    assert len(rows) == sum(line.startswith("|") for line in nt.__doc__.splitlines()) - 2
    assert all(":py:obj:`" in function and "``" not in function for _, function in rows)
    assert any(":eq:`eq-expansion`" in statement for statement, _ in rows)


@pytest.mark.parametrize(
    ("name", "home", "target"),
    [
        ("loss", "nfm_theory.adversarial.bounds", "nfm_theory.loss"),
        ("nt.loss", "nfm_theory", "nfm_theory.loss"),
        ("adversarial.worst_case", "nfm_theory.generalization.margins", "nfm_theory.adversarial.worst_case"),
        ("divergence_proofs", "nfm_theory.symbolic.moments", "nfm_theory.symbolic.divergence_proofs"),
        ("symbolic", "nfm_theory.expansion.terms", "nfm_theory.symbolic"),
        ("jensen_shannon", "nfm_theory.setting.branches", "nfm_theory.jensen_shannon"),
        ("NoisyFeatureMixup.last", "nfm_theory.training.mixup", None),
        ("NoisyFeatureMixup.remove", "nfm_theory.training.mixup", "nfm_theory.NoisyFeatureMixup"),
        ("alpha", "nfm_theory", None),
    ],
)
def test_links(name, home, target):
    assert reference.find_link(name, home) == target


def test_nothing_of_this_machine_is_printed():
    path = ROOT / "experiments" / "results" / "experiments.jsonl"
    assert (
        reference.portable(f"(ledger: Path = {path!r})")
        == "(ledger: Path = Path('experiments/results/experiments.jsonl'))"
    )
    assert str(ROOT) not in "\n".join(reference.Commands.lines(None))


def test_commands_and_options_come_from_the_parser():
    text = "\n".join(reference.Commands.lines(None))
    for command in ("nfm verify", "python -m experiments ledger merge"):
        assert f".. rubric:: {command}" in text
    for option in ("``--state-dict``", "``float64``"):
        assert option in text


# The conversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        ("the `code` here", "the ``code`` here"),
        ("`known` and `known(x, y)`", ":py:obj:`known <a.known>` and :py:obj:`known(x, y) <a.known>`"),
        ("for $\\lambda \\sim D$.", "for :math:`\\lambda \\sim D`."),
        ("`$HOME` is no formula", "``$HOME`` is no formula"),
        ("K$x$s and `x`s", "K\\ :math:`x`\\ s and ``x``\\ s"),
        ("(book: eq-a, eq-b-c).", "(book: :eq:`eq-a`, :eq:`eq-b-c`)."),
        ("(theory §5)", "(:doc:`the page on the adversarial bound <bound>`)"),
        ("classes: K.", "classes: K\\."),
        ("log|remainder| and x_ and a_b", "log\\|remainder\\| and x\\_ and a_b"),
    ],
)
def test_inline(markdown, rst):
    assert docstrings.inline(markdown, {"known": "a.known"}.get) == rst


def test_formula_with_its_equation():
    lines = docstrings.to_rst(["    $$ a = b,", "       c \\qquad \\text{(book: eq-x at ε = 1)} $$"])
    assert [line for line in lines if line] == [
        "    .. math::",
        "       a = b,",
        "       c",
        "    (book: :eq:`eq-x` at ε = 1)",
    ]


def test_long_formula_has_lines_where_its_source_separates_them():
    first, second = "a_{b,\\quad c} = x + y + z", "+ " + " + ".join("uvw" * 9) + ","
    lines = docstrings.to_rst([f"$$ {first}", f"{second} \\qquad", "x = 1, \\quad y = 2 $$"])
    assert [line.strip() for line in lines if line] == [
        ".. math::", "\\begin{aligned}", f"& {first} \\\\", f"& \\qquad {second} \\\\", "& x = 1, \\\\", "& y = 2",
        "\\end{aligned}",
    ]  # fmt: skip
    short = docstrings.to_rst(["$$ a = b, \\qquad c = d $$"])
    assert [line.strip() for line in short if line] == [".. math::", "a = b, \\qquad c = d"]


def test_table():
    lines = docstrings.to_rst(["| a | b |", "|---|---|", "| `x \\| y` | $z$ |", "after"])
    assert [line for line in lines if line] == [
        ".. list-table::", "   :header-rows: 1", "   * - a", "     - b", "   * - ``x | y``", "     - :math:`z`",
        "after",
    ]  # fmt: skip


def test_examples_and_sections_stay_as_they_are():
    source = ["Returns:", "    Half of it: `x`.", "", "Example:", "    >>> a['$'] | b_", "    2"]
    expected = ["Returns:", "    " + docstrings.SENTENCE, "    Half of it: ``x``.", *source[2:]]
    assert docstrings.to_rst(source) == expected


@pytest.mark.parametrize("broken", [["$$ a", "b"], ["$$ a $$ and text"]])
def test_broken_formulas_are_refused(broken):
    with pytest.raises(ValueError, match="expected"):
        docstrings.to_rst(broken)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_dollars_and_backticks_are_balanced(path):
    """What is left of a converted docstring, code and formulas taken out, holds neither."""
    for where, text in docs(path):
        rst = "\n".join(docstrings.to_rst(text.splitlines()))
        rst = re.sub(r"^ *>>> .*(?:\n.*\S.*)*", "", rst, flags=re.MULTILINE)
        rst = re.sub(r"``[^`]+``|:\w+(?::\w+)?:`[^`]+`", "", rst)
        assert "$" not in re.sub(r"\$NFM_[A-Z]+", "", rst), where  # environment variables
        assert "`" not in rst, where
        for formula in re.findall(r"\$\$?([^$]+)\$\$?", re.sub(r"`[^`]*`", "", text)):
            assert formula.count("{") == formula.count("}"), f"{where}: {formula}"


def test_the_table_of_statements_names_tests_and_functions_that_exist():
    rows = [line for line in (ROOT / "book" / "api.md").read_text(encoding="utf-8").splitlines() if "test_" in line]
    assert len(rows) >= 19
    for row in rows:
        for name in re.findall(r"`(test_\w+\.py)`", row):
            assert (ROOT / "tests" / "theory" / name).exists(), name
        for name in re.findall(r"`nt\.([\w.]+)`", row):
            assert reference.resolve(f"nfm_theory.{name}") is not None, name
