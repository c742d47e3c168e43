import pytest
import torch

import nfm_theory as nt

NOISY = nt.Law(add_noise=1.0, mult_noise=1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_seed_replays_and_leaves_the_global_generator_alone():
    law = nt.Law.released(add_noise=1.0, mult_noise=1.0)
    before = torch.random.get_rng_state()
    first, second = (nt.sample_draw(5, (3,), law, replicates=4, generator=seeded(7)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in ("anchor", "lam", "index", "add", "mult"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert len(first) == 20
    assert first.add.shape == (20, 3)


def test_rows_select_consistently():
    draw = nt.sample_draw(4, (2, 2), nt.Law(add_noise=0.1), generator=seeded())
    part = draw[1:3]
    assert len(part) == 2
    assert part.mult is None
    assert torch.equal(part.add, draw.add[1:3])


def test_antithetic_reverses_both_noises_and_nothing_else():
    draw = nt.sample_draw(4, (2,), NOISY, generator=seeded())
    other = nt.antithetic(draw)
    assert torch.equal(other.add, -draw.add)
    assert torch.equal(other.mult, -draw.mult)
    assert torch.equal(other.lam, draw.lam)
    silent = nt.sample_draw(4, (2,), nt.Law(), generator=seeded())
    assert nt.antithetic(silent).add is None


def test_as_trained_has_one_lambda_and_one_permutation_per_batch():
    draw = nt.sample_draw(6, (2,), NOISY, replicates=3, as_trained=True, unmixed=False, generator=seeded())
    for batch in range(3):
        rows = draw[6 * batch : 6 * batch + 6]
        assert len(set(rows.lam.tolist())) == 1
        assert sorted(rows.index.tolist()) == list(range(6))


def test_partners_are_uniform_over_all_samples_including_the_first():
    draw = nt.sample_draw(4, (), nt.Law(), replicates=5_000, generator=seeded())
    counts = torch.bincount(draw.anchor * 4 + draw.index, minlength=16).double()
    assert ((counts - 1250).abs() <= 5 * (1250 * 0.75) ** 0.5).all()


@pytest.mark.parametrize(("n", "replicates"), [(0, 1), (3, 0)])
def test_empty_draws_are_refused(n, replicates):
    with pytest.raises(ValueError, match="Expected num_samples >= 1 and replicates >= 1"):
        nt.sample_draw(n, (2,), nt.Law(), replicates=replicates)
