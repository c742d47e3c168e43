"""What the page on the adversarial bound says in words is what its tracked records show.

The tables of the page are computed, its sentences are not: a study that is recorded again can make them wrong.
"""

from collections import defaultdict
from statistics import fmean, median

import pytest

from experiments.record.files import RESULTS, read_lines

RECORDS = read_lines(RESULTS / "bounds.jsonl")
RADII = ("sharp", "certified", "flip")
NETWORKS = [(model, classes) for model in ("leaky_mlp", "relu_mlp") for classes in (2, 10)]


def refuted(record):
    return [side["eps"] for side in record["bound"] if side["verdict"] == "refuted"]


def fails(record):
    return set(record["bound"][0]["failed"])


def radius(model, classes, scheme, name):
    """Mean over the seeds of the median radius; a label that is never flipped has an infinite one."""
    some = [r for r in RECORDS if (r["model"], r["classes"], r["scheme"]) == (model, classes, scheme)]
    return fmean(median(float("inf") if v is None else v for v in r["points"][name]) for r in some)


def test_networks_that_meet_every_assumption_are_certified_at_every_scale():
    some = [r for r in RECORDS if r["model"] == "leaky_mlp" and not fails(r)]
    assert {r["classes"] for r in some} == {2, 10}
    assert {side["verdict"] for r in some for side in r["bound"]} == {"certified"}


def test_binary_networks_with_biases_are_refuted_at_small_scales_only():
    some = [r for r in RECORDS if (r["model"], r["classes"]) == ("relu_mlp", 2)]
    for r in some:
        scales = sorted(side["eps"] for side in r["bound"])
        assert "homogeneity" in fails(r)
        assert refuted(r)
        assert sorted(refuted(r)) == scales[: len(refuted(r))]
        assert max(scales) not in refuted(r)


def test_with_ten_classes_only_networks_with_a_sample_on_the_wrong_side_are_refuted():
    some = [r for r in RECORDS if r["classes"] == 10]
    assert all("Θ" in fails(r) for r in some if refuted(r))
    assert any(refuted(r) for r in some if r["model"] == "leaky_mlp")  # without biases too


def test_the_validity_radius_is_0_or_1_for_every_network():
    assert {r["validity"]["sharp"]["certified"] for r in RECORDS} == {0.0, 1.0}
    per_scheme = defaultdict(set)
    for r in RECORDS:
        per_scheme[r["scheme"]].add(r["validity"]["sharp"]["certified"])
    assert all(values == {0.0, 1.0} for values in per_scheme.values())  # so it ranks no scheme


@pytest.mark.parametrize("name", RADII)
@pytest.mark.parametrize(("model", "classes"), NETWORKS)
def test_the_order_of_the_schemes(model, classes, name):
    at = {scheme: radius(model, classes, scheme, name) for scheme in ("erm", "mixup", "manifold", "nfm")}
    assert at["mixup"] < at["erm"]
    assert at["mixup"] < at["manifold"] < at["nfm"]
    assert (at["nfm"] > at["erm"]) == (classes == 10)
