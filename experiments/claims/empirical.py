"""The published tables and figures, the claims on them, and claims that no table prints, as statements."""

from __future__ import annotations

from collections.abc import Mapping

from ..metrics.corruption import NFM_FIGURE6
from ..recipes import all_recipes
from ..studies.study import Study
from ..tables.claims import Claim
from ..tables.claims_list import all_claims
from ..tables.registry import NFM, TABLES, TableInfo
from . import comparisons as trained
from . import verdicts
from .statement import REPRODUCED, Statement

_LEDGER = "experiments/results/experiments.jsonl"
_TESTS = "tests/experiments/test_claims.py"
_DIGITS = "nfm sweep 'digits/*' --seeds 1,2,3,4,5"
#: Tables in the registry that are figures of the papers, and how the papers number them.
FIGURE_TABLES = {"nfm-figure-toy": "Figures 2-3", "noisymix-figure4": "Figure 4"}


def _paper(info: TableInfo) -> str:
    return "nfm" if info.paper == NFM else "noisymix"


def table_number(name: str) -> str:
    """`Table 4` of `noisymix-table4`."""
    return FIGURE_TABLES.get(name) or f"Table {name.rpartition('table')[2]}"


def has_recipes(name: str) -> bool:
    """Whether recipes of the papers' size are named after a table."""
    return any(recipe.startswith(f"{name}/") for recipe in all_recipes())


def _sweep(name: str) -> str:
    """What would run a table: its own recipes, or those that share its networks."""
    return f"nfm sweep '{name}/*'" if has_recipes(name) else f"nfm tables --table {name}"


def _table_row(name: str, info: TableInfo) -> Statement:
    words = f"{info.title}: {info.columns}; {', '.join(info.data)}, {info.network}."
    return Statement(
        name, _paper(info),
        "figure" if name in FIGURE_TABLES else "table", table_number(name), words, "experiments", "",
        (_LEDGER, f"experiments/published/{info.file}", "tests/experiments/test_tables.py"), _sweep(name),
        trained.table(name), name,
    )  # fmt: skip


def claim_row(claim: Claim) -> Statement:
    """A claim on a table as a statement."""
    info = TABLES[claim.table]
    return Statement(
        f"claim-{claim.id}", _paper(info), "claim", claim.source.partition(", ")[2] or claim.source,
        claim.statement + ".", "experiments", "", (_LEDGER, f"experiments/published/{info.file}", _TESTS),
        f"nfm claims claim-{claim.id}",
        trained.claim(claim.id), claim.table,
    )  # fmt: skip


def levels(*kinds: str):
    """The metrics of a study that are levels of these kinds."""

    def metrics(one: Study) -> list[str]:
        return [f"{kind}/{level}" for kind in kinds for level in one.levels(kind)]

    return metrics


def measured(*metrics: str):
    """Those of some metrics that a study has."""

    def chosen(one: Study) -> list[str]:
        return [metric for metric in metrics if any(one.values(scheme, metric) for scheme in one.run)]

    return chosen


def effects(one: Study) -> list[str]:
    """What the effect of training is measured by: clean, noisy, attacked and corrupted accuracy."""
    names = ("clean", "corrupted/mean", "flip_probability/mean", "rms_calibration_error")
    return measured(*names)(one) + levels("white_noise", "salt_pepper", "pgd_linf")(one)


_MIXING = ("baseline", "mixup", "manifold_mixup")


def _more(
    name, paper, kind, number, words, verdict, command=_DIGITS, evidence=(_LEDGER, "tests/experiments/test_studies.py")
):
    return Statement(name, paper, kind, number, words, "experiments", "", evidence, command, verdict)


#: Figures and claims that are no tables. Figures of which no source says what they show are left out.
MORE = (
    _more(
        "nfm-figure-5", "nfm", "figure", "Figure 5",
        "Accuracy under attack: NFM keeps more of it than the baseline, Mixup and Manifold Mixup. No source states "
        "the attack; ours is PGD.",
        trained.ordering(trained.Order("nfm", _MIXING, levels("pgd_linf")), in_part=True),
    ),
    _more(
        "nfm-figure-6", "nfm", "figure", "Figure 6",
        "Accuracy on six corruptions: NFM has more of it than the baseline, Mixup and Manifold Mixup.",
        trained.ordering(
            trained.Order("nfm", _MIXING, measured(*(f"corrupted/{c}" for c in NFM_FIGURE6))), in_part=True
        ),
    ),
    _more(
        "nfm-figure-noise", "nfm", "figure", "number not in our sources",
        "Accuracy against the level of white noise and of salt and pepper: the curve of NFM lies above those of "
        "the baseline, Mixup and Manifold Mixup.",
        trained.ordering(trained.Order("nfm", _MIXING, levels("white_noise", "salt_pepper")), in_part=True),
    ),
    _more(
        "noisymix-figure-6", "noisymix", "figure", "Figure 6",
        "Accuracy on ImageNet-C by category of the corruption: NoisyMix leads for noise, weather and digital, "
        "AugMix for blur.",
        trained.figure(tuple(f"imagenet-c-{kind}" for kind in ("noise", "weather", "digital", "blur"))),
        "nfm sweep 'noisymix-table6/*'" if has_recipes("noisymix-table6") else "nfm tables --table noisymix-table6",
        (_LEDGER, "experiments/published/noisymix_table6.csv", _TESTS),
    ),
    _more(
        "noisymix-calibrated", "noisymix", "claim", "abstract",
        "NoisyMix is better calibrated than the baseline (here on clean digits, RMS calibration error).",
        trained.ordering(trained.Order("noisymix", ("baseline",), measured("rms_calibration_error"))),
    ),
    _more(
        "noisymix-stable", "noisymix", "claim", "abstract",
        "NoisyMix changes its prediction less under slow perturbations than the baseline, AugMix and NFM.",
        trained.ordering(trained.Order("noisymix", ("baseline", "augmix", "nfm"), measured("flip_probability/mean"))),
    ),
    _more(
        "nfm-second-order", "nfm", "claim", "text",
        "Training on the plain loss plus the second-order regularizers (Taylor-NFM) has the effect of NFM.",
        trained.same_effect("nfm", "taylor_nfm", effects),
    ),
    _more(
        "nfm-vit", "nfm", "claim", "abstract",
        "NFM also improves vision transformers.",
        verdicts.not_run("no source states network, training or noise; a recipe would have to choose them"),
        "nfm recipes list", ("experiments/models/vit.py", "tests/experiments/test_models.py"),
    ),
    _more(
        "mixup-attacks", "mixup", "claim", "abstract",
        "Mixup makes networks more robust to attacks such as FGSM than plain training.",
        trained.ordering(trained.Order("mixup", ("baseline",), levels("fgsm_linf"))),
    ),
    _more(
        "mixup-generalises", "mixup", "claim", "abstract",
        "Mixup improves accuracy on clean test data.",
        trained.ordering(trained.Order("mixup", ("baseline",), measured("clean"))),
    ),
    Statement(
        "mixup-figure-approximation", "mixup", "figure", "number not in our sources",
        "Along training, the Mixup loss and its second-order approximation stay close (logistic regression, two "
        "moons).",
        "generalisation", "", ("tests/theory/test_generalization.py",), "nfm claims mixup-figure-approximation",
        verdicts.checked("approximation", REPRODUCED),
    ),
)  # fmt: skip


def published_rows() -> tuple[Statement, ...]:
    """A statement for every table and figure with printed numbers."""
    return tuple(_table_row(name, info) for name, info in TABLES.items())


def claim_rows() -> tuple[Statement, ...]:
    """A statement for every claim on a table."""
    return tuple(claim_row(claim) for claim in all_claims())


def by_table(statements: tuple[Statement, ...]) -> Mapping[str, list[Statement]]:
    """Claims by the table that decides them.

    Args:
        statements: of `claim_rows`.
    """
    found: dict[str, list[Statement]] = {}
    for statement in statements:
        found.setdefault(statement.table, []).append(statement)
    return found
