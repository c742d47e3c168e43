"""Importing the library loads what it needs at once, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Slow to load, and needed by some functions only.
LATER = ("sympy", "scipy", "torch._dynamo", "matplotlib")
CODE = """
import json, sys
import torch
before = set(sys.modules)
import nfm_theory
for name in ("Law", "Problem", "Branches", "terms", "loss", "verify", "NoisyFeatureMixup", "TaylorRegularizer"):
    getattr(nfm_theory, name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_is_silent_and_loads_nothing_that_is_needed_later_only():
    command = [sys.executable, "-W", "always", "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    loaded = json.loads(done.stdout)
    assert "nfm_theory" in loaded
    assert [name for name in loaded if any(f"{name}.".startswith(f"{late}.") for late in LATER)] == []
    assert [line for line in done.stderr.splitlines() if "nfm_theory" in line or "Warning" in line] == []
