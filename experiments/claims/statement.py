"""A statement of a paper, or of this project, and the verdict on it.

A function computes the verdict from the records (`evidence.Records`). Only `NOT_RUN` and `NOT_TESTABLE` may be given
without a computation, and then with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tables.claims import Evaluated
    from .evidence import Records

PROVED, VERIFIED, LIMITED = "proved", "verified", "holds, within limits"
REFUTED, UNDECIDED = "refuted", "undecided"
REPRODUCED, IN_PART, NOT_REPRODUCED = "reproduced", "reproduced in part", "not reproduced"
CONTRADICTED, NOT_RUN, NOT_TESTABLE = "contradicted in print", "not run", "not testable"

#: Every word that a verdict may have, and what it means.
VOCABULARY: dict[str, str] = {
    PROVED: "SymPy derives it for generic functions, in the small dimensions that are named, each time the verdict is "
    "asked for.",
    VERIFIED: "Measured on networks: in every case the predicted order and coefficient, an identity up to rounding, or "
    "an inequality with certificates on both sides.",
    LIMITED: "It holds where its assumptions do and ε is small; where they do not, or ε is not, a measured case fails.",
    REFUTED: "A measured case within its assumptions contradicts it.",
    UNDECIDED: "Measured, but attack and certificate, or the noise, leave it open.",
    REPRODUCED: "Our means have the order that is claimed, at the size named beside the verdict.",
    IN_PART: "For tables and figures: some of the claims on it are reproduced, some are not.",
    NOT_REPRODUCED: "Our means have another order than is claimed, at the size named beside the verdict.",
    CONTRADICTED: "Not run here; the paper's own printed numbers do not show it.",
    NOT_RUN: "No network was trained for it here; the reason stands beside it, and the command says what would.",
    NOT_TESTABLE: "No source says what would have to be compared.",
}

#: The papers that make the statements.
PAPERS = {
    "nfm": "Noisy Feature Mixup (arXiv 2110.02180)",
    "noisymix": "NoisyMix (arXiv 2202.01263)",
    "mixup": "Theory of Mixup (arXiv 2010.04819)",
    "neighbors": "Neighbors of the theory",
    "here": "New here",
}
KINDS = ("theorem", "lemma", "proposition", "corollary", "table", "figure", "claim")
#: Kinds that a proof or a verification decides; the others are about trained networks.
THEORY = ("theorem", "lemma", "proposition", "corollary")
#: Where the number of a statement is in none of our sources.
AS_STATED = "as stated in `notation`"


@dataclass(frozen=True)
class Verdict:
    """What the records say about a statement.

    Attributes:
        word: a word of `VOCABULARY`.
        detail: the numbers behind the word.
        size: the size or the study of the trained networks that decide; empty for theory.
        weakness: `one seed`, `ceiling`, `within noise`, or empty if nothing weakens the word.
        seeds: the smallest number of seeds behind a comparison; 0 for theory.
        comparisons: the comparisons of trained networks behind the word.
    """

    word: str
    detail: str
    size: str = ""
    weakness: str = ""
    seeds: int = 0
    comparisons: tuple[Evaluated, ...] = ()

    def __post_init__(self):
        """Refuse other words and empty details."""
        if self.word not in VOCABULARY:
            raise ValueError(f"word: expected one of {', '.join(VOCABULARY)}; got {self.word!r}.")
        if not self.detail.strip():
            raise ValueError("detail: expected the numbers or the reason behind the verdict, got nothing.")

    @property
    def qualifier(self) -> str:
        """Size and weakness in words, such as `digits, within noise`."""
        return ", ".join(filter(None, (self.size, self.weakness)))

    @property
    def text(self) -> str:
        """Word and qualifier, such as `reproduced (digits, within noise)`."""
        return f"{self.word} ({self.qualifier})" if self.qualifier else self.word

    def with_detail(self, detail: str) -> Verdict:
        """The same verdict with other numbers behind it."""
        return replace(self, detail=detail)


#: Computes a verdict from the records.
Judge = Callable[["Records"], Verdict]


@dataclass(frozen=True)
class Statement:
    """A statement of a paper, or of this project.

    Attributes:
        id: a name that does not change, of lower case letters, digits and hyphens.
        paper: key of `PAPERS`.
        kind: one of `KINDS`.
        number: the number in the paper, or `AS_STATED`.
        words: what it says, in our words; formulas stand between dollars.
        page: page of the book.
        label: label of a theorem or an equation on that page; empty for the page as a whole.
        evidence: files with the records and tests behind it, from the root of the repository.
        command: command that computes it again.
        verdict: function that computes the verdict from the records.
        table: id of the published table that the claim is about, if any.
    """

    id: str
    paper: str
    kind: str
    number: str
    words: str
    page: str
    label: str
    evidence: tuple[str, ...]
    command: str
    verdict: Judge = field(repr=False)
    table: str = ""

    def __post_init__(self):
        """Refuse empty cells and unknown kinds."""
        for name in ("id", "number", "words", "page", "evidence", "command"):
            if not getattr(self, name):
                raise ValueError(f"{self.id or 'a statement'}: {name} is empty.")
        for name, known in (("paper", PAPERS), ("kind", KINDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}; got {getattr(self, name)!r}.")
