"""The theory of the three papers, and what is new here, as statements with the place where each is checked."""

from __future__ import annotations

from . import verdicts
from .statement import AS_STATED, PROVED, Statement

_DIGITS = "python -m experiments study expansion"
_BOUNDS = "python -m experiments study bounds"
_EXPANSION = "experiments/results/expansion.jsonl"
_VALIDITY = ("experiments/results/validity_trained.jsonl", "experiments/results/validity_cifar10.jsonl")
_BOUND_LINES = ("experiments/results/bounds.jsonl", "experiments/results/bounds_cifar.jsonl")


def _input(record: dict) -> bool:
    return not record["layer"]


def _mixup(record: dict) -> bool:
    return record["scheme"] == "mixup" and _input(record)


def _cubic(record: dict) -> bool:
    return record["report"]["leading_order"] == 3


def _two_classes(network: dict) -> bool:
    return network["classes"] == 2


def _tests(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/theory/test_{name}.py" for name in names)


def _statements(paper: str, *rows: tuple) -> tuple[Statement, ...]:
    """The statements of a paper. Their place in the book is `page#label`; by default the command computes a verdict."""
    found = []
    for name, kind, number, words, place, evidence, verdict, *command in rows:
        page, _, label = place.partition("#")
        again = command[0] if command else f"python -m experiments claims {name}"
        found.append(Statement(name, paper, kind, number, words, page, label, evidence, again, verdict))
    return tuple(found)


NFM = _statements(
    "nfm",
    (
        "nfm-unmixing", "lemma", "Lemma 2 (so numbered by NoisyMix)",
        r"The loss with mixed labels is the loss with the label of the first sample and $\lambda\sim\tilde D$, of "
        r"density $\lambda(p(\lambda)+p(1-\lambda))$, at any noise.",
        "losses#lem-unmixing", _tests("symbolic", "laws"), verdicts.checked("unmixing", PROVED),
    ),
    (
        "nfm-theorem-1-terms", "theorem", "Theorem 1, the terms",
        r"To second order NFM adds $\varepsilon R_1$ and $\varepsilon^2$ times $R_2+R_3$ (mixing), "
        r"$R_2^{\mathrm{add}}+R_3^{\mathrm{add}}$ and $R_2^{\mathrm{mult}}+R_3^{\mathrm{mult}}$ (noise) to the loss; "
        r"here for $K$ outputs.",
        "expansion#thm-expansion", _tests("symbolic", "expansion"), verdicts.checked("expansion-terms", PROVED),
    ),
    (
        "nfm-theorem-1", "theorem", "Theorem 1, the remainder",
        r"What the expansion leaves out vanishes faster than $\varepsilon^2$, for smooth heads as $\varepsilon^3$.",
        "expansion#eq-expansion", (_EXPANSION, *_tests("verify")), verdicts.expansions(), _DIGITS,
    ),
    (
        "nfm-theorem-2", "theorem", "Theorem 2",
        r"The loss of NFM is at least an adversarial loss with radius $\varepsilon m_1 c\sqrt d\,|\cos(\nabla "
        r"f,x_i)|$ plus a regularizer, up to $o(\varepsilon^2)$.",
        "bound#thm-adversarial-bound", (*_BOUND_LINES, *_tests("bounds")), verdicts.adversarial_bound(), _BOUNDS,
    ),
    (
        "nfm-margin", "proposition", AS_STATED,
        r"The margin along a segment is at least the score gap over $\sqrt2\,\sup\lVert J\rVert_2$: small Jacobians "
        r"mean large margins.",
        "generalization#prop-margin", _tests("margins"), verdicts.checked("margin"),
    ),
)  # fmt: skip
NOISYMIX = _statements(
    "noisymix",
    (
        "noisymix-lemma-1", "lemma", "Lemma 1",
        r"The lemma of NFM on mixed labels, recalled: the mixed-label loss is the loss with the label of the first "
        r"sample and $\lambda\sim\tilde D$.",
        "losses#lem-unmixing", _tests("symbolic", "laws"), verdicts.checked("unmixing", PROVED),
    ),
    (
        "noisymix-lemma-2", "lemma", "Lemma 2",
        r"The stability loss, which has no label, is the same under $\tilde D$ as under the law of $\lambda$ that is "
        r"trained with.",
        "stability#eq-jsd", _tests("stability_expansion"), verdicts.checked("stability-unmixing"),
    ),
    (
        "noisymix-proposition-1", "proposition", "Proposition 1",
        r"First and second derivative in $\varepsilon$ of a function $\Phi$ of the logits of several perturbed "
        r"branches; here for any number of branches.",
        "stability#prop-branches", _tests("symbolic_stability"), verdicts.checked("chain-rule", PROVED),
    ),
    (
        "noisymix-theorem-1", "theorem", "Theorem 1, content inferred",
        "The part of the NoisyMix loss that is NFM's expands at the input as in NFM, Theorem 1.",
        "expansion#thm-expansion", (_EXPANSION, *_tests("verify")), verdicts.expansions(_input), _DIGITS,
    ),
    (
        "noisymix-theorem-2-terms", "theorem", "Theorem 2, the terms",
        r"$L_{\mathrm{JSD}}(\varepsilon)=S_0+\varepsilon S_1+\varepsilon^2S_2+O(\varepsilon^3)$, with the blocks of "
        r"$\nabla^2\Phi$ across the branches; here for $m$ branches and $K$ classes.",
        "stability#thm-stability", _tests("symbolic_stability"), verdicts.checked("stability-terms", PROVED),
    ),
    (
        "noisymix-theorem-2", "theorem", "Theorem 2, the remainder",
        r"What this expansion leaves out falls as $\varepsilon^3$; here with the coefficient $C_3$ predicted.",
        "stability#eq-jsd-expansion", _tests("stability_expansion"), verdicts.checked("stability-remainder"),
    ),
    (
        "noisymix-equal-branches", "corollary", AS_STATED,
        r"If all branches see the same image, $S_0=S_1=0$ and the additive part of $S_2$ is, for two branches, "
        r"$\pi_1\pi_2\,\sigma_{\mathrm{add}}^2\operatorname{tr}(J^\top FJ)$.",
        "stability#cor-equal-branches", _tests("symbolic_stability"), verdicts.checked("equal-branches", PROVED),
    ),
    (
        "noisymix-theorem-3", "theorem", "Theorem 3",
        r"The NoisyMix loss is at least the adversarial loss plus the regularizer plus $\gamma(S_0+\varepsilon "
        r"S_1+\varepsilon^2S_2)$, up to $o(\varepsilon^2)$.",
        "stability#thm-noisymix-bound", _tests("noisymix_bound"), verdicts.checked("stability-bound"),
    ),
)  # fmt: skip
MIXUP = _statements(
    "mixup",
    (
        "mixup-lemma-terms", "lemma", "Lemma 3.1, the terms",
        r"Mixup adds $\varepsilon R_1+\varepsilon^2(R_2+R_3)$ to the loss: NFM without noise, at the input.",
        "expansion#thm-expansion", _tests("symbolic", "expansion"), verdicts.checked("expansion-terms", PROVED),
    ),
    (
        "mixup-lemma", "lemma", "Lemma 3.1, the remainder",
        r"What is left out vanishes faster than $\varepsilon^2$.",
        "expansion#eq-expansion", (_EXPANSION, *_tests("verify")), verdicts.expansions(_mixup), _DIGITS,
    ),
    (
        "mixup-bound-linear", "theorem", "among Theorems 3.1 to 3.3, " + AS_STATED,
        "For logistic regression the Mixup loss is at least an adversarial loss on the ball of the radius implied.",
        "bound#thm-adversarial-bound", _tests("bounds"), verdicts.checked("linear-bound"),
    ),
    (
        "mixup-bound", "theorem", "among Theorems 3.1 to 3.3, " + AS_STATED,
        r"The same for networks with $f(x)=\nabla f\cdot x$ and $\nabla^2f=0$, as ReLU networks without biases, and "
        r"two classes.",
        "bound#eq-adversarial-bound", (*_BOUND_LINES, *_tests("bounds")),
        verdicts.adversarial_bound(_two_classes), _BOUNDS,
    ),
    (
        "mixup-glm", "lemma", AS_STATED,
        r"For a generalized linear model Mixup adds $\frac1{2n}\sum_iA''(\theta\cdot x_i)\,\mathbb "
        r"E[(1-\lambda)^2/\lambda^2]\;\theta^\top\hat\Sigma\theta$ to second order.",
        "generalization#prop-glm", _tests("generalization"), verdicts.checked("glm-regularizer"),
    ),
    (
        "mixup-rademacher-glm", "theorem", AS_STATED,
        r""
        r"$\mathrm{Rad}(W_\gamma)\le\max\{(\gamma/\rho)^{1/4},(\gamma/\rho)^{1/2}\}\sqrt{\operatorname{rank}\Sigma/n}$ "
        r"for $\rho$-retentive data.",
        "generalization#thm-rademacher-glm", _tests("rademacher"), verdicts.checked("rademacher-glm"),
    ),
    (
        "mixup-generalization", "corollary", AS_STATED,
        r"With probability $1-\delta$ the expected loss is at most "
        r"$L_{\mathrm{std}}+2\,\mathrm{Lip}\,\mathrm{Rad}+B\sqrt{\log(1/\delta)/(2n)}$.",
        "generalization#eq-rademacher-glm", _tests("generalization"), verdicts.checked("generalization-gap"),
    ),
    (
        "mixup-rademacher-two-layer", "theorem", AS_STATED,
        r"For two-layer ReLU networks with Mixup in the hidden layer "
        r"$\mathrm{Rad}\le2\sqrt{\gamma(\operatorname{rank}\Sigma_\sigma+\lVert\Sigma_\sigma^{\dagger/2}\mu_\sigma\rVert^2)/n}$.",
        "generalization#eq-rademacher-two-layer", _tests("rademacher"), verdicts.checked("rademacher-two-layer"),
    ),
)  # fmt: skip
HERE = _statements(
    "here",
    (
        "predicted-remainder-terms", "proposition", "new here",
        r"The remainder is $\varepsilon^3C_3+O(\varepsilon^4)$ with $C_3$ in closed form, the cross term of "
        r"multiplicative noise and mixing included.",
        "expansion#prop-remainder", _tests("symbolic", "expansion"), verdicts.checked("cubic-coefficient", PROVED),
    ),
    (
        "predicted-remainder", "proposition", "new here",
        r"On trained networks the remainder is $C_3\varepsilon^3$: the coefficient is met and not only the order.",
        "expansion#eq-remainder", (_EXPANSION, *_tests("verify")), verdicts.expansions(_cubic), _DIGITS,
    ),
    (
        "any-order", "proposition", "new here",
        r"The expansion of any order $p$ leaves out $c_{p+1}\varepsilon^{p+1}$.",
        "expansion#eq-order-p", _tests("expansion"), verdicts.checked("any-order"),
    ),
    (
        "lagrange", "proposition", "new here",
        "Draw by draw, without sampling error, the scaled remainder lies between the extremes of a derivative of "
        "the loss.",
        "expansion#eq-lagrange", (_EXPANSION, *_tests("paths")), verdicts.lagrange, _DIGITS,
    ),
    (
        "integral-remainder", "proposition", "new here",
        "The remainder is an integral in which nothing cancels, so that single precision is enough.",
        "expansion#eq-integral-remainder", _tests("paths"), verdicts.checked("integral-form"),
    ),
    (
        "scale-of-training", "claim", "new here",
        r"The second-order expansion is close to the loss at $\varepsilon=1$, where networks are trained.",
        "validity", (*_VALIDITY, *_tests("verify")), verdicts.validity,
    ),
    (
        "sharp-radius", "theorem", "new here",
        r"The bound holds with the radius $\varepsilon m_1\min_j|m_j|/\lVert\nabla m_j\rVert$, the mixing level "
        r"times the distance to the linearised decision boundary.",
        "bound#eq-sharp-radius", (*_BOUND_LINES, *_tests("bounds")), verdicts.sharp_radius, _BOUNDS,
    ),
    (
        "slack", "proposition", "new here",
        r"With it and one margin the slack is $\varepsilon^2\operatorname{Var}_{\tilde "
        r"D}(\lambda)/(2n)\sum_ih''(f_i)f_i^2$.",
        "bound#eq-bound-slack", _tests("bounds"), verdicts.checked("slack"),
    ),
    (
        "mean-radius", "proposition", "new here",
        "Around the mean feature the bound needs neither homogeneity nor centring, only signs.",
        "bound", ("experiments/results/bounds.jsonl", *_tests("bounds")), verdicts.mean_radius, _BOUNDS,
    ),
    (
        "certificates", "claim", "new here",
        "The certified inner maximum is never below the exact one.",
        "bound", ("benchmarks/results/certificates.json", *_tests("certificates")), verdicts.certificates,
        "python -m benchmarks.certificates",
    ),
    (
        "telescoping", "proposition", "new here",
        "Second directional derivatives of the loss are sums over operations of adjoint times squared tangents, "
        "without nested differentiation.",
        "estimators#prop-telescoping", _tests("engine"), verdicts.checked("telescoping"),
    ),
    (
        "control-variate", "claim", "new here",
        "The quadratic part of a draw, whose mean is known, makes Monte Carlo for the remainder cheaper, its cost "
        "included.",
        "expansion#eq-control-variate",
        ("benchmarks/results/control_variate.json", "tests/benchmarks/test_benchmarks.py"), verdicts.control_variate,
        "python -m benchmarks.control_variate",
    ),
    (
        "partners", "proposition", "new here",
        "The expansion holds for any symmetric law of the partner, as in k-mixup and DP-Mix self.",
        "relatives#prop-partners", _tests("partners"), verdicts.checked("partners"),
    ),
)  # fmt: skip
#: The statements of all papers, and our own.
STATEMENTS = (*NFM, *NOISYMIX, *MIXUP, *HERE)
