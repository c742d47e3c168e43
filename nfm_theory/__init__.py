r"""The theory of Noisy Feature Mixup, NoisyMix and Mixup, to compute with.

| statement | here |
|---|---|
| the setting: network, layer, data, loss and law | `Problem`, `Law`; several branches `Branches` |
| NFM features, NFM paper §3 (book: eq-perturbation) | `perturb`, `sample_draw`, `antithetic` |
| label-unmixing lemma (book: eq-unmixing) | `Law.mixing`, `symbolic.unmixed_density` |
| NFM loss, exact, Monte Carlo, as trained (book: eq-nfm-loss) | `loss` |
| NFM Theorem 1, Mixup lemma (book: eq-expansion) | `terms` |
| predicted remainder C3 (book: eq-remainder) | `terms(problem).C3` |
| expansion of any order (book: eq-order-p) | `coefficients` |
| remainder without cancellation (book: eq-integral-remainder) | `integral_remainder` |
| pathwise interval (book: eq-lagrange) | `lagrange_interval` |
| verdict on a network | `verify`, `error_curve` |
| all of it on one page | `report` |
| the regularizers as estimators (book: eq-second-moment) | `regularizers` |
| the regularizers as a penalty | `TaylorRegularizer` |
| training with NFM | `NoisyFeatureMixup` |
| k-mixup (`matching=k`) and Midpoint Mixup (`lam=0.5`) in training | `NoisyFeatureMixup`, `Law` |
| stability loss and NoisyMix loss (book: eq-jsd, eq-noisymix) | `loss` of `Branches`, `jensen_shannon` |
| the stability loss as a term in training | `JSDConsistency` |
| stability expansion: NoisyMix Theorem 2, Proposition 1 (book: eq-jsd-expansion) | `terms` and `verify` of `Branches` |
| the closed form for equal branches (book: eq-jsd-equal) | `equal_branches_term` |
| second derivatives without nesting (book: eq-tangent-adjoint) | `linearize` |
| adversarial upper bound, attacks, certificates: NFM Theorem 2, NoisyMix Theorem 3 | `adversarial` |
| generalization, margins, relatives of Mixup | `generalization` |
| derivation in SymPy | `symbolic` |

Every verb computes outside of autocast and inference mode and without activation checkpointing, whatever surrounds the
call. Threads take turns in models and derivatives, because forward-mode differentiation has one stack for all of them;
a thread that runs a shared model by itself meanwhile meets the hooks of this library.

Every name is loaded when it is first used, so that `import nfm_theory` costs little more than `import torch`.
"""

import lazy_loader

__version__ = "0.1.0"

# The stub `__init__.pyi` lists the public names, for this line and for type checkers.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
