"""Bad invocations of every command: a sentence and the status 2, never a traceback, never a status without its report.

`NFM_BAD_INVOCATIONS=2000 pytest -m slow tests/packaging/test_bad_invocations.py` tries more of them.
"""

import itertools
import os
import random
import re
import warnings

import pytest
import submitit
import typer
from bad_invocations import COMMANDS, NFM_OPTIONS, REPORT_OPTIONS, hostile_files, hostile_ledger, invocations
from tiers import slow
from typer.testing import CliRunner

from experiments import commands, runner
from experiments.studies import commands as studies
from nfm_theory.cli.app import app
from nfm_theory.cli.errors import BAD_INPUT, HOLDS, REFUTED, UNDECIDED

COUNTS = [40, *slow([int(os.environ.get("NFM_BAD_INVOCATIONS", "150"))])]
APPS = {"nfm": app, "experiments": commands.app}
VERDICTS = {HOLDS: "HOLDS|CERTIFIED", REFUTED: "REFUTED", UNDECIDED: "UNDECIDED"}


class AcceptedError(BaseException):
    """The real work would begin now."""


def accept(*arguments, **options):
    raise AcceptedError


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with hostile files. Nothing is trained or generated: what is accepted is found out before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NFM_RUNS", raising=False)
    monkeypatch.delenv("NFM_DATA", raising=False)
    for module, name in ((runner, "train"), (studies, "run_study"), (submitit.LocalExecutor, "_submit_command")):
        monkeypatch.setattr(module, name, accept)
    monkeypatch.setattr("experiments.evaluation.sets.generated_corrupted", accept)
    hostile_files(tmp_path)
    return tmp_path


def complaint(bad, result):
    """What is wrong with the answer to an invocation, or nothing."""
    status, text = result.exit_code, result.stdout + result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    if "Traceback (most recent call last)" in text:
        return "a traceback"
    if status == BAD_INPUT:
        return "" if text.strip() else "no sentence"
    if bad.surely:
        return f"status {status}: {text[-200:]}"
    if bad.command == "nfm":
        fits = re.search(VERDICTS.get(status, "$^"), result.stdout)
        return "" if fits else f"status {status} without its report"
    checked = bad.arguments[:2] == ("ledger", "check")
    return "" if (status == 0) != (checked and bool(result.stdout)) else f"status {status}: {text[-200:]}"


def options_of(command, words=()):
    """The words of every command below, with its options that take a value; `""` stands for an argument."""
    for name, below in getattr(command, "commands", {}).items():
        yield from options_of(below, (*words, name))
    if not hasattr(command, "commands"):
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                yield words, parameter.opts[-1] if parameter.param_type_name == "option" else ""


def test_the_grammar_knows_every_option_that_takes_a_value():
    known = {(("verify",), option) for option in NFM_OPTIONS} | {
        (("report",), option) for option in ("", *REPORT_OPTIONS)
    }
    for fixed, options in COMMANDS:
        words = fixed[: 2 if fixed[0] in ("recipes", "ledger", "study") else 1]
        known |= {(words, option) for option in options} | {(words, "")}
    found = {one for application in APPS.values() for one in options_of(typer.main.get_command(application))}
    missing = found - known
    assert len(found) > 80
    assert not missing, sorted(missing)


@pytest.mark.parametrize("count", COUNTS)
def test_every_bad_invocation_is_answered_by_a_sentence(work, count):
    found = {}
    before = {place.name: os.lstat(place).st_ino for place in work.glob("a_*")}
    for bad in itertools.islice(invocations(work, seed=count), count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = CliRunner().invoke(APPS[bad.command], list(bad.arguments))
            except AcceptedError:
                found[bad] = "accepted"
                continue
        if words := complaint(bad, result):
            found[bad] = words
    assert not found, "\n".join(f"{bad.command} {bad.arguments}: {words}" for bad, words in found.items())
    assert before == {place.name: os.lstat(place).st_ino for place in work.glob("a_*")}
    assert (work / "a_file").read_text() == "kept"


@pytest.mark.parametrize("count", COUNTS)
def test_what_the_check_of_a_ledger_passes_every_command_takes(work, count):
    """A last line that was cut off is no damage, since the next writer repairs it."""
    chance, passed = random.Random(count), []
    for path in (work / "good.jsonl", *(hostile_ledger(work, chance) for _ in range(count // 5))):
        path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\n")
        passed.append(CliRunner().invoke(commands.app, ["ledger", "check", str(path)]).exit_code == 0)
        for other in (("tables", "--table", "noisymix-table2", "--ledger"), ("ledger", "compare")):
            result = CliRunner().invoke(commands.app, [*other, str(path)])
            known = path.read_bytes()[:300], result.output, result.exception
            assert result.exit_code == (0 if passed[-1] else BAD_INPUT), known
    assert passed[0]
    assert not all(passed)
