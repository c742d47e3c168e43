"""The published tables and figures, the claims about them, and claims that no table prints, as statements."""

from __future__ import annotations

from ..metrics.corruption import NFM_FIGURE6
from ..recipes import all_recipes
from ..studies.study import Study
from ..tables.claims_list import all_claims
from ..tables.registry import NFM, TABLES, TableInfo
from . import comparisons, verdicts
from .comparisons import Metrics, Order
from .statement import NOT_TESTABLE, REPRODUCED, Statement, Verdict

_LEDGER = "experiments/results/experiments.jsonl"
_CLAIM_TESTS, _TABLE_TESTS = "tests/experiments/test_claims.py", "tests/experiments/test_tables.py"
_COMMAND = "python -m experiments"
_PAGE, _CLAIMS = "experiments", "experiments-claims"
#: Tables in the registry that are figures of the papers, and how the papers number them.
FIGURE_TABLES = {"nfm-figure-toy": "Figures 2-3", "noisymix-figure4": "Figure 4"}
_UNKNOWN = "number not in our sources"


def _paper(info: TableInfo) -> str:
    return "nfm" if info.paper == NFM else "noisymix"


def table_number(name: str) -> str:
    """The number of a table in its paper: `Table 4` for `noisymix-table4`."""
    return FIGURE_TABLES.get(name) or f"Table {name.rpartition('table')[2]}"


def has_recipes(name: str) -> bool:
    """True if there are recipes named after a table."""
    return any(recipe.startswith(f"{name}/") for recipe in all_recipes())


def _training_command(name: str) -> str:
    """The command that trains the rows of a table, or shows it if it has no recipes."""
    return f"{_COMMAND} sweep '{name}/*'" if has_recipes(name) else f"{_COMMAND} tables --table {name}"


def table_statements() -> tuple[Statement, ...]:
    """A statement for every table and figure with printed numbers."""
    return tuple(
        Statement(
            name, _paper(info), "figure" if name in FIGURE_TABLES else "table", table_number(name),
            f"{info.title}: {info.columns}; {', '.join(info.data)}, {info.network}.", _PAGE,
            "experiments-toy" if name in FIGURE_TABLES else _CLAIMS,
            (_LEDGER, f"experiments/published/{info.file}", _TABLE_TESTS), _training_command(name),
            comparisons.table(name), name,
        )
        for name, info in TABLES.items()
    )  # fmt: skip


def claim_statements() -> tuple[Statement, ...]:
    """A statement for every claim about a table."""
    return tuple(
        Statement(
            f"claim-{claim.id}", _paper(TABLES[claim.table]), "claim",
            claim.source.partition(", ")[2] or claim.source, claim.statement + ".", _PAGE, _CLAIMS,
            (_LEDGER, f"experiments/published/{TABLES[claim.table].file}", _CLAIM_TESTS),
            f"{_COMMAND} claims claim-{claim.id}", comparisons.claim(claim.id), claim.table,
        )
        for claim in all_claims()
    )  # fmt: skip


def levels(*kinds: str) -> Metrics:
    """Chooses the metrics of a study that are levels of these kinds, such as `"white_noise"`."""
    return lambda one: [f"{kind}/{level}" for kind in kinds for level in one.levels(kind)]


def measured(*metrics: str) -> Metrics:
    """Chooses those of the metrics that a study has."""
    return lambda one: [metric for metric in metrics if any(one.values(scheme, metric) for scheme in one.run)]


def effects(one: Study) -> list[str]:
    """The metrics that show the effect of training: clean, noisy, attacked and corrupted accuracy, and calibration."""
    names = ("clean", "corrupted/mean", "flip_probability/mean", "rms_calibration_error")
    return measured(*names)(one) + levels("white_noise", "salt_pepper", "pgd_linf")(one)


def _ordering(scheme: str, others: tuple[str, ...], metrics: Metrics, **options):
    return comparisons.ordering(Order(scheme, others, metrics, **options))


def _studied(name, kind, number, words, verdict, command="", evidence=(), place=f"{_PAGE}#{_CLAIMS}") -> Statement:
    """A statement that our own studies decide, unless another verdict, command and evidence are given."""
    command = command or f"{_COMMAND} sweep 'digits/*' --seeds 1,2,3,4,5"
    evidence = evidence or (_LEDGER, "tests/experiments/test_studies.py")
    page, _, label = place.partition("#")
    return Statement(name, name.partition("-")[0], kind, number, words, page, label, evidence, command, verdict)


_MIXING = ("baseline", "mixup", "manifold_mixup")
_ROBUST, _STABLE = f"{_PAGE}#experiments-robust", f"{_PAGE}#experiments-noisymix"
#: Figures and claims that no table prints. Figures are left out if no source says what they show.
MORE = (
    _studied(
        "nfm-figure-5", "figure", "Figure 5",
        "Accuracy under attack: NFM keeps more of it than the baseline, Mixup and Manifold Mixup. No source states "
        "the attack; ours is PGD.",
        _ordering("nfm", _MIXING, levels("pgd_linf"), in_part=True), place=_ROBUST,
    ),
    _studied(
        "nfm-figure-6", "figure", "Figure 6",
        "Accuracy on six corruptions: NFM has more of it than the baseline, Mixup and Manifold Mixup.",
        _ordering("nfm", _MIXING, measured(*(f"corrupted/{name}" for name in NFM_FIGURE6)), in_part=True),
        place=_ROBUST,
    ),
    _studied(
        "nfm-figure-noise", "figure", _UNKNOWN,
        "Accuracy against the level of white noise and of salt and pepper: the curve of NFM lies above those of "
        "the baseline, Mixup and Manifold Mixup.",
        _ordering("nfm", _MIXING, levels("white_noise", "salt_pepper"), in_part=True), place=_ROBUST,
    ),
    _studied(
        "noisymix-figure-6", "figure", "Figure 6",
        "Accuracy on ImageNet-C by category of the corruption: NoisyMix leads for noise, weather and digital, "
        "AugMix for blur.",
        comparisons.figure(tuple(f"imagenet-c-{kind}" for kind in ("noise", "weather", "digital", "blur"))),
        _training_command("noisymix-table6"), (_LEDGER, "experiments/published/noisymix_table6.csv", _CLAIM_TESTS),
    ),
    *(
        _studied(
            f"noisymix-figure-{number}", "figure", f"Figure {number}",
            "No source at hand says what the figure shows.",
            lambda records: Verdict(NOT_TESTABLE, "its caption and its numbers are in none of our sources"),
        )
        for number in (1, 2, 7, 8)
    ),
    _studied(
        "noisymix-calibrated", "claim", "abstract",
        "NoisyMix is better calibrated than the baseline (here on clean test data, RMS calibration error).",
        _ordering("noisymix", ("baseline",), measured("rms_calibration_error")), place=_STABLE,
    ),
    _studied(
        "noisymix-stable", "claim", "abstract",
        "NoisyMix changes its prediction less under slow perturbations than the baseline, AugMix and NFM.",
        _ordering("noisymix", ("baseline", "augmix", "nfm"), measured("flip_probability/mean")), place=_STABLE,
    ),
    _studied(
        "nfm-second-order", "claim", "text",
        "Training on the plain loss plus the second-order regularizers (Taylor-NFM) has the effect of NFM.",
        comparisons.same_effect("nfm", "taylor_nfm", effects), place="second_order",
    ),
    _studied(
        "nfm-vit", "claim", "abstract",
        "NFM also improves vision transformers (here: their accuracy under white noise).",
        _ordering(
            "nfm", ("baseline",), levels("white_noise"), study="nfm-vit",
            reason="training at the papers' size needs a GPU; network and training are our choice, as no source states "
            "them",
        ),
        f"{_COMMAND} sweep 'nfm-vit/*'", (_LEDGER, "experiments/models/vit.py", "tests/experiments/test_models.py"),
    ),
    _studied(
        "mixup-attacks", "claim", "abstract",
        "Mixup makes networks more robust to attacks such as FGSM than plain training.",
        _ordering("mixup", ("baseline",), levels("fgsm_linf")), place=_ROBUST,
    ),
    _studied(
        "mixup-generalizes", "claim", "abstract", "Mixup improves accuracy on clean test data.",
        _ordering("mixup", ("baseline",), measured("clean")), place=_ROBUST,
    ),
    Statement(
        "mixup-figure-approximation", "mixup", "figure", _UNKNOWN,
        "Along training, the Mixup loss and its second-order approximation stay close (logistic regression, two "
        "moons).",
        "generalization", "", ("tests/theory/test_generalization.py",),
        f"{_COMMAND} claims mixup-figure-approximation", verdicts.checked("approximation", REPRODUCED),
    ),
)  # fmt: skip
