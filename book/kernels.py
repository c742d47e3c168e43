"""Kernels for the pages that start at once: `with forked(env) as env: ...`.

A page spends a third of its time importing PyTorch, Matplotlib and SymPy. Here one process, the nursery, imports them
once, and the kernel of every page is a fork of it. Jupyter finds these kernels by a spec in a folder of
`$JUPYTER_PATH`. The program in that spec asks the nursery for a kernel and lives as long as the kernel does.

Forks with the threads and libraries of a Mac are not safe, and Windows has none. There `forked` changes nothing.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

#: What nearly every page imports, and what PyTorch imports when a derivative or an optimiser is first used.
MODULES = ("torch", "torch._dynamo", "matplotlib.pyplot", "sympy", "scipy.special", "ipykernel.kernelapp", "myst_nb")
#: What a kernel sets before its first import of Matplotlib. The nursery imports it earlier.
BACKEND = "module://matplotlib_inline.backend_inline"
#: Seconds between two looks whether the caller is still there.
PATIENCE = 1.0


@contextlib.contextmanager
def forked(env: dict[str, str], modules: Sequence[str] = MODULES) -> Iterator[dict[str, str]]:
    """Run the nursery, and give the environment in which Jupyter finds its kernels.

    Args:
        env: environment of the kernels.
        modules: what the nursery imports.

    Raises:
        subprocess.CalledProcessError: if the nursery ends before it is ready; what it said stands on stderr.
    """
    if sys.platform != "linux":
        yield env
        return
    with tempfile.TemporaryDirectory() as folder:
        address, spec = Path(folder) / "nursery", Path(folder) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        command = [sys.executable, __file__, "kernel", str(address), "-f", "{connection_file}"]
        known = {"display_name": "Python 3", "language": "python", "interrupt_mode": "message"}
        spec.write_text(json.dumps({"argv": command, **known}))
        serve = [sys.executable, __file__, "nursery", str(address), *modules]
        with subprocess.Popen(
            serve, env=env | {"MPLBACKEND": BACKEND}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as nursery:
            if not nursery.stdout.readline():
                raise subprocess.CalledProcessError(nursery.wait(), serve)
            try:
                yield env | {"JUPYTER_PATH": os.pathsep.join(filter(None, [folder, env.get("JUPYTER_PATH")]))}
            finally:
                nursery.stdin.close()  # which ends it


def nursery(address: str, *modules: str) -> None:
    """Import the modules, then fork a kernel for everyone who asks, until the input ends."""
    for name in modules:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels that ended need not be waited for
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([door, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            caller, _ = door.accept()
            if os.fork() == 0:
                door.close()
                become_kernel(caller)
            caller.close()


def become_kernel(caller: socket.socket) -> None:
    """Be the kernel that the caller asked for. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with caller.makefile() as lines:
        asked = json.loads(lines.readline())
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])

    def leave_with_caller() -> None:
        caller.recv(1)  # nothing is ever sent: this returns when the caller is gone
        os._exit(1)

    threading.Thread(target=leave_with_caller, daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance

    status = 1
    try:
        launch_new_instance([*asked["options"], f"--IPKernelApp.parent_handle={os.getppid()}"])
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)  # not back into the loop of the nursery


def kernel(address: str, *options: str) -> None:
    """Ask the nursery for a kernel, and stay as long as it or whoever started this program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the kernel is interrupted by a message
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(address)
        asked = {"options": options, "cwd": os.getcwd(), "env": dict(os.environ)}
        call.sendall(json.dumps(asked).encode() + b"\n")
        while os.getppid() == parent and not select.select([call], [], [], PATIENCE)[0]:
            pass


if __name__ == "__main__":
    {"nursery": nursery, "kernel": kernel}[sys.argv[1]](*sys.argv[2:])
