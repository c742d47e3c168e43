"""Every kind of module that PyTorch has is certified or refused by name: a new one can slip in nowhere."""

import importlib
import inspect
import pkgutil
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from nfm_theory.adversarial.module_chain import DROPOUTS, NORMS, SUPPORTED_TYPES
from nfm_theory.adversarial.relaxations import network_steps

LINEAR, CONVOLUTION = nn.Linear(2, 2), nn.Conv2d(2, 2, 1)
ENCODER, DECODER = nn.TransformerEncoderLayer(2, 2), nn.TransformerDecoderLayer(2, 2)
#: Arguments, of which the first that fit make a module.
ARGUMENTS = (
    (), (2,), (2, 2), (2, 2, 2), (2, 4), ([2, 4],), (1, [1, 2]), (2, 2, [1]), ("LSTM", 2, 2), (2, 2, True, 4),
    (ENCODER, 1), (DECODER, 1), (LINEAR,), (CONVOLUTION,), (LINEAR, nn.ReLU()), (CONVOLUTION, nn.ReLU()),
    (LINEAR, nn.BatchNorm1d(2)), (CONVOLUTION, nn.BatchNorm2d(2)), (CONVOLUTION, nn.BatchNorm2d(2), nn.ReLU()),
)  # fmt: skip


def built(kind):
    """A module of this kind, or `None` if none of the arguments fits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for arguments in ARGUMENTS:
            for options in ({}, {"qconfig": torch.ao.quantization.get_default_qat_qconfig("fbgemm")}):
                try:
                    return kind(*arguments, **options)
                except Exception:  # each kind refuses in its own way
                    continue
    return None


def modules_in(namespace):
    return {k for k in vars(namespace).values() if inspect.isclass(k) and issubclass(k, nn.Module)}


def quantized_kinds():
    """All kinds of `torch.ao.nn` and `torch.ao.quantization`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [info.name for info in pkgutil.walk_packages(torch.ao.nn.__path__, "torch.ao.nn.")]
        places = [importlib.import_module(name) for name in (*names, "torch.ao.quantization")]
    return {kind for place in places for kind in modules_in(place) if kind.__module__.startswith("torch.ao")}


def refused(module, name):
    """True if both modes are refused with the name in the message."""
    network = nn.Sequential(nn.Linear(2, 2), module)
    for training in (True, False):
        with pytest.raises(ValueError, match=name):
            network_steps(network.train(training))
    return True


def name_of(module):
    """How a message calls a module: its own name for itself, or that of its class."""
    return f"(?s){type(module).__name__}|{module._get_name()}|{type(module).__mro__[1].__name__}"


def test_every_other_kind_of_torch_nn_is_refused():
    kinds = modules_in(nn) - set(SUPPORTED_TYPES) - {nn.Sequential}
    assert len(kinds) > 120
    for kind in kinds:
        module = built(kind)
        assert module is not None, kind
        assert refused(module, name_of(module))


def test_every_quantized_kind_is_refused_unless_it_runs_its_modules_one_after_the_other():
    found = [module for kind in quantized_kinds() if (module := built(kind)) is not None]
    accepted = {m for m in found if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward}
    assert len(found) > 80
    assert {type(m).__name__ for m in accepted} >= {"LinearReLU", "ConvReLU2d", "ConvBn2d"}
    for module in set(found) - accepted:
        assert refused(module, r"(?s)certificate|model")
    fused = next(m for m in accepted if type(m).__name__ == "LinearReLU").eval()
    assert len(network_steps(nn.Sequential(fused))) == 2


@pytest.mark.parametrize("kind", DROPOUTS + NORMS, ids=lambda kind: kind.__name__)
def test_what_is_random_or_uses_the_batch_is_refused_in_training_mode(kind):
    network = nn.Sequential(nn.Linear(2, 2), kind(2) if kind in NORMS else kind())
    with pytest.raises(ValueError, match=f"{kind.__name__} '1' is in training mode; call model.eval"):
        network_steps(network.train())
    assert network_steps(network.eval())
    if kind in NORMS:
        network[1] = kind(2, track_running_stats=False).eval()
        with pytest.raises(ValueError, match="uses the statistics of the batch"):
            network_steps(network)


class Shaken(nn.Module):
    def forward(self, weight):
        return weight + 0.1 * torch.rand_like(weight)


def sparse(linear):
    linear.weight = nn.Parameter(linear.weight.detach().to_sparse(), requires_grad=False)


def whole(linear):
    linear.weight = nn.Parameter(linear.weight.detach().long(), requires_grad=False)


def complex_numbers(linear):
    linear.weight = nn.Parameter(linear.weight.detach() + 0j, requires_grad=False)


def random_weight(linear):
    parametrize.register_parametrization(linear, "weight", Shaken())


def random_bias(linear):
    parametrize.register_parametrization(linear, "bias", Shaken())


def buffer(linear):
    value = linear.weight.detach() * float("nan")
    del linear.weight
    linear.register_buffer("weight", value)


WEIGHTS = {
    sparse: "dense floating-point", whole: "dense floating-point", complex_numbers: "dense floating-point",
    random_weight: "differs from call to call", random_bias: "differs from call to call", buffer: "is not finite",
    nn.Module.half: "one dtype", lambda linear: linear.to("meta"): "dense floating-point",
}  # fmt: skip


@pytest.mark.parametrize("change", WEIGHTS, ids=lambda change: change.__name__)
def test_weights_that_say_less_than_the_forward_computes_are_refused(change):
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    change(network[2])
    with pytest.raises(ValueError, match=WEIGHTS[change]):
        network_steps(network.eval())


@pytest.mark.parametrize("change", [torch.jit.script, torch.fx.symbolic_trace, nn.DataParallel])
def test_networks_in_another_form_are_refused_by_name(change):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated
        network = change(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval())
    with pytest.raises(ValueError, match=r"an nn\.Sequential"):
        network_steps(network)
