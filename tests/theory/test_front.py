"""The public front: short signatures, records that print, plot and serialise, few frames under a verdict."""

import ast
import inspect
import json
import re
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from problems import generator, mlp, randn
from torch import nn

import nfm_theory as nt
from nfm_theory.setting.results import Record

mpl.use("agg")
LIBRARY = Path(nt.__file__).parent
MODEL, X, Y = mlp(0, [3, 4, 3]), randn(1, 4, 3), torch.tensor([0, 1, 2, 0])
PROBLEM = nt.Problem(MODEL, X, Y, law=nt.Law(add_noise=0.3, mult_noise=0.2))
CLEAN = nt.Problem(MODEL, X, MODEL(X).argmax(1))
BRANCHES = nt.Branches(MODEL, [X, X + 0.1 * randn(2, 4, 3)], Y, law=nt.Law(), gamma=12.0)

MODULES = {"": nt, "adversarial.": nt.adversarial, "generalization.": nt.generalization, "symbolic.": nt.symbolic}
#: Records are returned, not called by people.
RETURNED = {"adversarial.BoundReport", "adversarial.NoisyMixBoundReport", "adversarial.Certificate"}


def public_callables():
    """Functions and classes of the public modules, with the public methods and `__call__` of the classes, by name."""
    for prefix, module in MODULES.items():
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                if not issubclass(thing, (Record, Exception)) and prefix + name not in RETURNED:
                    yield prefix + name, thing
                for method, function in inspect.getmembers(thing, inspect.isroutine):
                    own = getattr(function, "__module__", None) or ""
                    if own.startswith("nfm_theory") and (not method.startswith("_") or method == "__call__"):
                        yield f"{prefix}{name}.{method}", function
            elif callable(thing):
                yield prefix + name, thing


CALLABLES = dict(public_callables())


@pytest.mark.parametrize("name", CALLABLES)
def test_signatures_are_short_and_closed(name):
    parameters = [p for p in inspect.signature(CALLABLES[name]).parameters.values() if p.name != "self"]
    assert len(parameters) <= 10, [p.name for p in parameters]
    assert not [p.name for p in parameters if p.kind is p.VAR_KEYWORD]


def test_the_names_are_those_of_the_stub():
    assert {"Law", "Problem", "Branches", "terms", "loss", "verify", "error_curve", "regularizers"} <= set(nt.__all__)
    methods = {"NoisyFeatureMixup.__call__", "Problem.at_layers", "JSDConsistency.forward", "Law.released"}
    assert methods <= set(CALLABLES)
    for name in nt.__all__:
        assert getattr(nt, name) is not None
        assert name in dir(nt)


ELSEWHERE = re.compile(r"(?:^|[:;,.])\s*[Aa]s `|[Aa]rguments as `", re.MULTILINE)


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_docstrings_say_what_they_mean(path):
    """An entry that only says "as `f`" sends the reader away."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    assert not [line for text in texts for line in text.splitlines() if ELSEWHERE.search(line)]


# Records -------------------------------------------------------------------------------------------------------------

RECORDS = {
    "Estimate": lambda: nt.loss(PROBLEM, 0.5, quadrature=nt.Quadrature(num_noise=2)),
    "Estimate of several scales": lambda: nt.loss(PROBLEM, [0.5, 1.0], "monte_carlo", samples=2_000),
    "Interval": lambda: nt.lagrange_interval(PROBLEM, PROBLEM.draw(4, 1, generator=generator(0)), 0.1),
    "TaylorTerms": lambda: nt.terms(PROBLEM),
    "StabilityTerms": lambda: nt.terms(BRANCHES),
    "Regularizers": lambda: nt.regularizers(PROBLEM),
    "ErrorCurve": lambda: nt.error_curve(PROBLEM, [0.1, 0.5], method="pathwise", samples=400),
    "ExpansionReport": lambda: nt.verify(PROBLEM),
    "ExpansionReport of branches": lambda: nt.verify(BRANCHES),
    "Law": lambda: PROBLEM.law,
    "BoundReport": lambda: nt.adversarial.bound(PROBLEM, 0.01),
    "Certificate": lambda: nt.adversarial.certify(CLEAN, 0.01),
    "JacobianNorms": lambda: nt.generalization.jacobian_norms(CLEAN),
    "SegmentMargins": lambda: nt.generalization.segment_margins(CLEAN, X.flip(0)),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_valid_json(name):
    record = json.loads(json.dumps(RECORDS[name]().to_dict(), allow_nan=False))
    assert record
    assert all(isinstance(key, str) for key in record)


TABLES = {
    "TaylorTerms": ("R2_add", "share of the second order"),
    "Regularizers": ("stderr", "R3_mult"),
    "ErrorCurve": ("eps", "order 2: within"),
    "ExpansionReport": ("power of eps", "coefficient ratio"),
    "Estimate of several scales": ("±", "evaluations"),
}


@pytest.mark.parametrize("name", TABLES)
def test_records_print_as_tables(name):
    text = str(RECORDS[name]())
    assert len(text.splitlines()) >= 2
    assert max(map(len, text.splitlines())) <= 120
    for part in TABLES[name]:
        assert part in text


@pytest.mark.parametrize("name", ["TaylorTerms", "StabilityTerms", "Regularizers", "ErrorCurve", "ExpansionReport"])
def test_records_plot_on_new_axes_and_on_given_ones(name, tmp_path):
    record, (figure, given) = RECORDS[name](), plt.subplots()
    assert record.plot(given) is given
    axes = record.plot()
    assert isinstance(axes, mpl.axes.Axes)
    assert axes is not given
    assert axes.get_xlabel()
    axes.figure.savefig(tmp_path / "plot.png")
    plt.close(axes.figure)
    plt.close(figure)


def test_one_value_is_a_float():
    estimate = nt.loss(PROBLEM, 0.5, quadrature=nt.Quadrature(num_noise=2))
    assert float(estimate) == float(estimate.value.detach())
    with pytest.raises((RuntimeError, ValueError)):
        float(nt.loss(PROBLEM, [0.5, 1.0], quadrature=nt.Quadrature(num_noise=2)))


def test_terms_by_attribute_and_by_name():
    terms, found = nt.terms(PROBLEM), nt.regularizers(PROBLEM)
    for name in ("R1", "R2", "R3", "R2_add", "R3_add", "R2_mult", "R3_mult"):
        assert terms[name] is getattr(terms, name)
        assert found[name] is getattr(found, name)
        assert float(getattr(found, name)) == pytest.approx(float(terms[name].detach()), rel=1e-9, abs=1e-14)
    with pytest.raises(AttributeError, match="R2_add: its source is switched off"):
        _ = nt.regularizers(nt.Problem(MODEL, X, Y, law=nt.Law())).R2_add
    with pytest.raises(AttributeError, match="no attribute 'R9'"):
        _ = found.R9


# The way from a verdict to the model ---------------------------------------------------------------------------------


class Watched(nn.Module):
    """A model that notes by which functions of the library it is reached."""

    def __init__(self, model):
        super().__init__()
        self.model, self.stacks = model, []

    def forward(self, x):
        names, frame = [], sys._getframe()
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(LIBRARY):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        self.stacks.append(names)
        return self.model(x)


@pytest.mark.parametrize("method", ["exact", "monte_carlo"])
def test_few_frames_lie_between_a_verdict_and_the_model(method):
    """Where remainders are measured; coefficients are derivatives, and go through the transforms of torch."""
    model = Watched(MODEL)
    problem = nt.Problem(model, X, Y, law=nt.Law())
    model.stacks.clear()
    nt.verify(problem, eps=[0.1, 0.05, 0.02], budget=20_000, method=method)
    remainders = [names for names in model.stacks if "at" in names and "taylor_coefficients" not in names]
    assert len(remainders) >= 3
    longest = max(remainders, key=len)
    assert longest.index("verify") <= 6, longest
