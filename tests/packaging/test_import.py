"""Importing the library loads what it needs at once, and nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Slow to load, and needed by some functions only.
LATER = ("sympy", "scipy", "torch._dynamo", "matplotlib")
CODE = """
import json, os, sys, warnings
import torch
before = set(sys.modules)
import nfm_theory as nt
for name in ("Law", "Problem", "Branches", "terms", "loss", "verify", "NoisyFeatureMixup", "TaylorRegularizer"):
    getattr(nt, name)
print(json.dumps(sorted(set(sys.modules) - before)), flush=True)

import scipy.special, torch._dynamo  # once, instead of in every child
assert "torch._decomp.decompositions_for_jvp" not in sys.modules  # what is not silent
x = torch.linspace(-1, 1, 6).reshape(6, 1).double()
law = nt.Law(add_noise=0.1)
problem = nt.Problem(torch.nn.Linear(1, 2).double().eval(), x, torch.arange(6) % 2, law=law)
for first in sys.argv[1:]:  # each is the first use in a process of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forks beside threads
        child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, first
    else:
        eval(first)
        print(nt.verify(problem).verdict, flush=True)
        os._exit(0)
"""
FIRST = ("nt.terms(problem)", "nt.coefficients(problem, 3)", "nt.adversarial.bound(problem, 0.1)")


@pytest.fixture(scope="module")
def printed():
    """What a process printed in which every warning is an error."""
    command = [sys.executable, "-W", "error", "-c", CODE, *(FIRST if hasattr(os, "fork") else ())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if "nfm_theory" in line or "Warning" in line] == []
    return done.stdout.splitlines()


def test_import_is_silent_and_loads_nothing_that_is_needed_later_only(printed):
    loaded = json.loads(printed[0])
    assert "nfm_theory" in loaded
    assert [name for name in loaded if any(f"{name}.".startswith(f"{late}.") for late in LATER)] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_first_use_of_forward_mode_is_silent(printed):
    assert printed[1:] == ["holds"] * len(FIRST)
