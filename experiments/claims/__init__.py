"""Every statement of the three papers with a verdict that is computed from the records of this project.

statement      a statement, a verdict, the words it may have
theory         theorems, lemmas and what is new here   empirical   tables, figures, claims on them
records        what verdicts read                      checks      quick computations: SymPy, small networks
verdicts       on theory                               trained     on trained networks
index          all statements, judged, counted, and as rows for people
"""

from __future__ import annotations

from .evidence import STAND_INS, Records, load_records
from .index import GROUPS, Row, all_statements, count, group_of, index
from .statement import PAPERS, VOCABULARY, Statement, Verdict, judge

__all__ = [
    "GROUPS",
    "PAPERS",
    "STAND_INS",
    "VOCABULARY",
    "Records",
    "Row",
    "Statement",
    "Verdict",
    "all_statements",
    "count",
    "group_of",
    "index",
    "judge",
    "load_records",
]
