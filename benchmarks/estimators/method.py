"""One entry of the comparison."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Method:
    """A way to compute one quantity of one case.

    Attributes:
        name: the way.
        quantity: what it computes; methods of the same quantity are timed against each other.
        call: computes it; a 0-dim tensor, or several values whose first or mean is the quantity.
        kind: `"value"`, in multiples of a forward pass, or `"gradient"`, in multiples of a training step.
        passes: rough guess of that multiple, so that what cannot fit into a budget is not started.
        prepare: builds what is not timed (compilation, tracing) and returns `call`; instead of `call`.
    """

    name: str
    quantity: str
    call: Callable[[], Tensor] | None = None
    kind: str = "value"
    passes: float = 1.0
    prepare: Callable[[], Callable[[], Tensor]] | None = None

    def ready(self) -> Callable[[], Tensor]:
        """The function to time.

        Raises:
            ImportError: if it needs a package that is missing.
            NotImplementedError: if the method does not support the case.
        """
        return self.call if self.prepare is None else self.prepare()
