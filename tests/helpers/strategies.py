"""Hypothesis strategies: seeds, sizes, activations, layers, laws; the numbers themselves come from seeded draws."""

import torch
from hypothesis import strategies as st
from problems import mlp, randn

SMOOTH = ("tanh", "silu", "gelu", "softplus")
LOSSES = ("cross_entropy", "logistic", "square")


@st.composite
def settings_of_the_theory(draw):
    """A network, data and options: `(model, x, y, options)`."""
    seed = draw(st.integers(0, 10_000))
    loss = draw(st.sampled_from(LOSSES))
    outputs = 1 if loss == "logistic" else draw(st.integers(2, 4))
    width, depth, inputs = draw(st.integers(2, 5)), draw(st.integers(0, 2)), draw(st.integers(1, 3))
    model = mlp(seed, [inputs, *[width] * depth, outputs], draw(st.sampled_from(SMOOTH)))
    n = draw(st.integers(2, 5))
    x = randn(seed + 1, n, inputs)
    generator = torch.Generator().manual_seed(seed + 2)
    if loss == "cross_entropy":
        y = torch.randint(outputs, (n,), generator=generator)
    elif loss == "logistic":
        y = torch.randint(2, (n,), generator=generator).double()
    else:
        y = randn(seed + 3, n, outputs)
    options = {
        "loss": loss,
        "layer": draw(st.sampled_from(["", *[str(2 * k + 1) for k in range(depth)]])),
        "alpha": draw(st.sampled_from([0.2, 1.0, 2.5])),
        "beta": draw(st.sampled_from([None, 0.7])),
        "add_noise": draw(st.sampled_from([0.0, 0.5])),
        "mult_noise": draw(st.sampled_from([0.0, 0.4])),
        "noise": draw(st.sampled_from(["normal", "uniform", "rademacher", "released"])),
    }
    return model, x, y, options
