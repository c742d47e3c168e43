"""Which recipes belong to a row of a published table: by their names alone, never by their settings.

The recipe of a row is named `table/row`. At our own sizes a study, that is all recipes `study/...`, stands for a table
if it has at least half of its rows, is trained on all images of the data of its columns, and the networks of the table
do not start from other networks. A study on data that no table has (digits, Fashion-MNIST) stands for CIFAR-10, which
has ten classes as well.
"""

from __future__ import annotations

from functools import cache

from ..recipes import SIZES as ALL_SIZES
from ..recipes import Recipe, all_recipes
from ..record.entry import ELSEWHERE
from .published import ABLATION, load_published
from .registry import TABLES

#: The sizes of our recipes, the papers' own first, and at last networks that were trained elsewhere.
SIZES = (*reversed(ALL_SIZES), ELSEWHERE)
#: Data sets on which the networks of some table were trained.
PRINTED_DATA = {data for info in TABLES.values() for data in info.data}
#: The data set for which a study on data of no table stands.
STOOD_FOR = "cifar10"
#: Printed rows that have another name in our studies.
OUR_ROWS = {"puzzlemix/epochs=200": "puzzlemix", "puzzlemix/epochs=1200": "puzzlemix-long"}
#: Printed rows of the ablation, whose recipes are named after its four switches.
_SWITCHES = {scheme: "".join(map(str, switches)) for switches, scheme in ABLATION.items()}
#: Tables whose columns belong to networks of several data sets; their recipes are named `table/data-row`.
_BY_DATA = ("noisymix-table2", "noisymix-table3", "noisymix-table5")


@cache
def own_studies() -> dict[str, tuple[str, str, frozenset[str]]]:
    """Our own studies on all images: size, data set and rows of each, in the order of the recipes."""
    found: dict[str, tuple[str, str, frozenset[str]]] = {}
    for recipe in all_recipes().values():
        study, _, row = recipe.name.partition("/")
        if recipe.size != "paper" and study not in TABLES and recipe.training.samples is None:
            size, data, rows = found.get(study, (recipe.size, recipe.training.data, frozenset()))
            found[study] = (size, data, rows | {row})
    return found


def recipe_of(table: str, row: str, data: str) -> Recipe | None:
    """The recipe of a row of a published table, or `None` if it has none."""
    own = _own_name(table, row)
    return all_recipes().get(f"{table}/{data}-{own}" if table in _BY_DATA else f"{table}/{own}")


def _own_name(table: str, row: str) -> str:
    return _SWITCHES[row] if table == "noisymix-table4" else row.replace("/", "-").replace("=", "")


def _study_row(table: str, row: str) -> str:
    """The name that a row of a table has in our studies."""
    return OUR_ROWS.get(row, _own_name(table, row))


@cache
def studies_of(table: str, data: str) -> tuple[str, ...]:
    """Our studies that stand for the columns of a table whose networks were trained on a data set.

    Returns:
        Names of studies in the order of `SIZES`. Within a size those on the very data set come first.
    """
    own = {row: recipe for row in load_published().rows(table) if (recipe := recipe_of(table, row, data))}
    if not own or any(recipe.training.pretrained for recipe in own.values()):
        return ()
    names = {_study_row(table, row) for row in own}
    found = [
        (SIZES.index(size), trained != data, study)
        for study, (size, trained, rows) in own_studies().items()
        if (trained == data or (trained not in PRINTED_DATA and data == STOOD_FOR))
        and 2 * len(names & rows) >= len(names)
    ]
    return tuple(study for *_, study in sorted(found, key=lambda one: one[:2]))


def has_row(study: str, table: str, row: str) -> bool:
    """True if a study of ours has the row of a table."""
    return _study_row(table, row) in own_studies()[study][2]


def recipes_of(table: str, row: str, data: str) -> list[Recipe]:
    """The recipes behind a row of a published table: its own, and those of our studies that stand for it.

    Args:
        table: id of the table.
        row: id of the row.
        data: the data set on which the networks of a column were trained.

    Returns:
        At most one recipe of each study.

    Example:
        >>> [recipe.name for recipe in recipes_of("nfm-table1", "nfm", "cifar10")][0]
        'nfm-table1/nfm'
    """
    names = [f"{study}/{_study_row(table, row)}" for study in studies_of(table, data)]
    own = recipe_of(table, row, data)
    return [*([own] if own else []), *(all_recipes()[name] for name in names if name in all_recipes())]
