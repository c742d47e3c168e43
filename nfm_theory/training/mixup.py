r"""Training with Noisy Feature Mixup: the step of the theory inside any training loop.

| symbol | here |
|---|---|
| k, drawn uniformly for each batch | `NoisyFeatureMixup.last.layer` |
| $\lambda \sim \mathrm{Beta}(\alpha, \beta)$, the partners, $\xi_{add}, \xi_{mult}$ | `NoisyFeatureMixup.last.draw` |
| $(1 + \sigma_{mult}\xi_{mult}) \odot (\lambda g_i + (1-\lambda) g_r) + \sigma_{add}\xi_{add}$ | `perturb` |
| $\lambda y_i + (1-\lambda) y_r$ | the targets returned |

As in the papers' code, all samples of a batch have the same λ, the same layer and partners from one permutation. With
mixed labels λ is drawn from Beta(α, β). With `form="unmixed"` each sample keeps its label, λ is drawn from the unmixed
law, and any scale ε is possible. Features of a hidden layer can only be mixed inside the forward pass: a call for such
a layer returns the inputs unchanged, and a forward hook mixes in the pass that follows (`passes`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..setting.checks import level
from ..setting.draws import Draw, sample_draw
from ..setting.inputs import Inputs, as_inputs, batch_size, floating_dtype, leaves
from ..setting.law import Law
from ..setting.matching import rematched
from ..setting.perturbation import perturb
from ..setting.random_numbers import checked_generator, home_of
from ..setting.targets import mixable_labels
from .hooks import unwrap
from .layer_draw import LayerDraw, check_features, checked_replay
from .options import Form, check_batch, check_form, check_matching, laws_of
from .passes import Passes


class NoisyFeatureMixup:
    r"""Train-time NFM for any model and any loop: `inputs, targets = nfm(x, y)`, then a step as usual.

    $$ \tilde g_i = (1 + \sigma_{mult}\,\xi_{mult}) \odot (\lambda g_i + (1-\lambda) g_r) + \sigma_{add}\,\xi_{add},
       \qquad \tilde y_i = \lambda y_i + (1-\lambda) y_r \qquad \text{(book: eq-perturbation at ε = 1)} $$

    A law without noise gives Mixup at the input, and Manifold Mixup at several layers; `Law(lam=0.5)` gives midpoint
    Mixup, and `matching=k` k-mixup. A law with noise gives noisy Mixup at the input, and NFM at several layers. With
    `alpha=0` it only adds noise, and no sample changes its place. Sequences of different lengths are padded with zeros
    and carry one more channel, 1 inside the sequence and 0 behind it. It is mixed like the others, and the network
    takes it as the weight of each time.
    If a hidden layer is drawn, its output is mixed in the next forward pass in training mode.

    With hidden layers, one forward pass of the whole model must follow each call. Another pass, or a pass of a part of
    the model, is an error. For several passes on one batch, as in sharpness-aware minimization, closures of L-BFGS or
    self-distillation, there is `with nfm.step(x, y) as (inputs, targets):`. All passes inside are mixed with the same
    draw, also those of a part of the model, and none outside. Passes inside `with nfm.clean():` are not mixed. Passes
    in evaluation mode are never mixed and do not count.

    `form="unmixed"` is a step on the loss L(ε) of the theory (book: eq-nfm-loss): λ has the unmixed law, `1-λ` and both
    levels are multiplied by ε, and each sample keeps its label. At ε = 1 its expected loss is that with mixed labels.

    The model keeps its parameters and its state dict. Wrap it in `DistributedDataParallel` before or after this object
    is built, but compile it after. A copy of the model is never mixed. Call `nfm.remove()` before the model is exported
    or scripted in training mode. In a `collate_fn` with worker processes only the input can be mixed, with draws that
    differ from worker to worker. This class does not check that all that follows a layer depends on its output alone,
    as the theory assumes; `split` and `layer_names` check it.

    Args:
        model: network whose inputs have the batch dimension first.
        layers: dotted names of the eligible layers, `""` for the input; each step draws one of them with equal
            probability (`layer_names(model)` lists all layers). A mapping from layers to laws,
            `{"": law, "layer1": weaker}`, gives each layer its own law.
        law: law of mixing and noise at every layer; leave it out if `layers` is a mapping. `Law.released(...)` is the
            law of the papers' code.
        num_classes: number K of classes, if the labels are class indices, of samples or of positions.
        label_smoothing: s in [0, 1); the targets become `(1 - s) y + s / K`.
        view_noise: factors of σ_add, one for each view of a call with `views`; (1, 2, 3) in the released NoisyMix code.
        eps: scale ε ≥ 0 of mixing and noise; mixed labels allow 1 only.
        form: form of the labels, `"mixed"` as in the papers, or `"unmixed"` as in the theory.
        matching: k of k-mixup: partners are matched between random sets of k samples of the batch, by optimal transport
            in squared distance between the inputs, whichever layer is mixed. 1 is Mixup, and the size of the batch
            leaves every sample in place. `generalization.k_mixup_weights(x, k)` is the law of these partners.
        generator: random generator of all draws; the global one if `None`. For features on another device it seeds a
            generator there at every step, so that a generator on the CPU serves any model.

    Attributes:
        layers: names of the eligible layers.
        laws: law of mixing and noise of each eligible layer, by name.
        enabled: False leaves the batches as they are; class indices become distributions as ever. A loop sets it to
            end the mixing, for the last epochs for example.
        last: `LayerDraw` of the last step, `None` before the first and after one that does not mix.
            `nfm(x, y, replay=nfm.last)` repeats it bit by bit. The noise at a hidden layer is missing until the pass.

    Raises:
        TypeError: if `model` is no module, if layers or laws are missing, and if they or the generator are of the wrong
            kind.
        ValueError: for unknown or repeated layers, a compiled model, a model with the hooks of another such object, and
            options out of range.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> seeded = torch.Generator().manual_seed(0)
        >>> from nfm_theory import Law
        >>> law = Law(add_noise=0.4, mult_noise=0.2)
        >>> nfm = NoisyFeatureMixup(model, ["", "1"], law, num_classes=2, generator=seeded)
        >>> inputs, targets = nfm(torch.ones(6, 3), torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        >>> targets.shape, nfm.last.layer, nfm.last.draw.add.shape
        (torch.Size([6, 2]), '', torch.Size([6, 3]))
    """

    #: The options of which a copy needs the values.
    _options = ("num_classes", "label_smoothing", "view_noise", "eps", "form", "matching")

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] | Mapping[str, Law],
        law: Law | None = None,
        *,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        view_noise: Sequence[float] | None = None,
        eps: float = 1.0,
        form: Form = "mixed",
        matching: int = 1,
        generator: torch.Generator | None = None,
    ):
        self._model = unwrap(model)
        self.laws = laws_of(layers, law)
        self.layers = tuple(self.laws)
        # λ and partners are drawn first, and the noise in the forward pass, when the shape of the features is known
        self._quiet = {name: replace(one, add_noise=0.0, mult_noise=0.0) for name, one in self.laws.items()}
        if num_classes is not None and num_classes < 2:
            raise ValueError(
                f"num_classes: expected K >= 2, got {num_classes}; for binary labels leave it out and pass y.float()."
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing!r}.")
        self.eps, self.form, self.matching = level("eps", eps), check_form(form, eps), check_matching(matching)
        self.num_classes, self.label_smoothing = num_classes, float(label_smoothing)
        self.view_noise = None if view_noise is None else tuple(level("view_noise", v) for v in view_noise)
        self.generator, self.enabled = checked_generator(generator), True
        self.last: LayerDraw | None = None
        self._views, self._replay, self._in_order = 1, False, True
        self._fallback: torch.Generator | None = None
        self._worker: int | None = None
        self._passes = Passes(self._model, self.layers, self)

    def __call__(self, x: Inputs, y: Tensor, *, views: int = 1, replay: LayerDraw | None = None) -> tuple[Any, Tensor]:
        """Draw a step for one forward pass: mix the targets, and either the inputs or the features in that pass.

        Args:
            x: inputs, `(views * n, *input)`; floating point if the input is an eligible layer. With hidden layers alone
                they may be a tuple or a dict of tensors, which is returned as it is.
            y: class indices `(n, *positions)`, distributions over the classes `(n, K, *positions)`, or floating-point
                targets `(n, *out)`. A class index of -100 does not count. `CrossEntropy.targets` makes distributions
                with another `ignore_index`, weights of classes or positions, or the classes last.
            views: number of views of each sample; `x` holds the batch of the first view, then that of the second, and
                so on. All views share λ and the partners, each is mixed within itself, and each has its own noise, as
                in NoisyMix.
            replay: step to repeat, instead of drawing a new one.

        Returns:
            Inputs `(views * n, *input)` for the model, `x` itself when a hidden layer is mixed, and mixed targets:
            `(n, K, *positions)` for class indices, in the dtype of `x`, and the shape of `y` otherwise. The loss of a
            batch is `F.cross_entropy(model(inputs), targets)`: the mixture of the losses of both samples, each with
            its own positions that count.

        Raises:
            RuntimeError: if there was no forward pass since the previous call, inside `step`, if the hooks are removed,
                if the model is in evaluation mode, and for hidden layers in a worker process of a data loader.
            TypeError: for integer inputs that would be mixed.
            ValueError: for labels that do not fit, and for a replay that does not fit the batch or the layers.
        """
        self._check_ready()
        return self._open(x, y, views, replay)

    @contextlib.contextmanager
    def step(
        self, x: Inputs, y: Tensor, *, views: int = 1, replay: LayerDraw | None = None
    ) -> Iterator[tuple[Any, Tensor]]:
        """A step for any number of forward passes: `with nfm.step(x, y) as (inputs, targets):`.

        Inside, all passes in training mode are mixed with the same draw; a batch of another size is refused. Outside,
        none is mixed.

        Args:
            x: inputs, as in a call.
            y: labels, as in a call.
            views: number of views of each sample, as in a call.
            replay: step to repeat, instead of drawing a new one.

        Returns:
            A context with the inputs and targets that a call returns.

        Raises:
            RuntimeError: as a call, and at the end if no pass was mixed; call `disarm` if you skip a batch.
            TypeError: as a call.
            ValueError: as a call.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
            >>> from nfm_theory import Law
            >>> nfm = NoisyFeatureMixup(model, ["1"], Law(), num_classes=2)
            >>> with nfm.step(torch.eye(3), torch.tensor([0, 1, 1])) as (inputs, targets):
            ...     torch.equal(model(inputs), model(inputs))
            True
        """
        self._check_ready()
        self._passes.scope = True
        try:
            yield self._open(x, y, views, replay)
            self._passes.check_unused()
        finally:
            self._passes.scope = False
            self._passes.close()

    def clean(self) -> contextlib.AbstractContextManager[None]:
        """A context, `with nfm.clean():`, in which forward passes are neither mixed nor counted."""
        return self._passes.clean()

    def disarm(self) -> None:
        """End the step: later passes are neither mixed nor refused, for example because the batch was skipped."""
        self._passes.close()

    def remove(self) -> None:
        """Remove the hooks from the model; the end of a `with` block does the same."""
        self._passes.close()
        self._passes.remove()

    def __enter__(self) -> NoisyFeatureMixup:
        return self

    def __exit__(self, *exception) -> None:
        self.remove()

    def __reduce__(self):
        # A copy together with its model has its own hooks on the copied model, and a generator in the same state
        device = None if self.generator is None else str(self.generator.device)
        options = {"layers": self.laws} | {name: getattr(self, name) for name in self._options}
        return _rebuild, (type(self), self._model, options, device, self.state_dict()), {"enabled": self.enabled}

    def state_dict(self) -> dict[str, Tensor | None]:
        """State of the generator between two steps; `None` without one, since the caller saves the global generator.

        Layers and laws are not part of the state: give them again when the object is rebuilt.
        """
        return {"generator": None if self.generator is None else self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Continue from a saved state: the following steps are the same bit by bit.

        Args:
            state: what `state_dict()` returned.

        Raises:
            ValueError: if the state was saved with a generator and this object has none, or the other way round.
        """
        saved = state["generator"]
        if (saved is None) != (self.generator is None):
            have, want = ("no generator", "one") if self.generator is None else ("a generator", "none")
            raise ValueError(
                f"state: it was saved with {want}, this object has {have}; build both with `generator=` or neither."
            )
        if saved is not None and self.generator is not None:
            self.generator.set_state(saved.cpu())  # a checkpoint may have been loaded to another device

    # One step ----------------------------------------------------------------------------------------------

    def _check_ready(self) -> None:
        if self._passes.removed:
            raise RuntimeError("NoisyFeatureMixup: its hooks have been removed; build a new one.")
        if self._passes.scope:
            raise RuntimeError(
                "NoisyFeatureMixup: expected one step at a time, got another one inside `with nfm.step(...)`; use the "
                "inputs and targets of that step, or end its block first."
            )
        self._passes.check_unused()
        if not self._model.training:
            raise RuntimeError(
                "model: expected training mode, got evaluation mode, in which nothing is mixed; call model.train(), "
                "or leave NoisyFeatureMixup out of evaluation."
            )
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.seed != self._worker:
            self._enter_worker(worker.seed)

    def _enter_worker(self, seed: int) -> None:
        """In a worker process of a data loader: own draws, since each worker has a copy of the same generator."""
        if self._passes.hidden:
            raise RuntimeError(
                f"layers: expected ('',), the input, in a worker process of a data loader, got {self.layers}. Hidden "
                "features are mixed in the forward pass, which runs in another process; call NoisyFeatureMixup in the "
                "training loop instead of the collate function."
            )
        if self.generator is not None:
            drawn = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
            self.generator.manual_seed((drawn + seed) % 2**63)
        self._worker = seed

    def _open(self, x: Inputs, y: Tensor, views: int, replay: LayerDraw | None) -> tuple[Any, Tensor]:
        """Draw or repeat a step, and mix the targets and, if they are drawn, the inputs."""
        x = as_inputs(x)
        rows, place, dtype = batch_size(x), leaves(x)[0].device, floating_dtype(x)
        check_batch(x, len(y), views, self.layers, self.view_noise)
        labels = mixable_labels(y.to(place), dtype, self.num_classes, self.label_smoothing)
        if replay is None and not self._mixes():
            self.last = None
            self._passes.open("", self._mix)  # the pass is counted, and no layer is mixed
            return x, labels
        step = self._step(x, views) if replay is None else checked_replay(replay, self.laws, rows)
        draw = step.draw
        own = draw if views == 1 else draw[: len(y)]
        self._views = views
        self._replay = replay is not None
        self._in_order = len(draw) == rows and (
            replay is None or bool((draw.anchor == torch.arange(rows, device=draw.anchor.device)).all())
        )
        lam = own.lam.to(labels).reshape(-1, *[1] * (labels.ndim - 1))
        targets = labels[own.anchor]
        if self.form == "mixed":
            targets = lam * targets + (1 - lam) * labels[own.index]
        self.last = step
        inputs = self._mix(x) if not step.layer and isinstance(x, Tensor) else x
        self._passes.open(step.layer, self._mix)
        return inputs, targets

    def _mixes(self) -> bool:
        """True if the next step mixes."""
        return self.enabled

    def _mix(self, h: Tensor) -> Tensor:
        """Mix the features of the layer drawn. The first time draws their noise, later times repeat it."""
        step = cast(LayerDraw, self.last)
        check_features(step, h)
        self.last = step = self._complete(step, h)
        self._replay = True
        return self._perturb(step, h)

    def _step(self, x: Inputs, views: int) -> LayerDraw:
        """Draw layer, λ and partners on the device of the generator, so that no GPU has to be waited for."""
        home = home_of(self.generator, torch.device("cpu"))
        layer = self.layers[int(torch.randint(len(self.layers), (), generator=self.generator, device=home))]
        draw = sample_draw(
            batch_size(x) // views, (), self._quiet[layer], as_trained=True, unmixed=self.form == "unmixed",
            generator=self.generator, dtype=floating_dtype(x), device=home,
        )  # fmt: skip
        if self.matching > 1:
            draw = replace(draw, index=rematched(x, len(draw), self.matching, self.generator).to(home))
        if views > 1:
            offsets = (len(draw) * torch.arange(views, device=home)).repeat_interleave(len(draw))
            draw = Draw(offsets + draw.anchor.repeat(views), draw.lam.repeat(views), offsets + draw.index.repeat(views))
        ahead = home.type == "cpu"  # a copy from a GPU must be waited for
        place = leaves(x)[0].device
        parts = {name: getattr(draw, name).to(place, non_blocking=ahead) for name in ("anchor", "lam", "index")}
        return LayerDraw(layer, Draw(**parts))

    def _complete(self, step: LayerDraw, h: Tensor) -> LayerDraw:
        """Draw the noise of the step for features `h`; a replay has it already."""
        if self._replay:
            return step
        law, noises = self.laws[step.layer], {}
        for name, size, noise in zip(("add", "mult"), (law.add_noise, law.mult_noise), law.noises, strict=True):
            if size:
                options = {"generator": self._source(h.device), "dtype": h.dtype, "device": h.device}
                shape = (len(step.draw), *h.shape[1:])
                noises[name] = noise.sample(shape, shared=len(step.draw) // self._views, **options)
        return replace(step, draw=replace(step.draw, **noises))

    def _source(self, device: torch.device) -> torch.Generator | None:
        """A generator on the device of the features, where large noise should be drawn."""
        if self.generator is None or self.generator.device == device:
            return self.generator
        if self._fallback is None or self._fallback.device != device:
            self._fallback = torch.Generator(device)
        seed = torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
        return self._fallback.manual_seed(int(seed))

    def _perturb(self, step: LayerDraw, h: Tensor) -> Tensor:
        """Apply the step to the features `h`, in their dtype."""
        draw = step.draw
        add, mult = (None if part is None else part.to(h) for part in (draw.add, draw.mult))
        if self.view_noise is not None and add is not None:
            factors = torch.tensor(self.view_noise, dtype=h.dtype).repeat_interleave(len(h) // self._views)
            add = add * factors.to(h.device).reshape(-1, *[1] * (h.ndim - 1))
        # `perturb` only takes rows by the anchor. A slice avoids gathering all samples, and scattering them backward.
        anchor = cast(Tensor, slice(None)) if self._in_order else draw.anchor.to(h.device)
        rows = Draw(anchor, draw.lam.to(h), draw.index.to(h.device), add, mult)
        return perturb(h, rows, self.laws[step.layer], eps=self.eps)


def _rebuild(kind, model, options, device, state):
    generator = None if device is None else torch.Generator(device)
    nfm = kind(model, generator=generator, **options)
    nfm.load_state_dict(state)
    return nfm
