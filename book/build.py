"""Build the book: `python book/build.py [--fresh]`; the last line printed is the path of its first page.

Executed notebooks are cached, but a cache knows only the text of the cells. So it is kept under a key, a hash of what
the cells depend on (library, experiments and their results, figures, versions), and dropped when that key changes.
All pages are executed before Sphinx reads them, as many at once as there are cores, by kernels that are forks of one
process; what fails is left to Sphinx, which executes it again and reports it. Sphinx's own incremental build is
switched off: it would leave pages alone whose text did not change, and would forget the warnings of the build before,
which `-W` is there to catch.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kernels import forked

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
BUILD = BOOK / "_build"
CACHE = BUILD / ".jupyter_cache"
KEY = BUILD / "cache.key"
INDEX = BUILD / "html" / "index.html"
TIMEOUT = 600  # seconds for a cell, as in _config.yml

SOURCES = ("nfm_theory", "experiments", "figures", "benchmarks/results")
SUFFIXES = {".py", ".pyi", ".json", ".jsonl", ".csv", ".npz", ".pt"}


def installed() -> list[str]:
    """The names of all installed packages. Cells import few of them, but those import others."""
    return sorted({found.metadata["Name"] for found in metadata.distributions() if found.metadata["Name"]})


def cache_key() -> str:
    """Hash of everything outside a page that decides what its cells print."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in installed():
        digest.update(f"{name}=={metadata.version(name)}\n".encode())
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(ROOT).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """The environment of the build, without what would change the pages."""
    env = dict(os.environ)
    env.pop("MPLBACKEND", None)  # Agg removes every figure without a word
    env["TQDM_DISABLE"] = "1"  # a progress bar on stderr is a warning
    env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # ipykernel's debugger warns about frozen modules
    # The pages import experiments and figures, which are not installed.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this environment, not one installed for the user
    return env


def execute_pages() -> None:
    """Execute every page that the cache does not know, a kernel of one thread for each core."""
    CACHE.mkdir(exist_ok=True)
    env = environment() | {"JUPYTERCACHE": str(CACHE), "OMP_NUM_THREADS": "1"}
    # Those without a header have no cells. The longest first, so that no core waits for one at the end.
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(BOOK.glob("*.md"))}
    pages = sorted((path for path in texts if texts[path].startswith("---")), key=lambda path: -len(texts[path]))
    jcache = [sys.executable, "-c", "from jupyter_cache.cli.commands.cmd_main import jcache; jcache()"]
    with forked(env) as env:
        for command in (
            ["notebook", "add", "--reader", "myst_nb_md", *map(str, pages)],
            ["project", "execute", "--executor", "local-parallel", "--timeout", str(TIMEOUT)],
        ):
            subprocess.run([*jcache, *command], env=env, stdin=subprocess.DEVNULL, check=False)


def main() -> int:
    """Build; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="execute every notebook, whatever the cache holds")
    fresh = parser.parse_args().fresh

    key = cache_key()
    if fresh or not KEY.is_file() or KEY.read_text() != key:
        shutil.rmtree(CACHE, ignore_errors=True)
    for stale in (BUILD / "html", BUILD / ".doctrees"):
        shutil.rmtree(stale, ignore_errors=True)
    BUILD.mkdir(exist_ok=True)
    KEY.write_text(key)

    execute_pages()
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(BOOK), "--all", "-W", "-n", "--keep-going"]
    status = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, check=False).returncode
    if status == 0 and not INDEX.is_file():
        print(f"no {INDEX} came out of the build", file=sys.stderr)
        status = 1
    if status == 0:
        print(INDEX, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
