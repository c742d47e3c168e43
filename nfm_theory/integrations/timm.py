r"""A drop-in for `timm.data.Mixup`: the step of the theory with the options of timm's training script.

| option of timm's script | here |
|---|---|
| `--mixup ALPHA` | `law=Law(alpha=ALPHA)`, with noise if wanted |
| `--mixup-prob` | `prob` |
| `--cutmix`, `--mixup-switch-prob` | `cutmix_alpha`, `switch_prob` |
| `--mixup-mode` | `mode` |
| `--mixup-off-epoch` | the script sets `mixup_enabled` |
| `--smoothing` | `label_smoothing` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..setting.checks import level, one_of
from ..setting.draws import Draw
from ..setting.law import Law
from ..setting.random_numbers import uniform
from ..training.layer_draw import LayerDraw, checked_replay
from ..training.mixup import NoisyFeatureMixup

Mode = Literal["batch", "elem", "pair", "half"]


@dataclass(frozen=True)
class SharedDraw(LayerDraw):
    """A step in which λ and partners are shared in one of timm's modes, or a step of CutMix.

    Attributes:
        batch: number of samples of the batch; in mode `"half"` the draw has half as many rows.
        box: for CutMix, `(1 or rows, 1, H, W)`, True where the partner shows; `None` for other steps.
    """

    batch: int
    box: Tensor | None = None

    @property
    def samples(self) -> int:
        """Number of samples of the batch."""
        return self.batch


class TimmMixup(NoisyFeatureMixup):
    r"""`NoisyFeatureMixup` with the options of `timm.data.Mixup`: `input, target = mixup_fn(input, target)`.

    With probability `prob` a step changes the batch. With probability `switch_prob` such a step is CutMix at the input,
    and otherwise the step of NFM at one of the layers. The targets are distributions `(n, K)` for timm's
    `SoftTargetCrossEntropy`, in every step. Unlike timm's class, this one keeps the tensors that it is given, and
    decides about `prob` and `switch_prob` once for a batch in every mode.

    | mode | weight λ | partner of sample i |
    |---|---|---|
    | `"batch"` | one for the batch | by a random permutation |
    | `"elem"` | one for each sample | by a random permutation |
    | `"pair"` | one for each pair | n - 1 - i, as in timm |
    | `"half"` | one for each pair | n - 1 - i; the first half of the batch is mixed, the second half goes |

    In mode `"half"` the mixed features and the targets have n / 2 rows, as with timm's `FastCollateMixup`.

    Source: Zhang et al. 2018 (Mixup), Yun et al. 2019 (CutMix), and timm's `mixup.py` for the options.

    Args:
        model: network, as in `NoisyFeatureMixup`.
        layers: names of the eligible layers, or a mapping from layers to laws.
        law: law of mixing and noise at every layer.
        prob: probability in [0, 1] that a step changes the batch.
        cutmix_alpha: parameter α ≥ 0 of the law Beta(α, α) of the share of the image that stays; 0 is without CutMix.
        switch_prob: probability in [0, 1] of CutMix instead of NFM, if `cutmix_alpha` is positive.
        mode: how λ and partners are shared, see above.
        num_classes: number K of classes.
        label_smoothing: s in [0, 1).
        generator: random generator of all draws; the global one if `None`.

    Attributes:
        mixup_enabled: False ends the mixing; timm's script sets it at `--mixup-off-epoch`. The same as `enabled`.

    Raises:
        TypeError: if `model` is no module, and if layers or laws are missing or of the wrong kind.
        ValueError: for unknown or repeated layers, and a probability, an α or a mode out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> mixup_fn = TimmMixup(model, ["", "1"], Law(), mode="half", num_classes=2)
        >>> input, target = mixup_fn(torch.eye(6, 3), torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> model(input).shape, target.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    _options = ("prob", "cutmix_alpha", "switch_prob", "mode", "num_classes", "label_smoothing")

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] | Mapping[str, Law],
        law: Law | None = None,
        *,
        prob: float = 1.0,
        cutmix_alpha: float = 0.0,
        switch_prob: float = 0.5,
        mode: Mode = "batch",
        num_classes: int = 1000,
        label_smoothing: float = 0.1,
        generator: torch.Generator | None = None,
    ):
        for name, value in (("prob", prob), ("switch_prob", switch_prob)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {value!r}.")
        self.prob, self.switch_prob, self.mode = prob, switch_prob, one_of("mode", mode, get_args(Mode))
        self.cutmix_alpha = level("cutmix_alpha", cutmix_alpha)
        self._again: LayerDraw | None = None
        super().__init__(
            model, layers, law, num_classes=num_classes, label_smoothing=label_smoothing, generator=generator
        )

    @property
    def mixup_enabled(self) -> bool:
        """False if the batches stay as they are."""
        return self.enabled

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        self.enabled = value

    # What differs from the step of NFM ------------------------------------------------------------------------

    def _happens(self, probability: float) -> bool:
        """Draw an event, without a random number if it is certain."""
        if probability in (0, 1):
            return probability == 1
        return float(uniform((), self.generator, "cpu")) < probability

    def _mixes(self) -> bool:
        return self._again is not None or (self.enabled and self._happens(self.prob))

    def _open(self, x: Tensor, y: Tensor, views: int, replay: LayerDraw | None) -> tuple[Tensor, Tensor]:
        if views != 1:
            raise ValueError(f"views: expected 1, got {views}; NoisyFeatureMixup has steps with several views.")
        self._again = None
        if isinstance(replay, SharedDraw) and replay.box is not None:
            self._again, replay = checked_replay(replay, {"": Law()}, len(y)), None
        return super()._open(x, y, views, replay)

    def _step(self, x: Tensor, views: int) -> LayerDraw:
        if self._again is not None:
            return self._again
        step = super()._step(x, views)
        cut = self.cutmix_alpha > 0 and self._happens(self.switch_prob)
        if cut and (x.ndim < 4 or not x.is_floating_point()):
            raise ValueError(
                f"x: CutMix expected floating-point images (n, C, H, W), got {x.dtype} of shape {tuple(x.shape)}; set "
                "cutmix_alpha=0."
            )
        law = Law(alpha=self.cutmix_alpha) if cut else self.laws[step.layer]
        draw = step.draw if self.mode == "batch" and not cut else self._shared(step.draw, law)
        if not cut:
            return SharedDraw(step.layer, draw, len(step.draw))
        box = self._boxes(draw.lam if self.mode != "batch" else draw.lam[:1], *x.shape[-2:]).to(x.device)
        kept = 1 - box.flatten(1).to(draw.lam).mean(1)  # a box at the border is smaller than 1 - λ
        return SharedDraw("", replace(draw, lam=kept.expand(len(draw)).clone()), len(step.draw), box)

    def _shared(self, draw: Draw, law: Law) -> Draw:
        """λ and partners in the mode."""
        n, index, anchor = len(draw), draw.index, draw.anchor
        if self.mode in ("pair", "half"):
            if self.mode == "half" and n % 2:
                raise ValueError(f"x: mode='half' expected an even number of samples, got {n}; drop the last one.")
            index = anchor.flip(0)
        rows = n // 2 if self.mode == "half" else n
        pairs = {"batch": 1, "elem": n, "pair": (n + 1) // 2, "half": rows}[self.mode]
        lam = law.mixing.sample((pairs,), unmixed=False, generator=self.generator, dtype=draw.lam.dtype)
        lam = lam.to(draw.lam.device)
        if self.mode == "pair":
            lam = torch.cat([lam, lam[: n // 2].flip(0)])
        return Draw(anchor[:rows], lam.expand(rows).clone(), index[:rows])

    def _boxes(self, lam: Tensor, height: int, width: int) -> Tensor:
        """Boxes of a share 1 - λ of the image around random centers, cut at the border: `(m, 1, H, W)`, True inside."""
        sides, center = (1 - lam.cpu().double()).sqrt(), uniform((2, len(lam)), self.generator, "cpu").cpu()
        inside = []
        for size, middle in zip((height, width), center, strict=True):
            length, at = (size * sides).floor(), (size * middle).floor()
            low, high = at - (length / 2).floor(), at + ((length + 1) / 2).floor()
            place = torch.arange(size)
            inside.append((place >= low.unsqueeze(1)) & (place < high.unsqueeze(1)))
        return (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)

    def _mix(self, h: Tensor) -> Tensor:
        step = self.last
        if not isinstance(step, SharedDraw) or step.box is None:
            return super()._mix(h)
        return torch.where(step.box, h[step.draw.index], h[step.draw.anchor])
