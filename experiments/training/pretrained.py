"""Start a training from the weights of another one; only the classifier is new."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .checkpoint import CheckpointError, load_checkpoint


def classifier_name(model: nn.Module) -> str:
    """Dotted name of the last linear layer, whose outputs are the logits in all networks of `experiments.models`.

    Args:
        model: network.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(f"model: expected a linear layer at the end, got {type(model).__name__} without any.")
    return names[-1]


def _remedy(hash: str, seed: int) -> str:
    from ..recipes import all_recipes

    names = [name for name, recipe in all_recipes().items() if recipe.hash == hash]
    what = f"{' or '.join(names)} (one training, {hash})" if names else f"the training {hash}, which no recipe has,"
    return f"run {what} with seed {seed} first, in the same folder of runs"


def load_pretrained(model: nn.Module, path: Path, *, hash: str, seed: int) -> None:
    """Take over all weights and running statistics but those of the classifier (NoisyMix, Table 5).

    Args:
        model: network; it keeps its own classifier.
        path: `final.pt` of the other training.
        hash: of that training.
        seed: of that training, the same as of the new one.

    Raises:
        CheckpointError: if the other training is not finished, its file is damaged, or it is of another network.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the weights to start from, but there is no such file; "
                              f"{_remedy(hash, seed)}.")  # fmt: skip
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
