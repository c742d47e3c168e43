"""Bad invocations of all commands: hostile files, and options with values that cannot be meant.

`hostile_files(folder)` makes the files, `invocations(folder, seed)` an endless series of calls that name them.
"""

import json
import os
import random
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ledger_entries import entry
from torch import nn

TOY = "nfm-figure-toy/nfm"
MODULE = """
import sys, torch

class Net(torch.nn.Module):
    def __init__(self, line):
        super().__init__()
        self.last, self.line = torch.nn.Linear(3, 2), line

    def forward(self, x):
        exec(self.line, globals(), {{"x": x, "self": self}})
        return self.last(x.tanh())

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))

def data():
    return torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2

number, nothing, text = 3, None, "model"

{makers}
"""
#: What forward passes, factories and modules of users do.
LINES = (
    "assert False", "assert False, 'words'", "[][1]", "x.nosuch", "1 / 0", "{}['a']", "nosuch", "raise ValueError",
    "raise TypeError('t')", "raise RuntimeError", "raise NotImplementedError", "import no_such", "sys.exit(0)",
    "sys.exit(1)", "sys.exit('words')", "raise SystemExit", "exit()", "raise EOFError", "raise StopIteration",
    "raise MemoryError", "raise BaseException", "raise GeneratorExit", "b'\\xff'.decode()", "10.0 ** 400",
    "open('/nonexistent/x')", "f = lambda: f()\nf()", "torch.ones(2) @ torch.ones(3)",
    "torch.linalg.inv(torch.zeros(2, 2))",
    "raise OSError(2, 'No such file', 'their file')", "raise KeyError('{}')", "raise Exception('\\ud800')",
)  # fmt: skip
RETURNS = (
    "None", "3", "(build(), 1)", "(build(), *data(), 1)", "(None, *data())", "(build(), None, None)", "[build()]",
    "(build(), data()[0].numpy(), data()[1])", "(build(), data()[0], data()[1][:4])",
    "(build(), data()[0] + 1j, data()[1])",
    "(build(), data()[0].to_sparse(), data()[1])", "(build(), data()[0] * float('nan'), data()[1])",
    "(build(), data()[0][:0], data()[1][:0])", "(build(), data()[0].bool(), data()[1])",
    "(build(), data()[0], data()[1] + 7)", "(build(), data()[0], data()[1] - 1)",
    "(build(), torch.tensor(1.0), data()[1])",
    "(torch.nn.LSTM(3, 2), *data())", "(torch.nn.Linear(5, 2), *data())",
    "(torch.nn.Identity(), data()[0][:, 0], data()[1])",
    "(torch.nn.Module(), *data())", "(torch.nn.Flatten(0), *data())", "(torch.nn.Linear(3, 2).to('meta'), *data())",
    "(torch.nn.LazyLinear(2), *data())", "(torch.nn.Embedding(3, 2), *data())", "torch.nn.Linear", "type",
)  # fmt: skip


@dataclass(frozen=True)
class Bad:
    """One invocation.

    Attributes:
        command: "nfm" or "experiments".
        arguments: its arguments.
        surely: True if the status must be 2; else it may be the status of a report.
    """

    command: str
    arguments: tuple[str, ...]
    surely: bool = True


def hostile_files(folder: Path) -> None:
    """Make the files in a folder."""
    makers = [f"def line_{i}():\n    {line!r}\n    exec({line!r})" for i, line in enumerate(LINES)]
    makers += [f"def net_{i}():\n    return Net({line!r}), *data()" for i, line in enumerate(LINES)]
    makers += [f"def made_{i}():\n    return {value}" for i, value in enumerate(RETURNS)]
    (folder / "mine.py").write_text(MODULE.format(makers="\n\n".join(makers)))
    for number, line in enumerate(LINES):
        (folder / f"module_{number}.py").write_text(f"import sys\nimport torch\nx = self = None\n{line}\n")
    for name, text in {"syntax": "def (", "zero": "\0", "latin": "é"}.items():
        (folder / f"{name}.py").write_bytes(text.encode("latin1"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of nested, quantized and sparse tensors
        _tensors(folder)
    _arrays(folder)
    _places(folder)
    _ledgers(folder)


def _tensors(folder: Path) -> None:
    x, y = torch.linspace(-1, 1, 18).reshape(6, 3), torch.arange(6) % 2
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    state = net.state_dict()
    contents = {
        "good": (x, y), "sparse": (x.to_sparse(), y), "nested": (torch.nested.nested_tensor([x, x[:2]]), y[:2]),
        "quantized": (torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), y), "complex": (x + 1j, y),
        "shorter": (x, y[:5]), "longer": (x[:4], y), "scalar": (x[0, 0], y[0]), "empty": (x[:0], y[:0]),
        "nan": (x / 0, y), "many": (x, y, y), "words": {"x": "a", "y": "b"}, "other": {"a": x}, "list": [[x], [y]],
        "model": net, "number": 3, "none": None, "labels": (x, y + 5), "negative": (x, y - 3), "wide": (x.T, y[:3]),
        "integers": (x.long(), y), "half": (x.half(), y), "csr": (x.to_sparse_csr(), y), "bool": (x > 0, y),
        "state": state, "prefixed": {f"module.{k}": v for k, v in state.items()},
        "doubled": {f"{p}.{k}": v for p in "ab" for k, v in state.items()},
        "less": dict(list(state.items())[1:]), "more": state | {"3.weight": x}, "deep": {"a": {"b": {"c": state}}},
        "infinite": {k: v / 0 for k, v in state.items()}, "huge": {k: v * 1e30 for k, v in state.items()},
        "imaginary": {k: v + 1j for k, v in state.items()}, "whole": {k: v.long() for k, v in state.items()},
        "shaped": {k: v[:1] for k, v in state.items()}, "numbers": dict.fromkeys(state, 1.0), "keys": {1: x, 2: y},
        "nothing": {}, "mixed": state | {"0.weight": x.to_sparse()},
    }  # fmt: skip
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    whole = (folder / "state.pt").read_bytes()
    place = whole.index(state["0.weight"].numpy().tobytes())
    (folder / "flipped.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    (folder / "cut.pt").write_bytes(whole[:-40])
    (folder / "text.pt").write_text("weights")
    (folder / "zero.pt").write_bytes(b"")


def _arrays(folder: Path) -> None:
    x, y = np.linspace(-1, 1, 18).reshape(6, 3), np.arange(6) % 2
    arrays = {
        "good": (x, y), "complex": (x * 1j, y), "words": (x.astype(str), y), "objects": (x.astype(object), y),
        "shorter": (x, y[:2]), "scalar": (x[0, 0], y[0]), "empty": (x[:0], y[:0]), "nan": (x * np.nan, y),
        "infinite": (x * np.inf, y), "long": (x.astype(np.longdouble), y), "big": (x.astype(">f8"), y),
        "time": (x.astype("datetime64[s]"), y), "fields": (np.zeros(6, [("a", "f8"), ("b", "i4")]), y),
        "labels": (x, y + 0.5), "bytes": (x.astype("S3"), y), "deep": (x.reshape(6, 3, 1, 1, 1), y),
    }  # fmt: skip
    for name, (inputs, targets) in arrays.items():
        np.savez(folder / f"{name}.npz", x=inputs, y=targets)
    np.savez(folder / "unnamed.npz", x)
    np.save(folder / "plain.npy", x)
    (folder / "plain.npy").rename(folder / "plain.npz")
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:-30])
    (folder / "text.npz").write_text("data")


def _places(folder: Path) -> None:
    (folder / "a_folder").mkdir()
    (folder / "a_file").write_text("kept")
    os.mkfifo(folder / "a_pipe")
    (folder / "a_loop").symlink_to("a_loop")
    (folder / "a_link_to_a_pipe").symlink_to("a_pipe")
    (folder / "a_link_to_nowhere").symlink_to("a_file/x")
    if os.geteuid() == 0:
        os.mknod(folder / "a_device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))


NOT_WRITABLE = (
    "a_folder", "a_pipe", "a_loop", "a_link_to_a_pipe", "a_link_to_nowhere", "a_file/x.json", "/dev/null", "/dev/full",
    "/proc/version", "", "n" * 400, "zero\0byte",
)  # fmt: skip
NOT_READABLE = (
    "gone", "a_folder", "a_pipe", "a_loop", "a_link_to_a_pipe", "a_link_to_nowhere", "a_file/x", "/dev/null", "",
    "n" * 400, "zero\0byte",
)  # fmt: skip
GARBAGE = (
    "", " ", "-", "--", "x", "é", "ε", "{}", "%s", "\\", "'", '"', "../..", "*", "[", "\x1b[31m", "a\nb", "\udcff",
    "None",
    "true", "n" * 300, "0x10", "1e400", "-1", "nan", "1_000", "²", "١", "1,2", "😀", "a:b", ":", "::", "a.b:", ":c",
)  # fmt: skip
NO_NUMBER = ("", "x", "1,5", "--", "0x10", "1e", "²", "one", "1 2", "\0")
NO_INTEGER = (*NO_NUMBER, "1.5", "nan", "1e3")


def line(**changes) -> str:
    """A line of the ledger with changes that need not be valid."""
    return json.dumps(json.loads(entry("digits/nfm", 1, clean=0.5).to_json()) | changes)


def _field(name: str, text: str) -> str:
    """A line of the ledger with the JSON text of one field replaced."""
    return line(**{name: "@"}).replace('"@"', text)


NEST = "[" * 5000 + "]" * 5000
VALUES = (
    "null", "true", "[]", "{}", '""', '"a"', "-1", "0.5", "NaN", "Infinity", "-Infinity", "1" + "0" * 400,
    "1" + "0" * 5000,
    "1e400", "-0.0", '"\\ud800"', '"\\u0000"', '"a\\nb"', "[" * 30 + "]" * 30, "[" * 900 + "]" * 900, NEST,
    '{"a":' * 500 + "1" + "}" * 500,
    '{"clean": 1e308, "flip_rate": 1e308}', '{"clean": 0.5, "clean": 0.6}', '{"": 0.5}', '{"clean": true}',
    '{"flip_rate": 1e308}', '{"flip_rate": -1}', '{"clean": 1' + "0" * 400 + "}", '{"\\ud800": 0.5}',
    '{"corrupted/mean": 0.3, "flip_rate": 1e200}', '{"corrupted/noise": null}',
    '{"clean": [0.5]}', str(2**63), str(2**64), "1.0", '"2026-01-31T12:00:00"',
    '"0001-01-01T00:00:00+23:59"',
)  # fmt: skip
FIELDS = tuple(json.loads(line()))
RAW = (
    b"", b"\n\n", b"{", b"[]", b"null", b"\xff\xfe", b"\x00", NEST.encode(), b"\xef\xbb\xbf{}", b"{}", b'{"schema": 1}',
    b'{"schema": 2}', b'{"schema": true}', b'{"schema": 1' + b"0" * 400 + b"}", "é".encode("latin1"),
    b'"' + b"a" * 10**5,
)  # fmt: skip


def _ledgers(folder: Path) -> None:
    (folder / "good.jsonl").write_text(line() + "\n")
    (folder / "done.jsonl").write_text(entry(TOY, 1, clean=0.5).to_json() + "\n")
    (folder / "doubled.jsonl").write_text(2 * (line() + "\n"))
    (folder / "settings.jsonl").write_text(f"{line()}\n{line(seed=2, settings={'epochs': 1})}\n")
    for number, text in enumerate(RAW):
        (folder / f"raw_{number}.jsonl").write_bytes(text + b"\n")


def hostile_ledger(folder: Path, chance: random.Random) -> Path:
    """A ledger with one damaged line among good ones."""
    hostile = _field(chance.choice(FIELDS), chance.choice(VALUES)).encode()
    if chance.random() < 0.1:
        place = chance.randrange(len(hostile))
        hostile = hostile[:place] + bytes([chance.randrange(256)]) + hostile[place + 1 :]
    good = line(seed=2).encode()
    path = folder / f"hostile_{chance.randrange(10**9)}.jsonl"
    path.write_bytes(b"\n".join(chance.sample([hostile, good], 2)) + (b"\n" if chance.random() < 0.9 else b""))
    return path


# The invocations ----------------------------------------------------------------------------------------------------

NFM = ("verify", "--model", "mine.py:build", "--data", "good.npz")
REPORT = ("report", "mine.py:build", "good.npz")
NFM_OPTIONS = {
    "--alpha": (*NO_NUMBER, "-1", "nan", "inf"), "--beta": (*NO_NUMBER, "-1", "nan", "inf"),
    "--add-noise": (*NO_NUMBER, "-0.1", "nan", "inf"), "--mult-noise": (*NO_NUMBER, "-0.1", "nan", "inf"),
    "--order": (*NO_INTEGER, "-1"), "--budget": (*NO_INTEGER, "0", "-5"), "--seed": (*NO_INTEGER, "-1", "9" * 30),
    "--num-samples": (*NO_INTEGER, "0", "-1"), "--eps": ("0.1,0.1,0.1", "0", "-1", "nan", ",", "0.1;0.2", "x", "1e400",
    "0.1,"),
    "--dtype": ("float16", "double", "", "int"), "--device": ("cpu:7", "cpu:0", "meta", "gpu", "", "cuda:99", "mps",
    "cuda:x"),
    "--noise": ("gauss", "", "Normal "), "--loss": ("hinge", "", "cross entropy"), "--method": ("MC", "", "exactly"),
    "--layer": ("nosuch", "9", "0.0", " ", "weight"), "--json": NOT_WRITABLE, "--plot": (*NOT_WRITABLE, "p.txt", "p"),
    "--state-dict": (*NOT_READABLE, *(f"{n}.pt" for n in (
        "sparse", "doubled", "less", "more", "deep", "infinite", "huge", "imaginary", "whole", "shaped", "numbers",
        "keys",
        "nothing", "mixed", "flipped", "cut", "text", "zero", "model", "number", "none"))),
    "--data": (*NOT_READABLE, *(f"{n}.pt" for n in (
        "sparse", "nested", "quantized", "complex", "shorter", "longer", "scalar", "empty", "nan", "many", "words",
        "other",
        "list", "model", "number", "none", "labels", "negative", "wide", "csr", "cut", "text", "zero")),
        *(f"{n}.npz" for n in ("complex", "words", "objects", "shorter", "scalar", "empty", "nan", "infinite", "time",
        "fields", "labels", "bytes", "unnamed", "plain", "cut", "text"))),
    "--radius": ("sharp", "round", ""), "--certificate": ("auto", "oracle", ""),
    "--model": (
        "", ":", "mine.py", "mine.py:", ":build", "mine.py:nosuch", "gone.py:build", "a_folder:x", "a_pipe:x",
        "no.such:x",
        "..:x", ".a:x", "a..b:c", "mine.py:number", "mine.py:nothing", "mine.py:text", "syntax.py:x", "zero.py:x",
        "latin.py:x",
        *(f"mine.py:{kind}_{i}" for kind in ("line", "net") for i in range(len(LINES))),
        *(f"module_{i}.py:x" for i in range(len(LINES))),
    ),
}  # fmt: skip
REPORT_OPTIONS = {
    **{name: NFM_OPTIONS[name] for name in (
        "--alpha", "--beta", "--add-noise", "--mult-noise", "--noise", "--loss", "--layer", "--state-dict", "--dtype",
        "--device", "--seed", "--num-samples", "--json",
    )},
    "--html": NOT_WRITABLE, "--eps": (*NO_NUMBER, "-1", "nan", "inf"), "--budget": ("", "soon", "-5", "0 passes"),
}  # fmt: skip
TABLES = {"--format": GARBAGE[4:10], "--table": GARBAGE[4:12], "--size": GARBAGE[4:12], "--out": NOT_WRITABLE[1:-3]}
RUN = {
    "--device": NFM_OPTIONS["--device"], "--loaders": (*NO_INTEGER, "-1", "9" * 9),
    "--ledger": (*NOT_WRITABLE[:9], "doubled.jsonl", "settings.jsonl", *(f"raw_{i}.jsonl" for i in range(len(RAW)))),
    "--runs": ("a_file", "a_pipe", "a_loop", "a_link_to_nowhere", "/dev/null", "n" * 400),
}  # fmt: skip
WITHOUT_SUBMITIT = (
    "x", "=1", "", "nodes=2", "gpus_per_node=x", "visible_gpus=1", "tasks_per_node=x", "slurm_max_num_timeout=50",
)  # fmt: skip
PARAMETERS = (*WITHOUT_SUBMITIT, "nosuch=1", "cluster=here", "workers=2", "poll=0", "timeout_min=x", "²=²", "folder=a")
STUDY = {
    "--workers": (*NO_INTEGER, "0", "-1", "9" * 9),
    "--out": ("a_file", "a_pipe", "a_loop", "/dev/null", "n" * 400),
}
LEDGERS = (*(n for n in NOT_READABLE if n), "settings.jsonl", *(f"raw_{i}.jsonl" for i in range(len(RAW))))
#: For each command of `python -m experiments`, what it needs, its options, and values that it must refuse.
COMMANDS = (
    (("recipes", "list"), {"--size": GARBAGE, "": GARBAGE[4:9]}),
    (("recipes", "show"), {"": GARBAGE[4:]}),
    (("train",), {"": (*GARBAGE[4:], "noisymix-table1/stylized_imagenet", "nfm-table1/nfm")}),
    (("train", TOY), {
        **RUN, "--seed": (*NO_INTEGER, "-1", "9" * 30), "--stop-after": (*NO_INTEGER, "0", "-1"),
        "--test-images": (*NO_INTEGER, "-1"),
    }),
    (("sweep", "--cluster", "here"), {"": (*GARBAGE[4:9], "noisymix-table1/stylized_imagenet")}),
    (("sweep", TOY, "--ledger", "fresh.jsonl"), {
        **RUN, "--size": GARBAGE[4:9], "--seeds": ("x", "1,1", "-1", "1,,2", "²", "9" * 30, "1.5"),
        "--cluster": ("moon", ""),
        "--workers": (*NO_INTEGER, "0", "-1", "9" * 9), "--threads": (*NO_INTEGER, "-1", "9" * 9),
        "--processes": (*NO_INTEGER, "0", "-1", "65"), "--test-images": (*NO_INTEGER, "-1"),
        "--parameter": PARAMETERS,
    }),
    (("sweep", TOY, "--dry-run"), {"--cluster": ("moon", ""), "--parameter": WITHOUT_SUBMITIT}),
    (("sweep", TOY, "--seeds", "1", "--ledger", "done.jsonl"), {"--cluster": ("moon", ""), "--parameter": PARAMETERS}),
    (("sweep", TOY, "--cluster", "here"), {"--parameter": ("timeout_min=9", "x=1")}),
    (("evaluate", TOY), {"--weights": (*NOT_READABLE, *(f"{n}.pt" for n in (
        "sparse", "deep", "nothing", "numbers", "keys", "cut", "text", "zero", "model", "number", "none", "state")))}),
    (("evaluate", TOY, "--weights", "state.pt"), {
        "--suite": GARBAGE[4:9], "--mean": ("x", "1,,2", "nan", "1;2", "0.5"), "--std": ("x", "0", "-1", "0.5"),
        **{k: RUN[k] for k in ("--device", "--loaders", "--ledger")},
    }),
    (("evaluate", "--weights", "a_file"), {"": GARBAGE[4:9]}),
    (("sets",), {"": (*GARBAGE[4:9], "imagenet", "toy_rings", "cifar10")}),
    (("sets", "digits"), {"--workers": (*NO_INTEGER, "0", "-1", "9" * 9)}),
    (("tables",), {**TABLES, "--ledger": LEDGERS}),
    (("audit",), {"--out": TABLES["--out"]}),
    (("claims",), {"--paper": GARBAGE, "": GARBAGE[4:9]}),
    (("claims", "no-such-id"), {"--json": NOT_WRITABLE, "--ledger": LEDGERS}),
    (("ledger", "check"), {"": [name for name in NOT_READABLE if name]}),
    (("ledger", "compare"), {"": LEDGERS}),
    (("ledger", "compare", "good.jsonl"), {"--with": LEDGERS}),
    (("ledger", "merge", "--into", "new.jsonl"), {"": LEDGERS}),
    (("ledger", "merge", "good.jsonl"), {"--into": RUN["--ledger"][:9]}),
    *((("study", name), STUDY) for name in (
        "expansion", "bounds", "validity", "decomposition", "explore", "choice", "where")),
    (("study", "bounds"), {"--cifar-folder": ("gone", "a_folder", "a_file", "a_pipe")}),
    (("study", "validity"), {
        "--seed": (*NO_INTEGER, "-1", "9" * 30), "--samples": (*NO_INTEGER, "1", "-1"), "--paths": (*NO_INTEGER, "1"),
        "--recipes": (*GARBAGE[4:9], "nfm-table1/*"), "--runs": RUN["--runs"], "--bound-samples": (*NO_INTEGER, "0"),
    }),
    (("study", "choice"), {"--recipes": (*GARBAGE[4:9], "digits/nfm")}),
    (("study", "decomposition"), {"--seeds": (*NO_INTEGER, "-1", "9" * 30)}),
    (("study", "expansion", "--record"), {"--out": ("a_folder",)}),
)  # fmt: skip


def _listed() -> list[Bad]:
    found = [Bad("nfm", (*NFM, option, value)) for option, values in NFM_OPTIONS.items() for value in values]
    found += [Bad("nfm", (*REPORT, option, value)) for option, values in REPORT_OPTIONS.items() for value in values]
    found += [Bad("nfm", ("report", value)) for value in NFM_OPTIONS["--model"] if value]
    found += [Bad("nfm", ("verify", "--model", f"mine.py:made_{i}"), surely=False) for i in range(len(RETURNS))]
    found += [
        Bad("nfm", (*NFM, "--bound", *pair))
        for pair in (
            ("--radius", "round"),
            ("--certificate", "x"),
            ("--order", "3"),
            ("--plot", "p.svg"),
            ("--loss", "square"),
            ("--alpha", "0"),
        )
    ]
    for fixed, options in COMMANDS:
        for option, values in options.items():
            for value in values:
                extra = (option, value) if option else ("--", value) if value.startswith("-") else (value,)
                found.append(Bad("experiments", (*fixed, *extra)))
    for command in ("nfm", "experiments"):
        starts = [NFM] if command == "nfm" else [fixed for fixed, _ in COMMANDS]
        for start in starts:
            found += [Bad(command, (*start, "--nosuch", "1")), Bad(command, (*start, "--nosuch=é"))]
        found += [Bad(command, (word,)) for word in ("nosuch", "--nosuch", "é", "verify2")]
    return found


def invocations(folder: Path, seed: int) -> Iterator[Bad]:
    """First every listed invocation in random order, then ones with two faults, mixed with hostile ledgers."""
    chance = random.Random(seed)
    listed = _listed()
    chance.shuffle(listed)
    for one in listed:
        if chance.random() < 0.15:
            yield _with_a_ledger(folder, chance)
        yield one
    while True:
        if chance.random() < 0.4:
            yield _with_a_ledger(folder, chance)
        else:
            first, options = chance.choice(listed), NFM_OPTIONS
            option = chance.choice(sorted(options))
            if first.command == "nfm" and first.arguments[0] == "verify":
                yield Bad("nfm", (*first.arguments, option, chance.choice(options[option])), surely=False)


def _with_a_ledger(folder: Path, chance: random.Random) -> Bad:
    path = str(hostile_ledger(folder, chance))
    ways = (
        ("tables", "--table", "noisymix-table2", "--ledger", path), ("ledger", "compare", path, "--with", "good.jsonl"),
        ("ledger", "compare", "good.jsonl", "--with", path), ("ledger", "merge", path, "--into", f"{path}.new"),
        ("ledger", "check", path), ("train", "noisymix-table1/stylized_imagenet", "--ledger", path),
        ("claims", "no-such-id", "--ledger", path), ("sweep", TOY, "--dry-run", "--ledger", path),
        ("evaluate", TOY, "--weights", "gone", "--ledger", path),
    )  # fmt: skip
    return Bad("experiments", chance.choice(ways), surely=False)
