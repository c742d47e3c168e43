r"""Second directional derivatives without nested differentiation (book: eq-tangent-adjoint).

| module | what it holds |
|---|---|
| `tape.py` | `Recorder`, which records a head operation by operation |
| `rules.py`, `linear.py`, `products.py`, `nonlinear.py`, `activations.py` | rules of the operations |
| `standardization.py`, `attention.py` | rules of norms and of attention |
| `series.py` | Taylor series of products, elementwise functions, softmax and powers |
| `local.py` | the rule for all other operations |
| `base.py` | `Linearization`, the interface: Jacobian rows, tangents `J v` and `a·∇²f[v, v]` |
| `taped.py` | `Linearization` from the recorded operations |
| `linearization.py` | `Linearization` by nested `torch.func`, and the choice between the two |
"""

from .base import Linearization
from .linearization import linearize, linearize_layer

__all__ = ["Linearization", "linearize", "linearize_layer"]
