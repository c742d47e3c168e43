"""Locks where the operating system has them, and where it has none."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from ledger_processes import entry

from experiments.processes import is_alive
from experiments.record import locks
from experiments.record.ledger import append, read
from experiments.record.locks import LockedError, held_file, locked
from experiments.training import BusyError
from experiments.training.checkpoint import exclusive


@pytest.fixture(params=[None, errno.ENOSYS, errno.EOPNOTSUPP], ids=["locks", "not implemented", "not supported"])
def system(request, monkeypatch):
    """A system with locks, and two without."""
    if request.param is not None:

        def refuse(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def dead_process():
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def left_by(path, **changes):
    """The file that stands for a lock, as a process left it."""
    owner = {"host": locks.socket.gethostname(), "process": os.getpid(), "id": "a"} | changes
    path.with_name(path.name + ".held").write_text(json.dumps(owner))


def test_one_at_a_time(system, tmp_path):
    path = tmp_path / "lock"
    with locked(path, wait=False), locked(tmp_path / "other", wait=False):
        for _ in range(2):
            with pytest.raises(LockedError), locked(path, wait=False):
                pass
    with locked(path, wait=False):
        pass
    assert [p.name for p in tmp_path.iterdir() if "held" in p.name] == []


def test_the_lock_ends_with_an_error(system, tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    with locked(tmp_path / "lock", wait=False):
        pass


def test_many_threads_take_turns(system, tmp_path):
    inside, most = [], []

    def work():
        with locked(tmp_path / "lock"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_the_ledger_and_the_runs_need_no_locks_of_the_system(system, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    assert append(ledger, entry(0))
    assert append(ledger, entry(1))
    assert not append(ledger, entry(1))
    assert [e.seed for e in read(ledger)] == [0, 1]
    run = tmp_path / "run"
    with pytest.raises(BusyError, match="another process is at work there; wait"), exclusive(run), exclusive(run):
        pass
    with exclusive(run):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.jsonl", "run"]


def test_no_lock_now_is_no_reason_to_go_on_without(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="has no locks"), locked(tmp_path / "lock"):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    path = tmp_path / "lock"
    left_by(path, process=dead_process())
    with held_file(path, wait=False):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"host": "elsewhere", "process": 1}], ids=["alive", "on another machine"])
def test_the_lock_of_another_process_is_named(tmp_path, changes):
    path = tmp_path / "lock"
    left_by(path, **changes)
    who = f"process {changes.get('process', os.getpid())} on {changes.get('host', locks.socket.gethostname())}"
    with pytest.raises(LockedError, match=f"lock.held: {who} .* delete it if it is dead"), held_file(path, wait=False):
        pass
    assert path.with_name("lock.held").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "a"}', '{"host": "a", "process": "b", "id": "c"}'])
def test_a_lock_that_cannot_be_read_is_held(tmp_path, content):
    (tmp_path / "lock.held").write_text(content)
    with pytest.raises(LockedError, match="another process"), held_file(tmp_path / "lock", wait=False):
        pass


def test_waiting_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    left_by(tmp_path / "lock", host="elsewhere")
    with pytest.raises(LockedError), held_file(tmp_path / "lock"):
        pass


def test_a_lock_that_was_taken_over_meanwhile_is_given_back(tmp_path):
    place = tmp_path / "lock.held"
    left_by(tmp_path / "lock", id="fresh")
    before = place.read_text()
    locks._remove_dead(place, {"host": "h", "process": 1, "id": "stale"})
    assert place.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["lock.held"]


def test_without_links_the_file_is_created(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LockedError), held_file(tmp_path / "lock"), held_file(tmp_path / "lock", wait=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_the_module_there_is_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locked(tmp_path / "lock", wait=False):
        assert (tmp_path / "lock.held").exists()
    append(tmp_path / "ledger.jsonl", entry(0))
    assert read(tmp_path / "ledger.jsonl") == [entry(0)]


def test_a_process_that_waits_for_its_parent_is_dead():
    assert is_alive(os.getpid())
    assert is_alive(1)
    assert not is_alive(dead_process())
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    end = time.monotonic() + 10
    while is_alive(zombie.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_alive(zombie.pid)
    zombie.wait()
