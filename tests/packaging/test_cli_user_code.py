"""The command `nfm` on code of a user that raises errors or tries to end the program: no verdict without a report."""

import operator

import pytest
import torch
from installed import run_nfm as run

from nfm_theory.cli import checks
from nfm_theory.cli.errors import BAD_INPUT

#: A network whose forward pass runs one line of the user's, and the same line in a factory and in a module.
FORWARD = """
import sys, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)

    def forward(self, x):
        h = self.first(x).tanh()
        {line}
        return self.last(h)

def build():
    return Net(), torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2
"""
FACTORY = """
import sys, torch

def build():
    {line}
    return torch.nn.Linear(3, 2)
"""

RAISING = {
    "assertion": "assert x.ndim == 4, 'images only'",
    "plain assertion": "assert x.ndim == 4",
    "index": "[1, 2][5]",
    "attribute": "x.nosuch",
    "division": "1 / 0",
    "key": "{}['weights']",
    "name": "nosuch(x)",
    "import": "import no_such_package",
    "value": "raise ValueError('my own')",
    "not implemented": "raise NotImplementedError",
    "recursion": "f = lambda: f(); f()",
    "overflow": "10.0 ** 400",
    "system": "open('/nonexistent/file')",
    "unicode": "b'\\xff'.decode()",
    "stop": "next(iter([]))",
    "end of input": "raise EOFError",
    "group": "raise BaseException('bare')",
    "generator": "raise GeneratorExit",
    "memory": "raise MemoryError('too much')",
}
ENDING = {
    "exit": "sys.exit(0)", "exit 1": "sys.exit(1)", "words": "sys.exit('done')", "nothing": "raise SystemExit",
    "builtin": "exit(0)",
}  # fmt: skip


def write(folder, source, line):
    (folder / "mine.py").write_text(source.format(line=line))


@pytest.mark.parametrize("line", RAISING.values(), ids=RAISING)
@pytest.mark.parametrize("options", [(), ("--list-layers",), ("--bound", "--eps", "0.1", "--noise", "uniform")])
def test_an_error_in_the_forward_pass_is_shown_with_its_line(tmp_path, monkeypatch, line, options):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FORWARD, line)
    result = run("--model", "mine.py:build", *options)
    assert result.exit_code == BAD_INPUT, result.output
    assert isinstance(result.exception, SystemExit)
    *shown, last = result.stderr.rstrip().splitlines()
    assert shown[0] == "nfm: the error comes from your code:"
    assert any(part.strip() == line for part in shown)
    assert not any("nfm_theory" in part or "Traceback" in part for part in shown)
    assert last.startswith("nfm: ")
    assert "raised" in result.stderr


@pytest.mark.parametrize("line", ENDING.values(), ids=ENDING)
@pytest.mark.parametrize("source", [FORWARD, FACTORY, "import sys\n{line}\n"], ids=["forward", "factory", "import"])
def test_ending_the_program_is_no_verdict(tmp_path, monkeypatch, line, source):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, source, line)
    for options in ((), ("--list-layers",)):
        result = run("--model", "mine.py:build", *options)
        assert result.exit_code == BAD_INPUT, result.output
        assert "tried to end the program" in result.stderr
        assert "so nothing was verified" in result.stderr


def test_ctrl_c_is_no_verdict_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FORWARD, "raise KeyboardInterrupt")
    assert run("--model", "mine.py:build").exit_code == 130


def test_loading_weights_may_fail_in_code_of_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ends = "def load_state_dict(self, *_, **__):\n        sys.exit(0)\n\n    def forward"
    write(tmp_path, FORWARD.replace("def forward", ends), "pass")
    layers = {"first": torch.nn.Linear(3, 4), "last": torch.nn.Linear(4, 2)}
    torch.save(torch.nn.ModuleDict(layers).state_dict(), "w.pt")
    result = run("--model", "mine.py:build", "--state-dict", "w.pt")
    assert result.exit_code == BAD_INPUT
    assert "loading the weights tried to end the program" in result.stderr


def test_an_error_of_the_library_itself_is_a_crash_and_no_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FORWARD, "pass")
    monkeypatch.setattr(checks.Setting, "generator", property(operator.attrgetter("nosuch")))
    result = run("--model", "mine.py:build")
    assert isinstance(result.exception, AttributeError)  # `run_command` gives it the status of a crash
