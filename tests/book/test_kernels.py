"""The kernels of the pages are forks of one process, and behave like those that Jupyter starts."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[2] / "book" / "kernels.py"
SPEC = importlib.util.spec_from_file_location("book_kernels", PATH)
KERNELS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(KERNELS)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks only on Linux")
MODULES = ("colorsys", "ipykernel.kernelapp")
PAGE = """\
import os, sys, matplotlib.pyplot as plt
print(os.getcwd(), os.environ["GREETING"], "colorsys" in sys.modules)
plt.plot([0, 1]);
"""


def run_page(env, source, folder):
    """The outputs of a page of one cell, and the process of its kernel, in a process of its own as in the build."""
    program = f"""\
import nbclient, nbformat
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell({source!r})])
nbclient.NotebookClient(notebook, resources={{"metadata": {{"path": {str(folder)!r}}}}}).execute()
for output in notebook.cells[0].outputs:
    print(output.get("text") or sorted(output["data"]))
"""
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)


def alive(pid):
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, seconds=60):
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_a_page_is_executed_as_by_an_ordinary_kernel(tmp_path):
    ordinary = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    with KERNELS.forked(ordinary, MODULES) as env:
        found = run_page(env | {"GREETING": "hello"}, PAGE, tmp_path)
    expected = run_page(ordinary | {"GREETING": "hello"}, PAGE, tmp_path)
    assert found.returncode == 0, found.stderr
    assert f"{tmp_path} hello True" in found.stdout
    assert "image/png" in found.stdout
    assert found.stdout.replace("True", "False") == expected.stdout


def test_an_error_of_a_page_is_the_error_of_its_execution(tmp_path):
    with KERNELS.forked(dict(os.environ), MODULES) as env:
        found = run_page(env, "1 / 0", tmp_path)
        after = run_page(env, "print(2 + 2)", tmp_path)
    assert found.returncode == 1
    assert "ZeroDivisionError" in found.stderr
    assert after.stdout.split() == ["4"]


def test_a_kernel_ends_with_the_one_who_asked_for_it(tmp_path):
    note = tmp_path / "pid"
    waiting = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    program = f"""\
import nbclient, nbformat
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell({waiting!r})])
nbclient.NotebookClient(notebook).execute()
"""
    with KERNELS.forked(dict(os.environ), MODULES) as env:
        asking = subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.DEVNULL)
        while not (note.exists() and note.read_text()):
            assert asking.poll() is None
            time.sleep(0.05)
        pid = int(note.read_text())
        assert alive(pid)
        asking.send_signal(signal.SIGKILL)
        asking.wait()
        assert gone(pid)


def test_a_nursery_that_cannot_start_is_reported():
    with pytest.raises(subprocess.CalledProcessError), KERNELS.forked(dict(os.environ), ("no_such_module",)):
        pass
