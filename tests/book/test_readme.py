"""The README names what exists; its examples run as doctests, and its figure shows the tracked verifications."""

import re
from pathlib import Path

import pytest

import nfm_theory as nt
from experiments.claims import load_records
from experiments.claims.facts import facts
from experiments.record.files import RESULTS, read_lines

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bnt((?:\.[A-Za-z_]\w*)+)", README))))
def test_names_exist(name):
    found = nt
    for part in name[1:].split("."):
        found = getattr(found, part)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)|`([\w./-]+/[\w.-]+)`", README))))
def test_links_and_paths_of_the_repository_exist(path):
    assert (ROOT / "".join(path)).exists()


def test_the_figure_shows_expansions_that_hold():
    reports = [record["report"] for record in read_lines(RESULTS / "expansion.jsonl")]
    assert "figures/remainder.svg" in README
    assert all(report["verdict"] == "holds" for report in reports)
    assert sum(report["pathwise"][1] for report in reports) == 0


def test_findings_have_the_numbers_of_the_records():
    found = facts(load_records())
    for words in (
        "within {c3_within} % in all {verified_cases} cases",
        "at {verified_layers} layers of {verified_networks} trained", "miss {off_at_one} %",
        "over {trained_layers} layers of {trained_networks} trained", "up to ε = {radius}",
        "of {released_add} % (added) and {released_mult} % (multiplied)", "in all {copied_cells} cells",
    ):  # fmt: skip
        assert words.format(**found) in " ".join(README.split())
