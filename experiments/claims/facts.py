"""Facts that several pages of the book state, each computed in one place, from the records."""

from __future__ import annotations

import math
from statistics import median

import nfm_theory as nt

from ..studies.study import format_gain
from ..tables.findings import AuditReport
from .evidence import Records


def facts(records: Records) -> dict[str, str]:
    """The facts by name, as they stand in the text.

    Returns:
        `c3_within`: largest relative error of the predicted coefficient over all verified expansions, in percent.
        `verified_cases`, `verified_networks`, `verified_layers`: how many expansions they are, of how many different
        networks and layers.
        `radius`, `off_at_one`: medians over layers of trained networks of the ε up to which the second-order expansion
        is within 10 %, and of its relative error at ε = 1 in percent; `trained_networks`, `trained_layers` count them.
        `released_add`, `released_mult`: standard deviation of the released noise of level 1, in percent.
        `robust_gain`, `robust_cost`: accuracy of NFM minus that of plain training on Fashion-MNIST in points, with the
        95 % interval over the seeds, under white noise of `robust_level` and on clean images.
        `copied_cells`: number of cells in which the row "Noisy Mixup" of NFM Table 1 equals that of Table 2.
    """
    reports = [record["report"] for record in records.expansion]
    networks = {(r["model"], r["classes"], r.get("seed", 0)) for r in records.expansion}
    layers = {(r["model"], r["classes"], r.get("seed", 0), r["layer"]) for r in records.expansion}
    curves = records.validity
    radii = [1.0 if r["curve"]["radius"]["2"] is None else r["curve"]["radius"]["2"] for r in curves]
    errors = [r["curve"]["relative_error"]["2"][-1] for r in curves]
    add, mult = nt.Law.released(add_noise=1.0, mult_noise=1.0).noises
    fashion = records.studies["fashion-compact"]
    noise = fashion.matched("white_noise")
    return {
        "c3_within": f"{100 * max(abs(report['coefficient_ratio'] - 1) for report in reports):.1f}",
        "verified_cases": str(len(reports)),
        "verified_networks": str(len(networks)),
        "verified_layers": str(len(layers)),
        "radius": f"{median(radii):.2f}",
        "off_at_one": f"{100 * median(errors):.0f}",
        "trained_networks": str(len({(r["data"], r["model"], r["training"]) for r in curves})),
        "trained_layers": str(len({(r["data"], r["model"], r["training"], r["layer"]) for r in curves})),
        "released_add": f"{100 * math.sqrt(add.second):.0f}",
        "released_mult": f"{100 * math.sqrt(mult.second):.0f}",
        "robust_gain": format_gain(fashion.gain("nfm", "baseline", noise)),
        "robust_cost": format_gain(fashion.gain("nfm", "baseline", "clean")),
        "robust_level": noise.partition("/")[2],
        "copied_cells": _copied(records.audit),
    }


def _copied(report: AuditReport) -> str:
    """Number of cells of the row that NFM Table 1 has from Table 2."""
    name = "repetition:nfm-table1:noisy_mixup:nfm-table2:noisy_mixup"
    return str(next((finding.numbers["cells"] for finding in report.findings if finding.id == name), 0))
