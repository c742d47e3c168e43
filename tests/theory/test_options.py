"""How a computation runs: memory of a block and progress bars, which do not change a result."""

import pytest
import torch
from problems import generator, mlp, randn
from torch.testing import assert_close

import nfm_theory as nt
from nfm_theory.setting.options import block_bytes, progress_bar

PROBLEM = nt.Problem(
    mlp(0, [3, 5, 3]), randn(1, 5, 3), torch.tensor([0, 1, 2, 1, 0]), law=nt.Law(add_noise=0.3, mult_noise=0.2)
)


def bar_is_shown():
    bar = progress_bar([1], title="a bar")
    shown = not bar.disable
    bar.close()
    return shown


def test_options_nest_and_end_with_their_block():
    assert block_bytes() is None
    with nt.options(block_bytes=100_000, progress=True):
        assert (block_bytes(), bar_is_shown()) == (100_000, True)
        with nt.options(progress=False):  # the other option stays
            assert (block_bytes(), bar_is_shown()) == (100_000, False)
            with nt.options(block_bytes=50_000):
                assert (block_bytes(), bar_is_shown()) == (50_000, False)
        assert (block_bytes(), bar_is_shown()) == (100_000, True)
    assert block_bytes() is None


def test_options_end_when_the_block_fails():
    with pytest.raises(KeyError), nt.options(block_bytes=1):
        raise KeyError
    assert block_bytes() is None


VERBS = {
    "terms": lambda: torch.stack(nt.terms(PROBLEM).coefficients(3)),
    "coefficients": lambda: nt.coefficients(PROBLEM, 3),
    "exact loss": lambda: nt.loss(PROBLEM, [0.5, 1.0], "exact", quadrature=nt.Quadrature(num_noise=2)).value,
    "Monte Carlo": lambda: nt.loss(PROBLEM, 0.5, "monte_carlo", samples=2_000, generator=generator(0)).value,
    "regularizers": lambda: torch.stack([nt.regularizers(PROBLEM, "exact")[k].value for k in ("R2", "R3", "R3_mult")]),
    "verify": lambda: torch.tensor(nt.verify(PROBLEM, eps=[0.1, 0.05, 0.02]).remainders, dtype=torch.float64),
}


@pytest.mark.parametrize("name", VERBS)
@torch.no_grad()
def test_results_do_not_depend_on_the_options(name, capsys):
    plain = VERBS[name]()
    with nt.options(block_bytes=200_000, progress=True):
        small = VERBS[name]()
    if name == "Monte Carlo":  # other blocks, other draws from the same generator
        assert abs(small - plain) < 0.01
    else:
        assert_close(small, plain, rtol=1e-9, atol=1e-12)
