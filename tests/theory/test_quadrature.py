import itertools

import numpy as np
import pytest
import torch

import nfm_theory as nt
from nfm_theory.setting.quadrature import build_grid, noise_rule, rule_points

LIKE = torch.zeros(1, dtype=torch.float64)
LAWS = {
    "normal": nt.NoiseLaw("normal"),
    "uniform": nt.NoiseLaw("uniform"),
    "rademacher": nt.NoiseLaw("rademacher"),
    "released": nt.NoiseLaw("normal", True),
    "sparse": nt.NoiseLaw("uniform", True, 0.5),
}


def monomial_moment(laws, d, powers):
    """E of a monomial in independent noises whose elements are exchangeable within a noise."""
    value = 1.0
    for k, law in enumerate(laws):
        mine = sorted((p for p in powers[k * d : (k + 1) * d] if p), reverse=True)
        if any(p % 2 for p in mine):
            return 0.0
        value *= {(): 1.0, (2,): law.second, (4,): law.fourth, (2, 2): law.mixed_fourth}[tuple(mine)]
    return value


@pytest.mark.parametrize("name", ["tensor", "cubature-3", "cubature-5"])
@pytest.mark.parametrize("pair", [("normal", None), ("released", None), (None, "uniform"), ("normal", "normal")])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_rules_integrate_every_monomial_up_to_their_degree(name, pair, d):
    laws = [None if key is None else LAWS[key] for key in pair]
    present = [law for law in laws if law is not None]
    rule = noise_rule(name, d, *laws, num_nodes=4)
    nodes = np.concatenate([part.numpy() for part in (rule.add, rule.mult) if part is not None], axis=1)
    degree = {"tensor": 5, "cubature-3": 3, "cubature-5": 5}[name]
    assert len(nodes) == rule_points(name, d, *laws, 4) or d == 1
    assert rule.weights.sum() == pytest.approx(1.0)
    for powers in itertools.product(range(degree + 1), repeat=d * len(present)):
        if sum(powers) <= degree:
            value = rule.weights.numpy() @ np.prod(nodes ** np.array(powers), axis=1)
            assert value == pytest.approx(monomial_moment(present, d, powers), abs=1e-12)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_tensor_rule_gives_smooth_expectations(law):
    rule = noise_rule("tensor", 2, law, None, num_nodes=12)
    value = rule.weights @ torch.cos(rule.add.sum(-1))
    xi = law.sample((400_000, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = torch.cos(xi.sum(-1))
    assert abs(value - draws.mean()) <= 5 * draws.std() / len(draws) ** 0.5


def test_degree_five_rule_in_high_dimension_is_tame():
    rule = noise_rule("cubature-5", 40, LAWS["normal"], None)
    assert rule.amplification < 4


def test_grid_covers_every_pair_and_its_weights_sum_to_one():
    grid = build_grid(
        3, (2,), nt.MixingLaw(1.0), LAWS["normal"], None,
        rule="tensor", degree=3, num_lam=2, num_noise=2, unmixed=True, max_rows=1000,
    )  # fmt: skip
    assert grid.rows == 3 * 3 * 2 * 4
    blocks = list(grid.blocks(7, like=LIKE, title="rows"))
    assert sum(len(draw) for draw, _ in blocks) == grid.rows
    assert max(len(draw) for draw, _ in blocks) == 7
    assert sum(weights.sum() for _, weights in blocks) == pytest.approx(1.0)
    pairs = {(i, r) for draw, _ in blocks for i, r in zip(draw.anchor.tolist(), draw.index.tolist(), strict=True)}
    assert pairs == set(itertools.product(range(3), repeat=2))
    total = sum(weights @ draw.lam for draw, weights in blocks)
    assert total == pytest.approx(1 - nt.MixingLaw(1.0).moment(1))


def test_without_mixing_the_only_partner_is_the_sample_itself():
    options = {"rule": "tensor", "degree": 3, "num_lam": 4, "num_noise": 2, "unmixed": True, "max_rows": 100}
    grid = build_grid(3, (2,), nt.MixingLaw(0.0), None, None, **options)
    ((draw, _),) = grid.blocks(100, like=LIKE, title="rows")
    assert torch.equal(draw.anchor, draw.index)
    assert (draw.lam == 1).all()


@pytest.mark.parametrize(("degree", "chosen"), [(3, "cubature-3"), (5, "cubature-5")])
def test_auto_takes_the_law_itself_where_it_fits_and_the_cheapest_cubature_elsewhere(degree, chosen):
    def rule(d):
        return build_grid(
            2, (d,), nt.MixingLaw(1.0), LAWS["normal"], None,
            rule="auto", degree=degree, num_lam=2, num_noise=4, unmixed=True, max_rows=100_000,
        ).rule.name  # fmt: skip

    assert (rule(2), rule(20)) == ("tensor", chosen)


def test_errors_give_sizes_and_ways_out():
    with pytest.raises(nt.GridTooLargeError, match=r"25 pairs of samples × 2 λ nodes × 4\.77e\+14 noise nodes"):
        build_grid(
            5, (20,), nt.MixingLaw(1.0), nt.NoiseLaw(beta_scaled=True), None,
            rule="tensor", degree=3, num_lam=2, num_noise=5, unmixed=True, max_rows=10**6,
        )  # fmt: skip
    with pytest.raises(nt.GridTooLargeError, match="use a cubature of lower degree"):
        noise_rule("tensor", 30, LAWS["rademacher"], None)
    with pytest.raises(ValueError, match="expected one of"):
        noise_rule("simplex", 2, LAWS["normal"], None)
    with pytest.raises(ValueError, match="No real degree-5 rule"):
        noise_rule("cubature-5", 5, LAWS["normal"], nt.NoiseLaw("normal", True, 0.99))


def test_a_count_beyond_floats_is_told_as_a_power_of_ten():
    """12 nodes for each of 2 x 200 coordinates: the message must not overflow."""
    with pytest.raises(nt.GridTooLargeError, match=r"needs 10\^43\d evaluations of the head"):
        build_grid(
            2, (200,), nt.MixingLaw(), nt.NoiseLaw(), nt.NoiseLaw(),
            rule="tensor", degree=4, num_lam=2, num_noise=12, unmixed=True, max_rows=1000,
        )  # fmt: skip
