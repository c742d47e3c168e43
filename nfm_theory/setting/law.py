r"""The law of one perturbation of NFM: how λ, the levels of the noises and the noises themselves are distributed.

| symbol | here |
|---|---|
| $\lambda$ | `Law.mixing` |
| $\sigma_{add}, \sigma_{mult}$ | `Law.add_noise`, `Law.mult_noise` |
| $\xi_{add}, \xi_{mult}$ | `Law.noises` |
| second moments $m_2/2,\ \sigma^2 \mathbb E\xi^2/2$ of the sources of perturbation | `Law.scales` |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .checks import level
from .mixing import FixedMixing, MixingLaw
from .noise import NoiseLaw, NoiseName, noise_pair, released_noise


@dataclass(frozen=True)
class Law:
    r"""One law of mixing and noise, to train with, to penalise, to measure and to verify.

    $$ \tilde g_i = (1 + \varepsilon\sigma_{mult}\,\xi_{mult}) \odot \big(g_i + \varepsilon(1-\lambda)(g_r - g_i)\big)
       + \varepsilon\sigma_{add}\,\xi_{add} \qquad \text{(book: eq-perturbation)} $$

    Args:
        alpha: first parameter of λ ~ Beta(α, β), ≥ 0; 0 for no mixing, which leaves every sample at its place.
        beta: second parameter; `None` takes the value of `alpha`.
        add_noise: σ_add ≥ 0, level of the additive noise.
        mult_noise: σ_mult ≥ 0, level of the multiplicative noise.
        noise: law of both noises, `"normal"`, `"uniform"`, `"rademacher"` or `"released"` (see `Law.released`), one
            `NoiseLaw`, or a pair (additive, multiplicative).
        lam: a fixed weight λ in [0, 1] instead of a Beta law; 1/2 is midpoint Mixup. Leave `alpha` and `beta` out then.

    Raises:
        ValueError: for parameters out of range, unknown names, and `lam` together with `alpha` or `beta`.
        TypeError: for a noise of another kind.

    Example:
        >>> law = Law(add_noise=0.4, mult_noise=0.2)
        >>> law.mixing.moment(1), law.noises[0].second
        (0.3333333333333333, 1.0)
    """

    alpha: float = 1.0
    beta: float | None = None
    add_noise: float = 0.0
    mult_noise: float = 0.0
    noise: NoiseName | NoiseLaw | tuple[NoiseLaw, NoiseLaw] = "normal"
    lam: float | None = None

    def __post_init__(self):
        if self.lam is not None and (self.alpha != 1.0 or self.beta is not None):
            raise ValueError(f"lam: expected no alpha and no beta beside a fixed weight, got {self!r}.")
        for name in ("add_noise", "mult_noise"):
            object.__setattr__(self, name, level(name, getattr(self, name)))
        _ = self.mixing, self.noises  # refuses what is no law

    @staticmethod
    def released(
        *,
        add_noise: float = 0.0,
        mult_noise: float = 0.0,
        alpha: float = 1.0,
        beta: float | None = None,
        sparsity: float = 0.0,
    ) -> Law:
        """The law of the papers' released code: normal and uniform noise, each scaled by one Beta(2, 5) per batch.

        The scale makes the noise a third of the printed level: the second moments are 3/28 and 1/28.

        Args:
            add_noise: σ_add.
            mult_noise: σ_mult.
            alpha: first Beta parameter of λ; 0 for no mixing.
            beta: second Beta parameter; `None` takes the value of `alpha`.
            sparsity: probability with which an element of the noise is 0 (`sparse_level` of the NoisyMix code).

        Example:
            >>> Law.released(add_noise=0.4, mult_noise=0.2)
            Law(alpha=1.0, beta=None, add_noise=0.4, mult_noise=0.2, noise='released', lam=None)
        """
        return Law(alpha, beta, add_noise, mult_noise, released_noise(sparsity) if sparsity else "released")

    @cached_property
    def mixing(self) -> MixingLaw | FixedMixing:
        """The law of λ."""
        return MixingLaw(self.alpha, self.beta) if self.lam is None else FixedMixing(self.lam)

    @cached_property
    def noises(self) -> tuple[NoiseLaw, NoiseLaw]:
        """The laws of the additive and of the multiplicative noise."""
        return noise_pair(self.noise)

    @property
    def perturbs(self) -> bool:
        """True if anything is perturbed at all: by mixing, or by noise of a positive level."""
        return self.mixing.mixes or self.add_noise > 0 or self.mult_noise > 0

    @cached_property
    def scales(self) -> dict[str, float]:
        """Half the scale of the second moment of each source that is switched on.

        The sources are `"data"` (mixing), `"additive"` and `"multiplicative"`.
        """
        (add, mult), scales = self.noises, {}
        if self.mixing.mixes:
            scales["data"] = self.mixing.moment(2) / 2
        if self.add_noise:
            scales["additive"] = self.add_noise**2 * add.second / 2
        if self.mult_noise:
            scales["multiplicative"] = self.mult_noise**2 * mult.second / 2
        return scales

    def to_dict(self) -> dict:
        """The law in numbers and words, for JSON."""
        facts: dict = {"lam": self.lam}
        if isinstance(self.mixing, MixingLaw):
            facts = dict(zip(("alpha", "beta"), self.mixing.parameters, strict=True))
        levels = {"add_noise": self.add_noise, "mult_noise": self.mult_noise}
        return {**facts, **levels, "noise": [str(noise) for noise in self.noises]}

    def __str__(self) -> str:
        """The law in one line."""
        facts = self.to_dict()
        words = [f"{name} = {value:g}" for name, value in facts.items() if name != "noise"]
        return ", ".join([*words, f"{self.noise} noise" if isinstance(self.noise, str) else "noise of its own law"])
