"""Sweeps that are killed, for the tests: `python tests/sweep_processes.py FOLDER`, printed as JSON.

A process of its own, because forking is safe only where no threads run. Children are killed at random moments from
outside, or by themselves inside the writing of a checkpoint or of the ledger, and started again until all is done.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from ledger_entries import comparable, shortened

from experiments.recipes import get_recipe
from experiments.recipes.schemes import SCHEMES
from experiments.record.ledger import finished, read, validate
from experiments.runner import run_recipe
from experiments.sweep import Sweep, make_tasks, run_sweep
from experiments.training import Execution, run_folder

EXECUTION = Execution(device="cpu", progress=False, look_steps=1, checkpoint_minutes=0)


def recipes():
    """Four short ones: several schemes, optimisers with state, dropout."""
    short = {"epochs": 3, "batch_size": 60}
    noisy = replace(SCHEMES["nfm"], jsd=12.0)
    return [
        shortened(get_recipe("nfm-figure-toy/nfm"), **short),
        shortened(get_recipe("nfm-figure-toy/dropout"), **short),
        shortened(get_recipe("noisymix-figure4/noisymix"), **short),
        shortened(get_recipe("nfm-figure-toy/weight_decay"), **short, optimiser="sgd", nesterov=True, scheme=noisy),
    ]


def sweep(folder, **options):
    tasks = make_tasks(recipes(), seeds=(1, 2))
    options = {"ledger": folder / "ledger.jsonl", "runs": folder / "runs", "execution": EXECUTION} | options
    return Sweep(tasks, **options)


def results(folder):
    """What the ledger holds, without times, in an order of its own."""
    return sorted((comparable(entry) for entry in read(folder / "ledger.jsonl")), key=lambda e: json.dumps(e))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def inside(name, left, chance):
    """In some call `os.replace` or `os.write` works not at all, in part, or whole, and the process dies."""
    full = getattr(os, name)

    def call(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            kind = chance.randrange(3)
            if kind == 1 and name == "write":
                full(arguments[0], arguments[1][: chance.randint(1, len(arguments[1]))])
            elif kind == 2:
                full(*arguments)
            die()
        return full(*arguments)

    setattr(os, name, call)


def start(folder, way, chance):
    """Run the sweep in a child; returns its status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if way == "replace":
                inside("replace", chance.randint(1, 25), chance)
            elif way == "write":
                inside("write", 1, chance)
            report = run_sweep(sweep(folder), cluster="here", progress=False)
            status = 0 if report.complete else 2
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    if way == "outside":
        time.sleep(chance.uniform(0.03, 0.3))
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def killed(folder, kills, seed=0):
    """For each child how it was killed, its status, and the number of cells after it."""
    chance = random.Random(seed)
    found, ways = [], ["outside", "replace", "replace", "write"]
    ledger = folder / "ledger.jsonl"
    for attempt in range(kills):
        if ledger.exists() and len(finished(ledger)) == len(sweep(folder).tasks):
            break  # all is done; the kills go on in another folder
        way = ways[attempt % len(ways)]
        status = start(folder, way, chance)
        cells = len(finished(ledger)) if ledger.exists() else 0
        chance.random()
        found.append((way, status, cells))
    return found


def main(folder, wanted):
    torch.set_num_threads(1)
    whole = folder / "whole"
    assert run_sweep(sweep(whole), cluster="here", progress=False).complete
    kills, round_, equal, doubled, left = [], 0, True, [], []
    while len([k for k in kills if k[1] == signal.SIGKILL]) < wanted:
        place = folder / f"killed{round_}"
        kills += killed(place, wanted, seed=round_)
        last = start(place, "", random.Random(0))
        equal = equal and last == 0 and results(place) == results(whole)
        doubled += validate(place / "ledger.jsonl")
        for task in sweep(place).tasks:  # what a kill left over goes with the next look at the run
            run_recipe(
                task.recipe, task.seed, ledger=folder / f"again{round_}", runs=place / "runs", execution=EXECUTION
            )
            here = run_folder(place / "runs", task.recipe.training, task.seed)
            kept = ("final.pt", "along.pt", "log.jsonl", ".lock", "measuring")
            left += [p.name for p in here.iterdir() if p.name not in kept]
        round_ += 1
    print(json.dumps({"kills": kills, "equal": equal, "problems": doubled, "left": left,
                      "cells": len(results(whole))}))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
