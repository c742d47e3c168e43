"""Cross-check of the papers' printed numbers, by rules that look at the numbers alone.

    python -m experiments audit

A finding is a remark on a table, not on its authors: most are slips of typesetting, and none changes a conclusion by
itself. A mean of numbers that are printed to 0.1 may differ by 0.1 from the printed mean.
"""

from __future__ import annotations

from .audit_links import (
    ablation,
    benchmarks,
    decomposition,
    detail_means,
    printed_means,
    submissions,
    submitted_networks,
    text_claims,
)
from .audit_rules import bold_is_best, falling, lost_digits, noise_order, ranges, repetitions, whole_counts
from .findings import AuditReport, Finding, RuleResult
from .published import Published, load_published

__all__ = ["RULES", "AuditReport", "Finding", "RuleResult", "audit", "report_markdown"]

RULES = (
    *(lost_digits, ranges, falling, bold_is_best, whole_counts, noise_order, repetitions),
    *(detail_means, printed_means, ablation, decomposition, submissions, benchmarks, submitted_networks, text_claims),
)


def audit(published: Published | None = None) -> AuditReport:
    """Apply every rule.

    Returns:
        The findings with their numbers, and for each rule how many checks found nothing.
    """
    published = load_published() if published is None else published
    return AuditReport(tuple(rule(published) for rule in RULES))


def report_markdown(report: AuditReport) -> str:
    """The findings and the checks that found nothing, as Markdown."""
    lines = ["# Cross-check of the printed numbers", ""]
    for number, finding in enumerate(report.findings, 1):
        words = f"{finding.what} {finding.suggestion}".rstrip()
        lines.append(f"{number}. **{finding.table}, {finding.row}** ({finding.severity}). {words}")
    lines += ["", "| check | found nothing | of |", "|---|---:|---:|"]
    lines += [f"| {what} | {passed} | {checked} |" for what, passed, checked in report.checks_passed]
    return "\n".join(lines) + "\n"
