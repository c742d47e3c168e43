import numpy as np
import pytest
import torch
from scipy import integrate, stats

import nfm_theory as nt
from nfm_theory.setting import random_numbers
from nfm_theory.setting.noise import noise_pair, released_noise


def seeded(seed):
    return torch.Generator().manual_seed(seed)


PARAMETERS = [(1.0, None), (0.2, None), (2.0, 5.0), (0.7, 1.3)]


@pytest.mark.parametrize(("alpha", "beta"), PARAMETERS)
@pytest.mark.parametrize("unmixed", [True, False])
@pytest.mark.parametrize("j", [0, 1, 2, 3, 5])
def test_moments_are_integrals_of_the_density_and_sums_over_the_nodes(alpha, beta, unmixed, j):
    law = nt.MixingLaw(alpha, beta)
    p = stats.beta(law.alpha, law.beta).pdf
    # lam (p(lam) + p(1 - lam)) against (1 - lam)^j, folded onto p so that the end points stay integrable
    if unmixed:
        value = stats.beta(law.alpha, law.beta).expect(lambda t: t * (1 - t) ** j + (1 - t) * t**j)
    else:
        value = stats.beta(law.alpha, law.beta).expect(lambda t: (1 - t) ** j)
    assert law.moment(j, unmixed=unmixed) == pytest.approx(value, rel=1e-6)
    lam, weights = law.nodes(4, unmixed=unmixed)
    assert weights @ (1 - lam) ** j == pytest.approx(law.moment(j, unmixed=unmixed), rel=1e-12)
    assert np.isfinite(p(0.5))


def test_beta_one_one_has_the_moments_of_the_theory():
    law = nt.MixingLaw(1.0)
    assert [law.moment(j) for j in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 6, 1 / 10])


def test_density_of_the_unmixed_law_integrates_to_its_moments():
    law = nt.MixingLaw(2.0, 3.0)
    p = stats.beta(2.0, 3.0).pdf
    density = lambda t: t * (p(t) + p(1 - t))  # noqa: E731
    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1.0)
    assert integrate.quad(lambda t: (1 - t) ** 2 * density(t), 0, 1)[0] == pytest.approx(law.moment(2))


@pytest.mark.parametrize(("alpha", "beta"), PARAMETERS)
@pytest.mark.parametrize("unmixed", [True, False])
def test_samples_have_the_moments(alpha, beta, unmixed):
    law = nt.MixingLaw(alpha, beta)
    lam = law.sample((20_000,), unmixed=unmixed, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for j in (1, 2):
        draws = (1 - lam) ** j
        assert abs(draws.mean() - law.moment(j, unmixed=unmixed)) <= 5 * draws.std() / 20_000**0.5


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, None), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("unmixed", [True, False])
def test_alpha_zero_switches_mixing_off(alpha, beta, unmixed):
    law = nt.MixingLaw(alpha, beta)
    assert not law.mixes
    assert law.moment(1, unmixed=unmixed) == 0
    assert law.nodes(5, unmixed=unmixed)[0].tolist() == [1.0]
    lam = law.sample((500,), unmixed=unmixed, generator=torch.Generator().manual_seed(0))
    assert set(lam.tolist()) == {1.0}  # every sample stays itself: nothing changes its place in the batch


@pytest.mark.parametrize("parameters", [(1e4, 1.0), (1e-3, 1e3), (1e200, 1e200), (1e4, 1e-2)])
def test_nodes_of_extreme_laws_have_their_moments(parameters):
    law = nt.MixingLaw(*parameters)
    lam, weights = law.nodes(6)
    for j in range(1, 6):
        assert weights @ (1 - lam) ** j == pytest.approx(law.moment(j), rel=1e-9, abs=1e-15)


def test_numbers_of_numpy_are_numbers():
    assert nt.Law(np.int64(2), np.float32(0.5)).mixing.moment(1) == nt.Law(2, 0.5).mixing.moment(1)
    assert nt.TaylorRegularizer("", nt.Law(), num_probes=np.int64(2)).num_probes == 2


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None, torch.tensor(1.0)])
def test_mixing_law_refuses_what_is_no_beta_law(value):
    with pytest.raises(ValueError, match="alpha: expected a finite number >= 0"):
        nt.MixingLaw(value)


LAWS = [
    nt.NoiseLaw(base, scaled, sparsity)
    for base in ("normal", "uniform", "rademacher")
    for scaled in (False, True)
    for sparsity in (0.0, 0.65)
]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_noise_moments_are_those_of_samples_and_of_the_nodes(law):
    xi = law.sample((200_000, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for draws, moment in (
        (xi[:, 0], 0.0),
        (xi[:, 0] ** 2, law.second),
        (xi[:, 0] ** 4, law.fourth),
        (xi[:, 0] ** 2 * xi[:, 1] ** 2, law.mixed_fourth),
        (xi[:, 0] * xi[:, 1], 0.0),
    ):
        assert abs(draws.mean() - moment) <= 5 * draws.std() / len(draws) ** 0.5
    z, w = law.nodes(6)
    b, v = law.scale_nodes(4)
    for power, moment in ((2, law.second), (4, law.fourth)):
        assert (w @ z**power) * (v @ b**power) == pytest.approx(moment)


def test_released_noise_has_the_published_moments():
    add, mult = released_noise()
    assert (add.second, mult.second) == pytest.approx((3 / 28, 1 / 28))
    assert add.fourth / add.second**2 == pytest.approx(3 * (1 / 42) / (3 / 28) ** 2)
    sparse = released_noise(sparsity=0.65)
    assert (sparse[0].second, sparse[1].second) == pytest.approx((0.0375, 1 / 80))
    assert noise_pair("released") == (add, mult)


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_half_precision_has_the_draws_of_single_precision_rounded(law, dtype):
    single, half = (law.sample((500, 40), shared=10, generator=seeded(2), dtype=t) for t in (torch.float32, dtype))
    assert half.dtype == dtype
    assert torch.equal(half, single.to(dtype))
    if law.base == "rademacher" and not law.beta_scaled:
        assert set(half.unique().tolist()) == ({-1.0, 0.0, 1.0} if law.sparsity else {-1.0, 1.0})
    if law.sparsity:
        kept = float((half != 0).double().mean())
        assert abs(kept - 0.35) <= 5 * (0.35 * 0.65 / half.numel()) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draws_in_full_precision_are_those_of_plain_torch(dtype):
    """Recorded trainings depend on these numbers."""
    plain = {
        "normal": torch.randn((50, 4), generator=seeded(5), dtype=dtype),
        "uniform": 2 * torch.rand((50, 4), generator=seeded(5), dtype=dtype) - 1,
    }
    plain["rademacher"] = plain["uniform"].sign()
    for base, expected in plain.items():
        assert torch.equal(nt.NoiseLaw(base).sample((50, 4), generator=seeded(5), dtype=dtype), expected)


def test_the_middle_of_the_random_numbers_has_a_sign(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.tensor([0.25, 0.5, 0.75]))
    assert nt.NoiseLaw("rademacher").sample((3,)).tolist() == [-1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_partners_do_not_depend_on_a_default_of_half_precision(dtype):
    """Half precision has so few random numbers that ties would decide about the partners."""
    options = {"as_trained": True, "dtype": torch.float32}
    expected = nt.sample_draw(600, (), nt.Law(), generator=seeded(0), **options).index
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        found = nt.sample_draw(600, (), nt.Law(), generator=seeded(0), **options).index
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mixing", [nt.Law(), nt.Law(lam=0.3)], ids=["beta", "fixed"])
@pytest.mark.parametrize("seed", [0, None])
def test_a_device_without_float64_is_not_asked_for_it(monkeypatch, mixing, seed):
    real, asked = torch.rand, []

    def watched(*args, **options):
        asked.append((torch.device(options.get("device") or "cpu").type, options.get("dtype")))
        return real(*args, **options)

    monkeypatch.setattr(torch, "rand", watched)
    generator = None if seed is None else seeded(seed)
    place = {"generator": generator, "dtype": torch.float32, "device": "meta"}
    assert mixing.mixing.sample((4,), **place).device.type == "meta"
    for law in released_noise(0.5):
        assert law.sample((4, 3), shared=2, **place).device.type == "meta"
    assert ("meta", torch.float64) not in asked
    assert ("cpu", torch.float64) in asked


def test_a_generator_on_a_device_without_float64_seeds_one_on_the_cpu(monkeypatch):
    """Stand-in: a generator on the CPU, which is taken off the list of devices with float64."""
    monkeypatch.setattr(random_numbers, "DOUBLE", ("cuda",))
    first, again, other = (nt.MixingLaw(1.0).sample((2000,), generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.mean()) - 2 / 3) <= 5 * float(first.std()) / 2000**0.5


def test_shared_scale_is_one_scalar_per_call():
    law = nt.NoiseLaw("rademacher", beta_scaled=True)
    xi = law.sample((6, 3), shared=3, generator=torch.Generator().manual_seed(0)).abs()
    assert (xi[:3] == xi[0, 0]).all()
    assert (xi[3:] == xi[3, 0]).all()
    assert xi[0, 0] != xi[3, 0]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nt.NoiseLaw("cauchy"), ValueError, "expected one of"),
        (lambda: nt.NoiseLaw(sparsity=1.0), ValueError, "0 <= sparsity < 1"),
        (lambda: noise_pair(3), TypeError, "expected a name, a NoiseLaw or a pair"),
        (lambda: noise_pair("cauchy"), ValueError, "expected one of"),
    ],
)
def test_noise_errors_say_what_was_expected(make, error, match):
    with pytest.raises(error, match=match):
        make()
