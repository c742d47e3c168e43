"""What the book says about recorded verdicts and certificates."""

import json

import pytest

from figures.fig_cost import RESULTS


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_no_right_term_is_refuted_and_no_wrong_one_holds():
    counts = read("verdicts")["counts"]
    for name, found in counts.items():
        right = name.endswith("right terms")
        assert set(found) <= ({"holds", "undecided"} if right else {"refuted", "not resolved", "undecided"}), name
    assert counts["float64, right terms"] == {"holds": read("verdicts")["seeds"]}


@pytest.mark.parametrize("kind", ["false", "computed"])
def test_no_certificate_is_false(kind):
    found = read("certificate_rounding")["found"]
    assert found["networks"] >= 10_000
    assert found[kind] == 0
