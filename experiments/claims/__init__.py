"""Every statement of the three papers with a verdict that is computed from the records of this project.

statement      a statement, a verdict, and the words that it may have
theory         theorems, lemmas and what is new here     empirical     tables, figures and claims
evidence       the records that verdicts read            checks        quick computations
verdicts       verdicts on theory                        comparisons   verdicts on trained networks
index          all statements, judged and counted
"""

from __future__ import annotations

from .evidence import Records, load_records
from .index import GROUPS, JudgedStatement, all_statements, count, group_of, index
from .statement import PAPERS, VOCABULARY, Statement, Verdict

__all__ = [
    "GROUPS",
    "PAPERS",
    "VOCABULARY",
    "JudgedStatement",
    "Records",
    "Statement",
    "Verdict",
    "all_statements",
    "count",
    "group_of",
    "index",
    "load_records",
]
