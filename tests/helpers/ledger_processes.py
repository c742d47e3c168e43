"""Entries for the tests of the ledger, and writers that are forked, killed, or cut off in the middle of a write.

    python tests/ledger_processes.py FOLDER

A process of its own because forking is safe only where no threads run; it prints what the writers reported and how they
ended, as JSON.
"""

import hashlib
import json
import os
import random
import select
import signal
import sys
import time

from experiments.record.ledger import Entry, append, finished

WRITERS, OWN, SHARED = 4, 12, 12
KILLS, CELLS = 10, 120


def entry(seed=0, suite="clean", **changes):
    """A valid entry; the hash follows the settings unless it is given."""
    settings = changes.pop("settings", {"learning_rate": 0.1, "layers": ["", "layer1"]})
    known = changes.get("hash") or hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    content = {
        "recipe": "cifar10_nfm", "settings": settings, "size": "toy", "scheme": "nfm", "seed": seed, "suite": suite,
        "hash": known,
        "suite_settings": {"batch": 4}, "metrics": {"clean": 0.5 + seed / 1000, "loss": -1.25}, "seconds": 0.5,
        "training": {"epochs": 2, "steps": 8, "samples": 64, "seconds": 1.5, "final_loss": 0.75},
        "commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False, "versions": {"torch": "2.6.0"},
        "device": "cpu (x86_64)", "time": "2026-01-31T12:00:00+00:00",
    }  # fmt: skip
    return Entry(**content | changes)


def _fork(work):
    """Run `work(report)` in a child; returns its id and the reading end of its pipe."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        report = os.write  # kept, for the tests replace os.write
        work(lambda seed: report(writing, b"%d\n" % seed))
        status = 0
    finally:
        os._exit(status)


def _reported(reading):
    with os.fdopen(reading, "rb") as pipe:
        return [int(line) for line in pipe.read().splitlines()]


def together(path):
    """Every writer has cells of its own and cells that all have, in an order of its own."""
    gate, opened = os.pipe()

    def work(writer):
        seeds = list(range(SHARED)) + [1000 * (writer + 1) + i for i in range(OWN)]
        random.Random(writer).shuffle(seeds)

        def run(report):
            os.close(opened)
            os.read(gate, 1)  # returns when the parent closes its end: all start at once
            for seed in seeds:
                if append(path, entry(seed % 1000, suite=f"own{seed // 1000}")):
                    report(seed)

        return run

    children = [_fork(work(writer)) for writer in range(WRITERS)]
    os.close(opened)
    answers = [_reported(reading) for _, reading in children]
    return answers, [os.waitpid(child, 0)[1] for child, _ in children]


def _cut_off(chance):
    """From some write on `os.write` writes a part of its bytes and the process dies."""
    full, left = os.write, chance.randint(1, 4)

    def write(handle, text):
        nonlocal left
        left -= 1
        if left == 0:
            full(handle, text[: chance.randint(1, len(text))])
            os.kill(os.getpid(), signal.SIGKILL)
        return full(handle, text)

    os.write = write


def killed(path):
    """Writers of the same cells, one after the other: killed from outside, or by themselves inside a write."""
    chance = random.Random(7)
    answers, states = [], []
    for attempt in range(2 * KILLS + 1):
        cut = attempt < 2 * KILLS and attempt % 2 == 1

        def work(report, cut=cut):
            if cut:
                _cut_off(chance)
            done = finished(path)
            missing = [seed for seed in range(CELLS) if entry(seed).cell not in done]
            for seed in [0, *missing]:
                if append(path, entry(seed)):
                    report(seed)

        child, reading = _fork(work)
        if attempt < 2 * KILLS and not cut:
            select.select([reading], [], [], 30)  # it has reported a first cell
            time.sleep(chance.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
        answers.append(_reported(reading))
        states.append(os.waitpid(child, 0)[1])
        chance.random()  # the children draw from copies; let the next one see another state
    return answers, states


if __name__ == "__main__":
    print(json.dumps({job.__name__: job(f"{sys.argv[1]}/{job.__name__}") for job in (together, killed)}))
