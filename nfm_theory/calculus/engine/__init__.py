r"""Second directional derivatives without nested differentiation (book: eq-tangent-adjoint).

| module | what it holds |
|---|---|
| `tape.py` | a head written down operation by operation |
| `rules.py`, `linear.py`, `products.py`, `nonlinear.py`, `activations.py` | what each operation does to tangents |
| `local.py` | the rule for any other operation |
| `base.py`, `taped.py` | tangents, Jacobian rows and `a·∇²f[v, v]` of a head, in general and by the tape |
| `linearization.py` | the same by nested `torch.func`, and which of the two is taken |
"""

from .base import Linearization
from .linearization import linearize, linearize_layer

__all__ = ["Linearization", "linearize", "linearize_layer"]
