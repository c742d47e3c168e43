"""The law of mixing and noise: what it draws, what its moments are, and what it refuses."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from problems import generator

import nfm_theory as nt
from nfm_theory.setting.mixing import FixedMixing
from nfm_theory.setting.noise import released_noise

NOISY = {"add_noise": 0.4, "mult_noise": 0.2}
LAWS = {
    "mixup": nt.Law(),
    "skew": nt.Law(0.5, 2.0, **NOISY),
    "midpoint": nt.Law(lam=0.5, add_noise=0.3),
    "a fixed weight": nt.Law(lam=0.2, mult_noise=0.3, noise="rademacher"),
    "noise alone": nt.Law(alpha=0, **NOISY, noise="uniform"),
    "released": nt.Law.released(**NOISY, alpha=0.7),
    "sparse": nt.Law.released(**NOISY, sparsity=0.65),
    "two noises": nt.Law(**NOISY, noise=(nt.NoiseLaw("uniform"), nt.NoiseLaw("normal", True))),
}


@pytest.mark.parametrize("name", LAWS)
def test_scales_are_the_second_moments_of_what_is_drawn(name):
    """Half the mean square of 1 - λ, of σ_add ξ_add and of σ_mult ξ_mult, in the draws of the law itself."""
    law = LAWS[name]
    draw = nt.sample_draw(4, (2,), law, replicates=50_000, generator=generator(0), dtype=torch.float64)
    drawn = {"data": 1 - draw.lam}
    if draw.add is not None:
        drawn["additive"] = law.add_noise * draw.add[:, 0]
    if draw.mult is not None:
        drawn["multiplicative"] = law.mult_noise * draw.mult[:, 0]
    switched_on = {source for source, values in drawn.items() if values.any()}
    assert set(law.scales) == switched_on
    for source, scale in law.scales.items():
        half = drawn[source] ** 2 / 2
        assert abs(float(half.mean()) - scale) <= 5 * float(half.std()) / len(half) ** 0.5


def test_the_released_law_is_that_of_the_code():
    law = nt.Law.released(**NOISY)
    assert law.noises == released_noise()
    assert law == nt.Law(noise="released", **NOISY)
    assert nt.Law.released(sparsity=0.65).noises == released_noise(0.65)
    assert nt.Law.released(alpha=0.3, beta=2.0).mixing == nt.MixingLaw(0.3, 2.0)
    assert law.scales == pytest.approx(
        {"data": 1 / 12, "additive": 0.4**2 * 3 / 28 / 2, "multiplicative": 0.2**2 / 28 / 2}
    )


def test_a_fixed_weight_takes_the_place_of_the_beta_law():
    law = nt.Law(lam=0.3)
    assert law.mixing == FixedMixing(0.3)
    assert law.scales == {"data": pytest.approx((0.3 * 0.7**2 + 0.7 * 0.3**2) / 2)}
    draw = nt.sample_draw(3, (2,), law, replicates=5, unmixed=False, generator=generator(0), dtype=torch.float64)
    assert set(draw.lam.tolist()) == {0.3}
    for wrong in ({"alpha": 2.0}, {"beta": 1.0}):
        with pytest.raises(ValueError, match="lam: expected no alpha and no beta beside a fixed weight"):
            nt.Law(lam=0.5, **wrong)


def test_alpha_zero_leaves_every_sample_at_its_place():
    law = nt.Law(alpha=0, add_noise=0.1)
    assert not law.mixing.mixes
    assert law.perturbs
    assert list(law.scales) == ["additive"]
    draw = nt.sample_draw(3, (2,), law, replicates=4, generator=generator(0))
    assert (draw.lam == 1).all()
    assert not nt.Law(alpha=0).perturbs
    assert nt.Law(lam=0.5).perturbs
    assert nt.Law().perturbs


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_plain_in_json_and_one_line_in_words(name):
    law = LAWS[name]
    facts = json.loads(json.dumps(law.to_dict(), allow_nan=False))
    assert (facts["add_noise"], facts["mult_noise"]) == (law.add_noise, law.mult_noise)
    assert facts["noise"] == [str(noise) for noise in law.noises]
    assert ("lam" in facts) == (law.lam is not None)
    assert ("alpha" in facts) == ("beta" in facts) == (law.lam is None)
    text = str(law)
    assert "\n" not in text
    assert f"add_noise = {law.add_noise:g}" in text
    assert text.endswith("noise") == isinstance(law.noise, str)
    assert eval(repr(law), {"Law": nt.Law, "NoiseLaw": nt.NoiseLaw}) == law


def test_laws_are_values():
    law = nt.Law(**NOISY)
    assert law == nt.Law(**NOISY)
    assert hash(law) == hash(nt.Law(**NOISY))
    assert replace(law, alpha=0).scales == {k: v for k, v in law.scales.items() if k != "data"}
    with pytest.raises(FrozenInstanceError):
        law.alpha = 2.0
    assert nt.Law(add_noise=1).add_noise == 1.0


BAD = [
    ({"noise": "normel"}, ValueError, r"noise: expected one of \[.*\], got 'normel' \(did you mean 'normal'\?\)\.$"),
    ({"noise": "relased"}, ValueError, "did you mean 'released'"),
    ({"noise": 3}, TypeError, "noise: expected a name, a NoiseLaw or a pair"),
    ({"noise": (nt.NoiseLaw(),)}, TypeError, "pair"),
    ({"add_noise": -0.1}, ValueError, "add_noise: expected a finite number >= 0, got -0.1"),
    ({"mult_noise": float("inf")}, ValueError, "mult_noise: expected a finite number >= 0"),
    ({"mult_noise": "0.1"}, ValueError, "mult_noise: expected a finite number >= 0"),
    ({"alpha": -1.0}, ValueError, "alpha: expected a finite number >= 0"),
    ({"beta": float("nan")}, ValueError, "beta: expected a finite number >= 0"),
    ({"lam": 1.5}, ValueError, r"lam: expected 0 <= lam <= 1, got 1\.5"),
    ({"lam": "half"}, ValueError, "lam: expected 0 <= lam <= 1, got 'half'"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_what_is_no_law_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        nt.Law(**options)


def test_sparsity_out_of_range_is_refused():
    with pytest.raises(ValueError, match="0 <= sparsity < 1"):
        nt.Law.released(sparsity=1.0)
