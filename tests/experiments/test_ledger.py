"""The ledger: entries, torn lines, several writers, writers that are killed, where results come from."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError, asdict, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from ledger_entries import comparable
from ledger_entries import entry as entry_of
from ledger_processes import CELLS, KILLS, OWN, SHARED, WRITERS, entry

from experiments.recipes import get_recipe
from experiments.record import ledger, provenance
from experiments.record.ledger import (
    Cell,
    Entry,
    LedgerError,
    append,
    finished,
    merge,
    read,
    read_together,
    validate,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "experiments.jsonl"


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The writers of `ledger_processes` in a process of their own: ledger, what each reported, how each ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "ledger_processes.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {job: (folder / job, *found) for job, found in json.loads(done.stdout).items()}


def line(**changes):
    """A line as text, with changes that `Entry` need not accept."""
    return json.dumps(json.loads(entry().to_json()) | changes)


# --- entries ---


def test_an_entry_comes_back_as_it_went_in_and_cannot_be_changed():
    first = entry(
        3, metrics={"clean": np.float32(0.1), "corrupted/gaussian_noise/3": 1}, settings={"a": (1, {"b": None})}
    )
    assert Entry.from_json(first.to_json()) == first
    assert Entry.from_json(first.to_json().encode()) == first
    assert first.settings == {"a": [1, {"b": None}]}
    assert first.metrics["clean"] == float(np.float32(0.1))
    assert type(first.metrics["corrupted/gaussian_noise/3"]) is float
    assert first.cell == (first.hash, 3, "clean")
    text = json.loads(first.to_json())
    assert text["schema"] == 1
    assert list(text) == ["schema", *asdict(first)]
    with pytest.raises(FrozenInstanceError):
        first.seed = 4


def test_an_entry_keeps_copies():
    settings, metrics = {"layers": ["a"]}, {"clean": 0.5}
    kept = entry(settings=settings, metrics=metrics)
    settings["layers"].append("b")
    metrics["clean"] = 7
    assert kept.settings == {"layers": ["a"]}
    assert kept.metrics == {"clean": 0.5}


TRAINED = {"epochs": 2, "steps": 8, "samples": 64, "seconds": 1.5, "final_loss": 0.75}
BAD = {
    "size": ({"size": "huge"}, "size: expected one of digits, compact, paper, toy"),
    "hash": ({"hash": "0123456789ABCDEF"}, "hash: expected 16 hexadecimal"),
    "scheme": ({"scheme": "Noisy Mixup"}, "scheme: expected an id"),
    "suite": ({"suite": ""}, "suite: expected an id"),
    "recipe": ({"recipe": " "}, "recipe: expected text"),
    "seed negative": ({"seed": -1}, "seed: expected an integer >= 0"),
    "seed truth": ({"seed": True}, "seed: expected an integer"),
    "seed fraction": ({"seed": 1.0}, "seed: expected an integer"),
    "accuracy in percent": ({"metrics": {"clean": 95.0}}, r"metrics\['clean'\]: expected a number in \[0, 1\]"),
    "attack": ({"metrics": {"pgd_linf/0.0157": -0.1}}, r"expected a number in \[0, 1\], got -0.1"),
    "corruption": ({"metrics": {"corrupted/fog/3": 1.001}}, r"corrupted/fog/3'\]: expected a number in \[0, 1\]"),
    "flip rate": ({"metrics": {"flip_rate/mean": -1}}, r"mean'\]: expected a number in \[0, inf\]"),
    "not finite": ({"metrics": {"loss": float("nan")}}, "expected a finite number, got nan"),
    "infinite": ({"metrics": {"loss": float("inf")}}, "expected a finite number, got inf"),
    "metric text": ({"metrics": {"clean": "0.9"}}, "expected a finite number, got '0.9'"),
    "no metric": ({"metrics": {}}, "expected at least one metric"),
    "settings": ({"settings": [1]}, "settings: expected a mapping"),
    "setting infinite": ({"settings": {"a": {"b": [float("inf")]}}}, r"settings.a.b\[0\]: expected a finite number"),
    "training keys": ({"training": {"epochs": 1}}, "training: expected the keys epochs, steps"),
    "training steps": ({"training": TRAINED | {"steps": 1.5}}, "training.steps: expected an integer"),
    "no final loss": ({"training": TRAINED | {"final_loss": None}}, "training.final_loss: expected a finite number"),
    "arithmetic": (
        {"training": TRAINED | {"computed_in": "float16"}},
        "training.computed_in: expected 'float32' or no",
    ),
    "seconds": ({"seconds": -0.1}, "seconds: expected a number in"),
    "commit": ({"commit": "main"}, "commit: expected the full hexadecimal"),
    "dirty": ({"dirty": 0}, "dirty: expected true or false"),
    "versions": ({"versions": {"torch": 2.6}}, r"versions\['torch'\]: expected text"),
    "device": ({"device": None}, "device: expected text"),
    "local time": ({"time": "2026-01-31T12:00:00+01:00"}, "time: expected an ISO 8601 time in UTC"),
    "no zone": ({"time": "2026-01-31T12:00:00"}, "time: expected"),
    "no time": ({"time": 12}, "time: expected"),
}


@pytest.mark.parametrize(("change", "match"), BAD.values(), ids=BAD.keys())
def test_bad_fields_are_refused_on_writing_and_on_reading(change, match, path):
    with pytest.raises(LedgerError, match=match):
        replace(entry(), **change)
    append(path, entry(9))
    with path.open("a") as file:
        file.write(line(**change) + "\n")
    with pytest.raises(LedgerError, match=rf"experiments\.jsonl, line 2: .*{match}.*Correct or delete"):
        read(path)


def test_values_that_json_cannot_carry_are_refused():
    with pytest.raises(LedgerError, match=r"settings\.a: expected a finite number, got tensor"):
        entry(settings={"a": torch.ones(())}, hash="0" * 16)
    with pytest.raises(LedgerError, match="settings: expected keys that are text, got 1"):
        entry(settings={1: 2}, hash="0" * 16)


def test_allowed_values_at_the_edges():
    edges = {"clean": 1, "fgsm_linf/0.0313": 0, "flip_rate/mean": 1.2, "loss": -3.0, "cleanliness": 2.0}
    assert entry(metrics=edges).metrics == edges
    untrained = {"epochs": 0, "steps": 0, "samples": 0, "seconds": 0, "final_loss": None}
    assert entry(training=untrained, commit=None).training == untrained


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (line(schema=2), "line 1: schema: expected 1, got 2. Read the ledger with the version"),
        (line(schema=True), "line 1: schema: expected 1, got True"),
        ("{}", "line 1: schema: expected 1, got None"),
        ('{"schema": 1}', r"line 1: fields: expected those of the schema, got none named \['commit', .*unknown \[\]"),
        (line(extra=1), r"line 1: fields: .*got none named \[\], unknown \['extra'\]"),
        ("[1]", "line 1: line: expected a JSON object"),
        ("", "line 1: expected one JSON object"),
        (line()[:70], "line 1: expected one JSON object"),
    ],
)  # fmt: skip
def test_bad_lines_name_file_line_and_remedy(text, match, path):
    path.parent.mkdir()
    path.write_text(f"{text}\n{entry(1).to_json()}\n")
    before = path.read_bytes()
    for call in (read, finished, lambda p: append(p, entry(2)), lambda p: merge([p], p.with_name("other"))):
        with pytest.raises(LedgerError, match=rf"experiments\.jsonl, {match}"):
            call(path)
    assert path.read_bytes() == before
    assert not path.with_name("other").exists()


# --- files ---


def test_append_stores_a_cell_once_and_the_first_stays(path):
    assert finished(path) == set()
    assert append(path, entry(0))
    assert append(path, entry(1))
    assert append(path, entry(0, suite="noise"))
    assert append(path, entry(0, settings={"learning_rate": 0.2}))
    assert not append(path, entry(0, metrics={"clean": 0.9}))
    found = read(path)
    assert found == [entry(0), entry(1), entry(0, suite="noise"), entry(0, settings={"learning_rate": 0.2})]
    assert finished(path) == {e.cell for e in found}
    assert Cell(entry().hash, 1, "clean") in finished(path)
    assert validate(path) == []
    assert os.listdir(path.parent) == [path.name]


def test_missing_files_say_so(tmp_path):
    for call in (read, validate, lambda p: merge([p], tmp_path / "into")):
        with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
            call(tmp_path / "none.jsonl")


def test_a_torn_last_line_is_passed_over_and_repaired_wherever_it_is_cut(path):
    path.parent.mkdir()
    head, last = (entry(seed).to_json().encode() for seed in (0, 1))
    for cut in [*range(1, len(last), 23), len(last) - 1]:
        path.write_bytes(head + b"\n" + last[:cut])
        assert [e.seed for e in read(path)] == [0]
        (problem,) = validate(path)
        assert "line 2: the last line has no end (a write was cut off)" in problem
        assert append(path, entry(2 if cut % 2 else 1))
        assert [e.seed for e in read(path)] == [0, 2 if cut % 2 else 1]
        assert validate(path) == []


def test_a_last_line_without_its_newline_counts_and_is_completed(path):
    path.parent.mkdir()
    for new in (1, 2):  # the cell of that very line, or another
        path.write_text(f"{entry(0).to_json()}\n{entry(1).to_json()}")
        assert finished(path) == {entry(0).cell, entry(1).cell}
        (problem,) = validate(path)
        assert "only its newline is missing" in problem
        assert append(path, entry(new)) == (new == 2)
        assert path.read_text() == "".join(entry(seed).to_json() + "\n" for seed in range(new + 1))


def test_a_torn_only_line_zeros_and_an_empty_file_are_repaired(path):
    path.parent.mkdir()
    for content in (entry(5).to_json()[:50].encode(), b"\0" * 300, b""):
        path.write_bytes(content)
        assert read(path) == []
        assert append(path, entry(0))
        assert path.read_text() == entry(0).to_json() + "\n"


def test_a_last_line_that_is_json_but_no_entry_is_not_thrown_away(path):
    path.parent.mkdir()
    path.write_text(f"{entry(0).to_json()}\n{line(schema=2)}")
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="line 2: schema: expected 1, got 2"):
        append(path, entry(1))
    assert path.read_bytes() == before


def test_validate_lists_every_problem_and_read_refuses_doubled_cells(path):
    path.parent.mkdir()
    other = entry(0, suite="noise", settings={"learning_rate": 9}, hash=entry().hash)
    lines = [entry(0), entry(1), entry(0, metrics={"clean": 0.9}), other]
    text = [e.to_json() for e in lines]
    path.write_text("\n".join([*text[:3], "torn", text[3], line(size="huge"), text[1][:30]]))
    problems = validate(path)
    assert [p.split("experiments.jsonl, ")[1].split(":")[0] for p in problems] == [f"line {n}" for n in (3, 4, 5, 6, 7)]
    for problem, part in zip(
        problems, ["stands in line 1", "JSON object", "other settings in line 1", "size", "cut off"], strict=True
    ):
        assert part in problem
    path.write_text("\n".join(text[:3]) + "\n")
    with pytest.raises(LedgerError, match=r"line 3: the cell .* stands in line 1 already\. `merge"):
        read(path)
    assert merge([path], path.with_name("new")) == 2
    assert read(path.with_name("new")) == lines[:2]


def test_a_hash_with_two_settings_is_refused_by_everything_that_reads_or_writes(tmp_path):
    """The name of the scheme alone may differ, as two rows of the papers may be the same training."""
    one, other = tmp_path / "one", tmp_path / "other"
    kept = entry(0, settings={"scheme": {"name": "a", "alpha": 1}}, hash="0" * 16)
    same = replace(kept, seed=1, settings={"scheme": {"name": "b", "alpha": 1}})
    against = replace(kept, seed=2, settings={"scheme": {"name": "a", "alpha": 2}})
    for found in (kept, same):
        append(one, found)
    append(other, against)
    assert validate(one) == []
    before = one.read_bytes()
    for call in (
        lambda: append(one, against),
        lambda: merge([other], one),
        lambda: merge([one, other], tmp_path / "new"),
        lambda: read_together([one, other]),
    ):
        with pytest.raises(LedgerError, match=f"hash {'0' * 16} stands for other settings in another ledger"):
            call()
    assert one.read_bytes() == before
    one.write_bytes(before + other.read_bytes())
    (problem,) = validate(one)
    assert problem.endswith("line 3: hash 0000000000000000 stands for other settings in line 1.")
    for call in (lambda: read(one), lambda: finished(one), lambda: append(one, entry(9)), lambda: merge([one], other)):
        with pytest.raises(LedgerError) as caught:
            call()
        assert str(caught.value).startswith(problem)


def test_a_line_written_before_a_setting_was_added_is_the_same_training(tmp_path):
    """The hash leaves out defaults, so a later setting changes no hash; a line without it stands for its default."""
    recipe = get_recipe("digits/nfm")
    now = entry_of(recipe.name, 0, clean=0.5)
    settings = recipe.training.to_dict()
    del settings["scheme"]["levels"], settings["pretrained"]
    old = replace(now, settings=settings, seed=1)
    one, other, new = (tmp_path / name for name in ("one", "other", "new"))
    append(one, old)
    append(other, now)
    assert merge([other], one) == 1
    assert append(one, replace(now, seed=2))
    assert merge([one, other], new) == 3
    assert validate(one) == validate(new) == []
    assert len(read_together([one, other])) == len(read(one)) == 3
    settings["scheme"]["levels"] = [["", 1.0, 0.1, 0.1]]
    with pytest.raises(LedgerError, match="stands for other settings"):
        append(one, replace(now, settings=settings, seed=3))
    assert finished(one) == {e.cell for e in (now, old, replace(now, seed=2))}


def test_merge_keeps_the_first_of_each_cell_in_a_fixed_order(tmp_path):
    node_a, node_b, into, again = (tmp_path / name for name in ("a", "b", "into", "again"))
    for seed in (2, 0):
        append(node_a, entry(seed))
    for e in (entry(1), entry(0, metrics={"clean": 0.9}), entry(1, recipe="a_recipe", settings={})):
        append(node_b, e)
    with node_b.open("ab") as file:
        file.write(b'{"schema": 1, "rec')
    append(into, entry(2, metrics={"clean": 0.1}))
    assert merge([node_a, node_b], into) == 3
    expected = [entry(1, recipe="a_recipe", settings={}), entry(0), entry(1)]
    assert read(into) == [entry(2, metrics={"clean": 0.1}), *expected]
    assert merge([node_a, node_b, into], into) == 0
    assert len(read(into)) == 4
    assert merge([node_b, node_a], again) == 4
    assert read(again) == [expected[0], entry(0, metrics={"clean": 0.9}), entry(1), entry(2)]


# --- writers ---


def test_writers_at_once_store_every_cell_once(processes):
    path, answers, states = processes["together"]
    assert states == [0] * WRITERS
    reported = [seed for answer in answers for seed in answer]
    assert len(reported) == len(set(reported)) == WRITERS * OWN + SHARED
    assert validate(path) == []
    assert sorted((e.suite, e.seed) for e in read(path)) == sorted((f"own{s // 1000}", s % 1000) for s in reported)


def test_writers_that_are_killed_lose_and_double_nothing(processes):
    path, answers, states = processes["killed"]
    assert states[-1] == 0
    assert sum(state == signal.SIGKILL for state in states) >= KILLS
    reported = [seed for answer in answers for seed in answer]
    assert len(reported) == len(set(reported))
    assert sum(len(answer) > 0 for answer in answers[: 2 * KILLS : 2]) >= KILLS // 2  # killed at work, not before
    assert validate(path) == []
    found = read(path)
    assert sorted(e.seed for e in found) == list(range(CELLS))
    assert found == [entry(e.seed) for e in found]
    # Written whole but killed before the report: at most one per writer.
    assert CELLS - 2 * KILLS <= len(reported) <= CELLS


def test_a_ledger_replaced_while_a_writer_waits_is_found_under_its_name(path):
    append(path, entry(0))
    answers = []
    with path.open("ab") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        writer = threading.Thread(target=lambda: answers.append(append(path, entry(2))))
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()  # it waits for the lock
        fresh = path.with_name("fresh")
        fresh.write_text(entry(1).to_json() + "\n")
        os.replace(fresh, path)
    writer.join(10)
    assert answers == [True]
    assert [e.seed for e in read(path)] == [1, 2]


def test_a_full_disk_leaves_the_ledger_as_it_was(path, monkeypatch):
    append(path, entry(0))
    before, full = path.read_bytes(), os.write
    monkeypatch.setattr(ledger.os, "write", lambda handle, text: full(handle, text[:100]))
    with pytest.raises(OSError, match="is the disk full"):
        append(path, entry(1))
    assert path.read_bytes() == before


def test_a_file_system_without_locks_can_be_read_but_not_written(path, monkeypatch):
    append(path, entry(0))

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=r"has no locks .*local disk and `merge`"):
        append(path, entry(1))
    assert read(path) == [entry(0)]


def test_a_ledger_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        for use in (read, validate, lambda path: append(path, entry(0)), lambda path: merge([path], tmp_path / "new")):
            with pytest.raises(OSError, match=r"expected a file, got the (directory|named pipe|device)"):
                use(place)


HOSTILE = {
    "nested": ('{"a":' * 5000 + "1" + "}" * 5000, "too many levels"),
    "lists": (line(settings="@").replace('"@"', '{"a":' + "[" * 30 + "]" * 30 + "}"), "at most 20 levels"),
    "huge seed": (line(seed=10**400), "seed: expected an integer of at most 64 bits"),
    "huge setting": (line(settings={"a": 2**63}), "settings.a: expected an integer of at most 64 bits"),
    "huge number": (line(seconds=10**400), "seconds: expected a finite number"),
    "huge metric": (line(metrics={"loss": 1e101}), r"metrics\['loss'\]: expected a number of at most 1e\+100"),
    "longer than Python reads": (line(seed="@").replace('"@"', "1" + "0" * 5000), "expected one JSON object"),
    "key twice": (line()[:-1] + ', "seed": 1}', "expected each key once, got 'seed' twice"),
    "metric twice": (line(metrics="@").replace('"@"', '{"clean": 0.1, "clean": 0.2}'), "got 'clean' twice"),
    "half a pair": (line(recipe="\ud800"), "recipe: expected text"),
    "half a pair inside": (line(settings={"a": ["\ud800"]}), r"settings.a\[0\]: expected text that can be encoded"),
    "half a pair as key": (line(metrics={"\ud800": 1}), "metrics: expected text that can be encoded"),
    "escape sequence": (line(device="cpu \x1b[31m"), "device: expected text"),
    "two lines": (line(recipe="digits\nnfm"), "recipe: expected text"),
    "a byte": (b"\xff" + line().encode(), "expected one JSON object"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lines_are_sentences_that_name_the_line(path, name):
    text, words = HOSTILE[name]
    content = entry(0).to_json().encode() + b"\n" + (text if isinstance(text, bytes) else text.encode()) + b"\n"
    path.parent.mkdir()
    path.write_bytes(content)
    for use in (read, finished, lambda ledger: append(ledger, entry(5)), lambda ledger: merge([ledger], path)):
        with pytest.raises(LedgerError, match=f"line 2: .*{words}") as error:
            use(path)
        assert len(str(error.value)) < 900
    (problem,) = validate(path)
    assert "line 2" in problem
    assert path.read_bytes() == content


def test_a_last_line_that_is_nested_too_deeply_is_not_thrown_away(path):
    path.parent.mkdir()
    path.write_text(entry(0).to_json() + "\n" + "[" * 100_000)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="line 2"):
        append(path, entry(1))
    assert path.read_bytes() == before


# --- where results come from ---


def test_comparable_hides_what_an_interruption_changes_and_nothing_else():
    later = {
        "time": "2026-02-01T00:00:00+00:00", "seconds": 9.0, "commit": None, "dirty": True, "versions": {},
        "training": TRAINED | {"seconds": 99.0},
    }  # fmt: skip
    assert comparable(entry()) == comparable(entry(**later))
    seen = {"metrics": {"clean": 0.51}, "training": TRAINED | {"final_loss": 0.76}, "device": "cuda", "seed": 1}
    for name, value in seen.items():
        assert comparable(entry()) != comparable(replace(entry(), **{name: value}))


def test_provenance_fills_an_entry():
    found = ledger.provenance("cpu")
    made = entry(**found)
    assert {"python", "torch", "nfm_theory", "numpy"} <= set(made.versions)
    assert made.versions["numpy"] == np.__version__
    assert made.device.startswith("cpu (")
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(made.time)) < timedelta(minutes=1)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_checkout_knows_the_commit_and_whether_the_code_differs(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as inside a hook
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    look = provenance.checkout.__wrapped__  # without its memory
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    code, result = tmp_path / "experiments" / "a.py", tmp_path / "experiments" / "results" / "a.jsonl"
    assert look(tmp_path) == (None, False)
    git("init", "-q")
    assert look(tmp_path) == (None, False)
    for file in (code, result):
        file.write_text("1\n")
    git("add", "-A")
    git("commit", "-qm", "first", "--no-verify")
    commit = git("rev-parse", "HEAD")
    assert look(tmp_path) == (commit, False)
    assert look(tmp_path / "experiments") == (None, False)  # not the top: an installed copy, say
    result.write_text("2\n")
    assert look(tmp_path) == (commit, False)
    (tmp_path / "experiments" / "new.py").write_text("")
    assert look(tmp_path) == (commit, True)
    git("clean", "-fdq")
    assert look(tmp_path) == (commit, False)
    code.write_text("2\n")
    assert look(tmp_path) == (commit, True)
    monkeypatch.setenv("PATH", "")
    assert look(tmp_path) == (None, False)
