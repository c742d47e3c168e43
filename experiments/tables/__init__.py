"""The papers' tables: printed values, ours beside them, their claims, and a cross-check of the printed numbers.

published   every printed number, typed            metrics_map  what a column measures
registry    what is known of each table            join         the recipes of a row
build       a table joined with the ledger         hardness     how much a test costs the baseline
claims      statements as data, and verdicts       render       Markdown, LaTeX, HTML
audit       rules that cross-check the numbers
"""

from __future__ import annotations

from .audit import audit
from .build import build_table, judge_claims
from .published import load_published
from .registry import TABLES

__all__ = ["TABLES", "audit", "build_table", "judge_claims", "load_published"]
