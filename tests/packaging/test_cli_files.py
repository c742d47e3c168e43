"""Files that `nfm` writes: never anything but a regular file is replaced, and always as a whole."""

import os
import socket
import stat
import sys
import threading
from contextlib import suppress

import pytest
from installed import run_nfm as run
from test_cli import FACTORY

from nfm_theory.cli import files
from nfm_theory.cli.errors import BAD_INPUT, HOLDS
from nfm_theory.cli.files import replace_file, writable_file, write_json

MODEL = ("--model", "mine.py:with_data", "--num-samples", "3", "--add-noise", "0", "--mult-noise", "0")
OPTIONS = {"--json": "r.json", "--plot": "r.svg"}


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    return tmp_path


def make(kind, path):
    """Something at a path that is no regular file; returns what must be closed."""
    if kind == "directory":
        path.mkdir()
    elif kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(path.name)  # the whole path may be too long for a socket
        server.close()
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root may make a device node")
    elif kind == "loop":
        path.symlink_to(path)


@pytest.mark.parametrize("option", ["--data", "--state-dict"])
def test_a_link_to_itself_cannot_be_read(work, option):
    make("loop", work / "loop.pt")
    result = run(*MODEL, option, "loop.pt")
    assert (result.exit_code, "loop.pt" in result.stderr) == (BAD_INPUT, True), result.output


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["directory", "named pipe", "socket", "device", "loop"])
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "through a link"])
def test_what_is_no_file_is_refused_and_left(work, option, kind, linked):
    there = work / ("there" + OPTIONS[option][1:])
    make(kind, there)
    before = os.lstat(there)
    name = there
    if linked:
        name = work / OPTIONS[option]
        name.symlink_to(there.name)
    result = run(*MODEL, option, name)
    assert result.exit_code == BAD_INPUT, result.output
    assert result.stderr.startswith(f"nfm: {option}: expected a file")
    assert kind in result.stderr or kind == "loop"
    after = os.lstat(there)
    assert (before.st_mode, before.st_ino, before.st_rdev) == (after.st_mode, after.st_ino, after.st_rdev)
    assert not linked or name.is_symlink()


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full", "/dev/zero"])
def test_the_devices_of_the_system_are_refused(work, device):
    before = os.stat(device)
    assert run(*MODEL, "--json", device).exit_code == BAD_INPUT
    assert os.stat(device).st_rdev == before.st_rdev


@pytest.mark.parametrize("option", OPTIONS)
def test_a_link_stays_and_its_file_changes(work, option):
    store = work / "store"
    store.mkdir()
    target, link = store / "kept.txt", work / OPTIONS[option]
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to("store/kept.txt")
    assert run(*MODEL, option, link).exit_code == HOLDS
    assert link.is_symlink()
    assert len(target.read_bytes()) > 100
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in store.iterdir()] == ["kept.txt"]


def test_a_link_to_nothing_makes_its_file(tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to("made/new.json")
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert (tmp_path / "made" / "new.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_new_file_is_as_open_as_the_mask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "new.json", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.json").stat().st_mode) == 0o640


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "kept.json"
    write_json(path, "old")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    with suppress(KeyError), replace_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == '"old"\n'
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, stop, seen = tmp_path / "r.json", threading.Event(), set()
    write_json(path, "x" * 100_000)

    def read():
        while not stop.is_set():
            seen.add(len(path.read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        write_json(path, "x" * 100_000)
    stop.set()
    reader.join()
    assert seen == {100_003}


def test_no_folder_no_file(work):
    (work / "file").write_text("")
    for path in ("file/r.json", "file/deeper/r.json"):
        result = run(*MODEL, "--json", path)
        assert result.exit_code == BAD_INPUT
        assert "is a file; use another name" in result.stderr or "cannot be looked at" in result.stderr
    assert run(*MODEL, "--json", "n" * 300 + ".json").exit_code == BAD_INPUT
    assert run(*MODEL, "--json", "zero\0byte.json").exit_code == BAD_INPUT
    assert run(*MODEL, "--json", "").exit_code == BAD_INPUT


def test_a_long_name_that_the_file_system_takes_is_taken(tmp_path):
    path = tmp_path / ("n" * 250 + ".json")
    write_json(path, 1)
    assert path.read_text() == "1\n"


def test_what_may_not_be_written_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("mine")
    monkeypatch.setattr(files.os, "access", lambda place, mode: not str(place).endswith("r.json"))
    with pytest.raises(OSError, match="is read-only"):
        writable_file(path)
    monkeypatch.setattr(files.os, "access", lambda place, mode: str(place) != str(tmp_path))
    with pytest.raises(OSError, match="expected a folder that can be written"):
        writable_file(tmp_path / "new.json")
    with pytest.raises(OSError, match="expected a folder that can be written"):
        writable_file(tmp_path / "deep" / "deeper" / "new.json")


def test_a_file_that_the_program_prints_to_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    kept = os.dup(1)
    sys.stdout.flush()
    try:
        with path.open("w") as file:
            os.dup2(file.fileno(), 1)
            with pytest.raises(OSError, match="this program prints to"):
                writable_file(path)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def test_a_file_that_is_read_is_not_written(work):
    source = (work / "mine.py").read_bytes()
    (work / "same.json").symlink_to("mine.py")
    assert "is read as well" in run(*MODEL, "--json", "same.json").stderr
    assert (work / "mine.py").read_bytes() == source
    assert "is read as well" in run(*MODEL, "--data", "d.npz", "--json", "d.npz").stderr
    assert "is read as well" in run(*MODEL, "--state-dict", "w.pt", "--json", "./w.pt").stderr
    assert "is the file of --json as well" in run(*MODEL, "--json", "r.svg", "--plot", "r.svg").stderr
