"""Start a training from the weights of another one. Only the classifier is new."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .checkpoint import CheckpointError, load_checkpoint


def classifier_name(model: nn.Module) -> str:
    """Name of the last linear layer, which computes the logits in all networks of `experiments.models`."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"model: expected a linear layer at the end, got {type(model).__name__} without any.")
    return names[-1]


def _remedy(hash: str, seed: int) -> str:
    from ..recipes import all_recipes, in_bfloat16

    known = all_recipes().items()
    names = [name for name, recipe in known if recipe.hash == hash]
    names = names or [f"{name} in bfloat16" for name, recipe in known if in_bfloat16(recipe).hash == hash]
    what = (
        f"{' or '.join(names)} (the same training, {hash})" if names else f"the training {hash}, which no recipe has,"
    )
    return f"run {what} with seed {seed} first, with the same folder of runs"


def load_pretrained(model: nn.Module, path: Path, *, hash: str, seed: int) -> None:
    """Load all weights and running statistics except those of the classifier (NoisyMix, Table 5).

    Args:
        model: network; it keeps its own classifier.
        path: file `final.pt` of the other training.
        hash: hash of the other training.
        seed: random seed of the other training, the same as that of the new one.

    Raises:
        CheckpointError: if the other training is not finished, its file is damaged, or its network is a different one.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected initial weights, but there is no such file; {_remedy(hash, seed)}.")
    content = load_checkpoint(path, hash=hash, seed=seed)
    head = f"{classifier_name(model)}."
    own = {name: value.shape for name, value in model.state_dict().items() if not name.startswith(head)}
    taken = {name: value for name, value in content["model"].items() if not name.startswith(head)}
    found = {name: value.shape for name, value in taken.items()}
    if found != own:
        wrong = sorted(set(found.items()) ^ set(own.items()))[0][0]
        raise CheckpointError(
            f"{path}: expected weights of the same network but for {head[:-1]}, got others, such as {wrong}; give both "
            "trainings the same model and model_options."
        )
    model.load_state_dict(taken, strict=False)
