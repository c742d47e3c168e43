"""A generator that is none, and a radius that is no number, are answered by a sentence wherever they are taken."""

import pytest
import torch

import nfm_theory as nt

LAW, MIXUP = nt.Law(add_noise=0.4, mult_noise=0.2), nt.Law()


@pytest.fixture(scope="module")
def settings():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
        x = torch.randn(5, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1, 1])
    return model, nt.Problem(model.eval(), x, y, law=LAW), nt.Problem(model, x, y, law=MIXUP)


TAKERS = {
    "Monte Carlo": lambda model, p, mixed, g: nt.loss(p, 0.5, "monte_carlo", samples=1000, generator=g),
    "as trained": lambda model, p, mixed, g: nt.loss(p, 1.0, "as_trained", samples=100, generator=g),
    "verify": lambda model, p, mixed, g: nt.verify(p, generator=g),
    "error curve": lambda model, p, mixed, g: nt.error_curve(p, generator=g),
    "report": lambda model, p, mixed, g: nt.report(p, generator=g),
    "regularizers": lambda model, p, mixed, g: nt.regularizers(p, method="probes", generator=g),
    "step": lambda model, p, mixed, g: nt.NoisyFeatureMixup(model, [""], LAW, generator=g),
    "penalty": lambda model, p, mixed, g: nt.TaylorRegularizer("", LAW, generator=g),
    "draw": lambda model, p, mixed, g: nt.sample_draw(5, (3,), LAW, generator=g),
    "lambda": lambda model, p, mixed, g: nt.MixingLaw(1.0).sample((3,), generator=g),
    "noise": lambda model, p, mixed, g: LAW.noises[0].sample((3,), generator=g),
    "bound": lambda model, p, mixed, g: nt.adversarial.bound(mixed, 0.1, generator=g),
    "validity": lambda model, p, mixed, g: nt.adversarial.validity_radius(mixed, generator=g),
    "worst case": lambda model, p, mixed, g: nt.adversarial.worst_case(mixed, 0.1, generator=g),
    "attack": lambda model, p, mixed, g: nt.adversarial.pgd_attack(mixed, 0.1, restarts=2, generator=g),
    "flip": lambda model, p, mixed, g: nt.adversarial.flip_radius(mixed, generator=g),
    "k-mixup": lambda model, p, mixed, g: nt.generalization.k_mixup_weights(
        p.features, 5, method="monte_carlo", sweeps=2, generator=g
    ),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(("given", "way_out"), [(3, r"manual_seed\(3\)"), ("7", r"manual_seed\(0\)")])
def test_a_seed_is_no_generator(settings, taker, given, way_out):
    with pytest.raises(TypeError, match=rf"^generator: expected a torch.Generator or None, got {given!r}; .*{way_out}"):
        TAKERS[taker](*settings, given)


@pytest.mark.parametrize("taker", sorted(set(TAKERS) - {"step", "penalty", "verify", "report", "error curve"}))
def test_a_generator_is_taken(settings, taker):
    first, again = (TAKERS[taker](*settings, torch.Generator().manual_seed(1)) for _ in range(2))
    assert repr(first) == repr(again)


@pytest.mark.parametrize("radius", ["0.1", None, [0.1, "a"], {}])
def test_a_radius_that_is_no_number_is_told(settings, radius):
    with pytest.raises(TypeError, match=r"^radius: expected a number, or a tensor of one for each example, got"):
        nt.adversarial.worst_case(settings[2], radius)
