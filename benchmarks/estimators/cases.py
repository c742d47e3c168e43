"""The networks, data and settings on which the methods are compared, with fixed seeds."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from experiments.models.preactresnet import DigitsResNet
from nfm_theory import Law, Problem
from nfm_theory.calculus.directions import coordinate_basis, second_moment_directions

from . import networks

SEED = 0
#: Dimension up to which whole Hessians and coordinate bases are formed.
DENSE = 1024


@dataclass(frozen=True)
class Setting:
    """How a case is built.

    Attributes:
        build: the network, drawn from the global generator.
        shape: shape of one input.
        batch: number of samples.
        classes: number of outputs K.
        layer: the perturbed layer, `""` for the input.
        tail: from the network to its part behind that layer.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    classes: int
    layer: str = ""
    tail: Callable[[nn.Module], Callable[[Tensor], Tensor]] = lambda model: model

    @property
    def loss(self) -> str:
        """Name of the loss."""
        return "logistic" if self.classes == 1 else "cross_entropy"


SETTINGS = {
    "tiny": Setting(lambda: networks.mlp(5, 8, 3), (5,), 6, 3),
    "tiny_hidden": Setting(lambda: networks.mlp(5, 8, 3), (5,), 6, 3, "0", lambda model: model[1:]),
    "tiny_cnn": Setting(lambda: networks.cnn(width=2, classes=3), (1, 6, 6), 4, 3),
    "mlp64": Setting(lambda: networks.mlp(64, 256, 256, 1), (64,), 256, 1),
    "mlp784": Setting(lambda: networks.mlp(784, 256, 256, 10), (784,), 256, 10),
    "cnn": Setting(networks.cnn, (1, 16, 16), 64, 10),
    "digits_resnet": Setting(lambda: DigitsResNet(10, activation="silu"), (1, 8, 8), 64, 10),
    "preact_resnet18": Setting(networks.PreActResNet18, (3, 32, 32), 32, 10),
    "preact_resnet18_stage1": Setting(
        networks.PreActResNet18, (3, 32, 32), 32, 10, "layer1", lambda m: lambda h: m.tail(m.layer2(h))
    ),
    "preact_resnet18_stage2": Setting(networks.PreActResNet18, (3, 32, 32), 32, 10, "layer2", lambda m: m.tail),
    "vit": Setting(networks.VisionTransformer, (3, 32, 32), 16, 10),
}
#: What one command runs; the tiny ones are for tests.
STANDARD = [name for name in SETTINGS if not name.startswith("tiny")]


def _network(setting: Setting) -> nn.Module:
    """The network in evaluation mode, running statistics and affine parameters of its norms not the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = setting.build().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.normal_(0, 0.2)
    return model


@dataclass(frozen=True)
class Case:
    """A network with data at one layer: `problem` for the theory, `forward` and `training_step` as the units.

    Attributes:
        name: its name.
        setting: how it was built.
        model: the network; its parameters do not require gradients.
        x: inputs.
        y: labels.
        sigma: level of the noise, additive and multiplicative.
    """

    name: str
    setting: Setting
    model: nn.Module
    x: Tensor
    y: Tensor
    sigma: float = 0.1

    @cached_property
    def problem(self) -> Problem:
        """Data mixed by Beta(1, 1) with additive and multiplicative noise."""
        return Problem(self.model, self.x, self.y, law=self.law, **self.options)

    @property
    def law(self) -> Law:
        """The law of mixing and noise."""
        return Law(add_noise=self.sigma, mult_noise=self.sigma)

    @property
    def options(self) -> dict[str, str]:
        """Layer and loss, as `nfm_theory` names them."""
        return {"layer": self.setting.layer, "loss": self.setting.loss}

    @property
    def plain_head(self) -> Callable[[Tensor], Tensor]:
        """The head as the module itself, without the checks and rewritings of `problem.head`."""
        return self.setting.tail(self.model)

    def forward(self) -> Tensor:
        """The unit of values: the head at the features, without gradients."""
        with torch.no_grad():
            return self.plain_head(self.problem.features)

    @cached_property
    def trained(self) -> "Case":
        """The same with parameters that require gradients."""
        model = _network(self.setting).to(self.x)
        return Case(self.name, self.setting, model, self.x, self.y, self.sigma)

    @cached_property
    def double(self) -> "Case":
        """The same in float64."""
        return Case(self.name, self.setting, deepcopy(self.model).double(), self.x.double(), self.y, self.sigma)

    def training_step(self) -> tuple[Tensor, ...]:
        """The unit of gradients: loss and its parameter gradient."""
        case = self.trained
        loss = self.problem.loss(case.model(case.x).reshape(len(case.x), -1), self.problem.labels).mean()
        return torch.autograd.grad(loss, list(case.model.parameters()))

    @cached_property
    def data_directions(self) -> tuple[Tensor, Tensor]:
        """Directions whose squares add up to `m2 E_r v vᵀ`: eigen-directions of the batch, and ḡ - g of each sample."""
        g, scale = self.problem.features, self.problem.mixing.moment(2) ** 0.5
        return scale * second_moment_directions(g).unsqueeze(1), scale * (g.mean(0) - g).unsqueeze(0)

    @cached_property
    def additive_directions(self) -> Tensor:
        """Directions whose squares add up to `σ² I`."""
        return self.sigma * coordinate_basis(self.problem.features).unsqueeze(1)

    @cached_property
    def merged_directions(self) -> tuple[Tensor, Tensor]:
        """Data and additive directions in one: no more of them than the dimension, and ḡ - g of each sample."""
        shared, drift = self.data_directions
        flat = torch.cat([shared, self.additive_directions]).flatten(1)
        values, vectors = torch.linalg.eigh(flat.T @ flat)
        return (vectors * values.clamp_min(0).sqrt()).T.reshape(-1, *shared.shape[1:]), drift

    def probes(self, count: int) -> Tensor:
        """Random pair directions `√(m2 / count) (g_r - g_i)`, `(count, n, *feature)`."""
        g, scale = self.problem.features, (self.problem.mixing.moment(2) / count) ** 0.5
        partners = torch.randint(len(g), (count, len(g)), generator=torch.Generator().manual_seed(SEED))
        return scale * (g[partners.to(g.device)] - g)


def build_case(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Case:
    """The case of that name.

    Args:
        name: one of `SETTINGS`.
        dtype: float32 for timing, float64 for comparing values.
        device: where it lives.
    """
    setting = SETTINGS[name]
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(setting.batch, *setting.shape, generator=generator).to(device, dtype)
    y = torch.randint(max(2, setting.classes), (setting.batch,), generator=generator).to(device)
    return Case(name, setting, _network(setting).requires_grad_(False).to(x), x, y)
