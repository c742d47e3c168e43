"""The index: every statement with its verdict, by group, and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from .check import OPEN, Check
from .empirical import MORE, claim_statements, table_statements
from .evidence import Records
from .neighbors import NEIGHBORS
from .statement import (
    CONTRADICTED,
    IN_PART,
    LIMITED,
    NOT_REPRODUCED,
    NOT_RUN,
    NOT_TESTABLE,
    PAPERS,
    PROVED,
    REFUTED,
    REPRODUCED,
    THEORY,
    UNDECIDED,
    VERIFIED,
    Statement,
    Verdict,
)
from .theory import STATEMENTS
from .where import WHERE

#: Groups of statements in the order of the index.
GROUPS = (
    "NFM, theory", "NoisyMix, theory", "Mixup, theory", "New here", "Tables", "Figures", "Claims on tables",
    "Other claims", "Neighbors",
)  # fmt: skip
_WEAK = "with a weakness"
#: What verdicts are summed up to, from the best to the unknown, and the words that belong there.
CLASSES: dict[str, tuple[str, ...]] = {
    "proved, verified or reproduced": (PROVED, VERIFIED, REPRODUCED),
    f"reproduced, {_WEAK}": (REPRODUCED,),
    "in part, or within limits": (LIMITED, IN_PART),
    "undecided": (UNDECIDED,),
    f"not reproduced, {_WEAK}": (NOT_REPRODUCED,),
    "refuted or not reproduced": (REFUTED, NOT_REPRODUCED, CONTRADICTED),
    "not run or not testable": (NOT_RUN, NOT_TESTABLE),
}


@cache
def all_statements() -> tuple[Statement, ...]:
    """Every statement: theory, published tables and figures, claims about them, other claims.

    Raises:
        ValueError: if two have the same id.
    """
    found = (*STATEMENTS, *table_statements(), *claim_statements(), *MORE, *NEIGHBORS, *WHERE)
    twice = [name for name, n in Counter(statement.id for statement in found).items() if n > 1]
    if twice:
        raise ValueError(f"ids: expected each once, got several of {', '.join(twice)}.")
    return found


def group_of(statement: Statement) -> str:
    """The group of a statement in the index."""
    if statement.paper in ("here", "neighbors"):
        return {"here": "New here", "neighbors": "Neighbors"}[statement.paper]
    if statement.kind in THEORY:
        return {"nfm": "NFM, theory", "noisymix": "NoisyMix, theory", "mixup": "Mixup, theory"}[statement.paper]
    if statement.kind == "claim":
        return "Claims on tables" if statement.table else "Other claims"
    return {"table": "Tables", "figure": "Figures"}[statement.kind]


def class_of(verdict: Verdict) -> str:
    """What a verdict is summed up to, a key of `CLASSES`.

    Example:
        >>> class_of(Verdict("reproduced", "90 against 80 %", "digits", "within noise"))
        'reproduced, with a weakness'
    """
    if verdict.weakness and verdict.word in (REPRODUCED, NOT_REPRODUCED):
        return f"{verdict.word}, {_WEAK}"
    return next(name for name, words in CLASSES.items() if verdict.word in words and _WEAK not in name)


@dataclass(frozen=True)
class JudgedStatement:
    """A statement and the verdict on it."""

    statement: Statement
    verdict: Verdict

    @property
    def group(self) -> str:
        """The group of the statement."""
        return group_of(self.statement)

    @property
    def standing(self) -> str:
        """What the verdict is summed up to, a key of `CLASSES`."""
        return class_of(self.verdict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain text and numbers, for JSON."""
        s, v = self.statement, self.verdict
        return {
            "id": s.id, "paper": PAPERS[s.paper], "group": self.group, "kind": s.kind, "number": s.number,
            "statement": s.words, "verdict": v.word, "qualifier": v.qualifier, "size": v.size, "weakness": v.weakness,
            "seeds": v.seeds, "detail": v.detail, "page": f"{s.page}#{s.label}" if s.label else s.page,
            "evidence": list(s.evidence), "comparisons": [one.to_dict() for one in v.comparisons],
            "command": s.command,
        }  # fmt: skip

    def cells(self) -> list[str]:
        """Three cells of a MyST table: the statement with its source, the verdict, the evidence with the command."""
        s, v = self.statement, self.verdict
        verdict = f"**{v.word}**" + (f" ({v.qualifier})" if v.qualifier else "") + f": {escape(v.detail)}"
        evidence = "<br>".join([reference(s), *(f"`{path}`" for path in s.evidence), f"again: `{s.command}`"])
        return [f"*{s.number}* (`{s.id}`). {escape(s.words)}", verdict, evidence]


def escape(text: str) -> str:
    """Text for a cell of a Markdown table: bars are escaped, and what could be markup outside formulas."""
    parts = re.split(r"(\$[^$]*\$)", text)
    plain = [re.sub(r"([|*_<>\\])", r"\\\1", part) for part in parts[::2]]
    formulas = [part.replace("|", r"\vert ") for part in parts[1::2]]
    return "".join(a + b for a, b in zip(plain, [*formulas, ""], strict=True))


def reference(statement: Statement) -> str:
    """A link to the statement's place in the book, as MyST."""
    page, label = f"{{doc}}`{statement.page}`", statement.label
    if label.startswith("eq-"):
        return f"{page} {{eq}}`{label}`"
    if label.startswith(("thm-", "prop-", "lem-", "cor-")):
        return f"{{prf:ref}}`{label}`"
    return f"{{ref}}`{label}`" if label else page


def index(records: Records, paper: str | None = None, patterns: Sequence[str] = ()) -> tuple[JudgedStatement, ...]:
    """Judge statements.

    Args:
        records: the records of this project, or others.
        paper: key of `PAPERS`; `None` for all papers.
        patterns: ids, with `*` and `?` as in a shell; none for all.

    Raises:
        ValueError: for an unknown paper, or if nothing matches a pattern.
    """
    if paper is not None and paper not in PAPERS:
        raise ValueError(f"paper: expected one of {', '.join(PAPERS)}; got {paper!r}.")
    for pattern in patterns:
        if not any(fnmatchcase(statement.id, pattern) for statement in all_statements()):
            raise ValueError(f"id: nothing matches {pattern!r}; `python -m experiments claims` lists the ids.")
    chosen = [s for s in all_statements() if paper in (None, s.paper)]
    if patterns:
        chosen = [s for s in chosen if any(fnmatchcase(s.id, pattern) for pattern in patterns)]
    return tuple(JudgedStatement(statement, statement.verdict(records)) for statement in chosen)


def num_judged(records: Records) -> int:
    """How many statements get a verdict. Every quick computation leads to one, hence none is carried out."""
    unknown = Check(OPEN, "not computed")
    quick = replace(records, checks=dict.fromkeys(records.checks, lambda: unknown))
    return sum(one.verdict.word != NOT_RUN for one in index(quick))


def count(judged: Iterable[JudgedStatement]) -> dict[str, Counter[str]]:
    """How many verdicts of each class every group has, in the order of `GROUPS`; empty groups are left out."""
    found: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}
    for one in judged:
        found[one.group][one.standing] += 1
    return {group: counter for group, counter in found.items() if counter}
