"""One line of the ledger: a trained network, one suite of measurements of it, and where the numbers come from."""

from __future__ import annotations

import json
import math
import re
import reprlib
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from numbers import Integral, Real
from typing import Any, NamedTuple

#: Version of the lines that this code writes. It reads no other.
SCHEMA = 1
SIZES = ("digits", "compact", "paper", "toy")
#: Instead of a size: weights that were not trained here (see `experiments.elsewhere`).
ELSEWHERE = "elsewhere"
#: Metrics whose values are shares in [0, 1], by the first part of the key, such as "corrupted" in "corrupted/mean".
SHARES = frozenset(
    {"clean", "white_noise", "salt_pepper", "salt_pepper_standard", "corrupted", "imagenet_r", "flip_probability",
     "aurra", "ece", "rms_calibration_error", "rms_calibration_error_released"}
)  # fmt: skip
#: The same for families of attacks such as "fgsm_linf" and "pgd_linf".
SHARE_PREFIXES = ("fgsm_", "pgd_")
#: Metrics relative to a reference network; they are above 1 if the reference is better.
RATIOS = frozenset({"flip_rate"})
#: What is known about the training; `final_loss` is null if there was none (0 steps).
TRAINING = ("epochs", "steps", "samples", "seconds", "final_loss")
#: What is known besides, if a recipe in bfloat16 was computed in float32 (see `experiments.precision`).
COMPUTED_IN_FLOAT32 = {"computed_in": "float32"}

#: Levels of lists and mappings within each other.
_DEEPEST = 20
#: No metric is larger, and statistics of such numbers do not overflow.
_LARGEST = 1e100
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
_HASH = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


class LedgerError(ValueError):
    """A line or a file of the ledger is not valid."""


class Cell(NamedTuple):
    """The key of a result: the hash of the training settings, the seed and the suite."""

    hash: str
    seed: int
    suite: str


def _need(correct: bool, field: str, expected: str, got: object) -> None:
    if not correct:
        raise LedgerError(f"{field}: expected {expected}, got {_repr.repr(got)}.")


def _short(value: Integral, field: str) -> int:
    """An integer of at most 64 bits, which other programs can read as well."""
    _need(-(2**63) <= value < 2**63, field, "an integer of at most 64 bits", value)
    return int(value)


def _integer(value: Any, field: str) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    _need(whole and value >= 0, field, "an integer >= 0", value)
    return _short(value, field)


def _number(value: Any, field: str, *, least: float = -math.inf, most: float = math.inf) -> float:
    number = type(value) is float or (isinstance(value, Real) and not isinstance(value, bool))
    try:
        number = number and math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        number = False
    _need(number, field, "a finite number", value)
    _need(least <= value <= most, field, f"a number in [{least:g}, {most:g}]", value)
    return float(value)


def _unicode(text: str, field: str) -> str:
    """Text that can be written to a file; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LedgerError(f"{field}: expected text that can be encoded, got {_repr.repr(text)}.") from None
    return text


def _is_plain(value: Any) -> bool:
    """True for what nearly all values are: text, numbers, true, false or nothing that need no closer look."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    if kind is str:
        return value.isascii()
    return kind is bool or value is None or (kind is int and -(2**63) <= value < 2**63)


def _plain(value: Any, field: str, depth: int = 0) -> Any:
    """A deep copy as JSON would return it: tuples become lists. Anything that JSON cannot store is refused."""
    if isinstance(value, dict | list | tuple):
        _need(depth < _DEEPEST, field[:80], f"at most {_DEEPEST} levels of lists and mappings", value)
    if isinstance(value, dict):
        for key in value:
            _need(isinstance(key, str), field, "keys that are text", key)
        return {
            _unicode(key, field): inner if _is_plain(inner) else _plain(inner, f"{field}.{key}", depth + 1)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            inner if _is_plain(inner) else _plain(inner, f"{field}[{index}]", depth + 1)
            for index, inner in enumerate(value)
        ]
    if isinstance(value, str):
        return _unicode(value, field)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return _short(value, field)
    return _number(value, field)


def _mapping(value: Any, field: str) -> dict:
    _need(isinstance(value, dict), field, "a mapping", value)
    return _plain(value, field)


def _metrics(value: Any) -> dict[str, float]:
    _need(isinstance(value, dict) and len(value) > 0, "metrics", "at least one metric", value)
    checked = {}
    for key, number in value.items():
        _need(isinstance(key, str) and key != "", "metrics", "keys that are text", key)
        first, field = _unicode(key, "metrics").split("/")[0], f"metrics[{key!r}]"
        if first in SHARES or first.startswith(SHARE_PREFIXES):
            checked[key] = _number(number, field, least=0, most=1)
        else:
            checked[key] = _number(number, field, least=0 if first in RATIOS else -math.inf)
            _need(abs(checked[key]) <= _LARGEST, field, f"a number of at most {_LARGEST:g}", number)
    return checked


def _training(value: Any) -> dict:
    keys = set(value) - set(COMPUTED_IN_FLOAT32) if isinstance(value, dict) else None
    _need(keys == set(TRAINING), "training", f"the keys {', '.join(TRAINING)}", value)
    other = {key: value[key] for key in COMPUTED_IN_FLOAT32 if key in value}
    _need(other in ({}, COMPUTED_IN_FLOAT32), "training.computed_in", "'float32' or no such key", other)
    checked: dict = other | {key: _integer(value[key], f"training.{key}") for key in ("epochs", "steps", "samples")}
    checked["seconds"] = _number(value["seconds"], "training.seconds", least=0)
    if value["final_loss"] is None:
        _need(checked["steps"] == 0, "training.final_loss", "a finite number after training", None)
        return checked | {"final_loss": None}
    return checked | {"final_loss": _number(value["final_loss"], "training.final_loss")}


def _text(value: Any, field: str, pattern: re.Pattern | None = None, expected: str = "text") -> str:
    known = isinstance(value, str) and (pattern.fullmatch(value) if pattern else value.strip() and value.isprintable())
    _need(bool(known), field, expected, value)
    return value


def _utc(value: Any) -> str:
    expected = 'an ISO 8601 time in UTC such as "2026-01-31T12:00:00+00:00"'
    try:
        parsed = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise LedgerError(f"time: expected {expected}, got {_repr.repr(value)}.") from None
    _need(parsed.utcoffset() == timedelta(0), "time", expected, value)
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise LedgerError(f"expected each key once, got {_repr.repr(double)} twice.")
    return found


def parse_json(text: str | bytes) -> Any:
    """Read one line of JSON in UTF-8.

    Raises:
        LedgerError: if it is not JSON, is nested too deeply, or has a key twice, of which JSON keeps only the last.
    """
    try:
        line = text.decode() if isinstance(text, bytes) else text
        return json.loads(line, object_pairs_hook=_each_once)
    except LedgerError:
        raise
    except RecursionError:
        raise LedgerError(f"expected one JSON object, got {text[:40]!r} (too many levels within each other).") from None
    except ValueError as error:
        raise LedgerError(f"expected one JSON object, got {text[:40]!r} ({error}).") from None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The results of one suite of measurements on one trained network. All fields are checked and copied.

    Attributes:
        recipe: name of the recipe.
        hash: hash of the training settings, 16 hexadecimal digits.
        settings: the training settings without the seed.
        size: "digits", "compact", "paper" or "toy"; "elsewhere" for weights that were not trained here.
        scheme: id of the training scheme, as in `experiments/published`.
        seed: random seed of the training run.
        suite: what was measured, such as "clean", "corrupted", "attacks", "flips" or "calibration".
        suite_settings: how it was measured.
        metrics: the measured numbers; accuracies are shares in [0, 1].
        training: facts about the training run, with the keys `TRAINING`, and `computed_in` if a recipe in bfloat16 was
            computed in float32.
        seconds: duration of the measurement.
        commit: commit of the code; null outside of a git checkout.
        dirty: True if the code differed from that commit.
        versions: versions of the packages.
        device: name of the device.
        time: end of the measurement, ISO 8601 in UTC.

    Raises:
        LedgerError: if a field is not valid; the message names the field and what came.
    """

    recipe: str
    hash: str
    settings: dict
    size: str
    scheme: str
    seed: int
    suite: str
    suite_settings: dict
    metrics: dict[str, float]
    training: dict
    seconds: float
    commit: str | None
    dirty: bool
    versions: dict[str, str]
    device: str
    time: str

    def __post_init__(self) -> None:
        sizes = (*SIZES, ELSEWHERE)
        _need(self.size in sizes, "size", f"one of {', '.join(sizes)}", self.size)
        _need(isinstance(self.dirty, bool), "dirty", "true or false", self.dirty)
        checked: dict[str, Any] = {
            "recipe": _text(self.recipe, "recipe"),
            "hash": _text(self.hash, "hash", _HASH, "16 hexadecimal digits"),
            "settings": _mapping(self.settings, "settings"),
            "scheme": _text(self.scheme, "scheme", _IDENTIFIER, "an id such as noisy_mixup"),
            "seed": _integer(self.seed, "seed"),
            "suite": _text(self.suite, "suite", _IDENTIFIER, "an id such as corrupted"),
            "suite_settings": _mapping(self.suite_settings, "suite_settings"),
            "metrics": _metrics(self.metrics),
            "training": _training(self.training),
            "seconds": _number(self.seconds, "seconds", least=0),
            "versions": _mapping(self.versions, "versions"),
            "device": _text(self.device, "device"),
            "time": _utc(self.time),
        }
        if self.size == ELSEWHERE:
            for name, pattern, words in (("recipe", _HASH, "16"), ("sha256", _SHA256, "64")):
                _text(checked["settings"].get(name), f"settings.{name}", pattern, f"{words} hexadecimal digits")
        for package, version in checked["versions"].items():
            _text(version, f"versions[{package!r}]")
        if self.commit is not None:
            _text(self.commit, "commit", _COMMIT, "the full hexadecimal name of a commit, or null")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def cell(self) -> Cell:
        """The key of this result."""
        return Cell(self.hash, self.seed, self.suite)

    def to_json(self) -> str:
        """The line of the ledger in ASCII, without the newline."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Entry:
        """Read what `to_json` wrote.

        Raises:
            LedgerError: if the line is not a JSON object, has another schema, or lacks a field or has an unknown one.
        """
        content = parse_json(text)
        _need(isinstance(content, dict), "line", "a JSON object", content)
        version = content.pop("schema", None)
        if isinstance(version, bool) or version != SCHEMA:
            raise LedgerError(
                f"schema: expected {SCHEMA}, got {version!r}. Read the ledger with the version of this project that "
                "wrote it, or move it away and measure again."
            )
        names = {field.name for field in fields(cls)}
        if set(content) != names:
            missing, unknown = sorted(names - set(content)), sorted(set(content) - names)
            raise LedgerError(f"fields: expected those of the schema, got none named {missing}, unknown {unknown}.")
        return cls(**content)
