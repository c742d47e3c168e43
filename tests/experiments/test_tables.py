"""The published tables, ours beside them, the verdicts on claims, and the three renderings."""

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.recipes import all_recipes
from experiments.recipes.recipe import Scheme, Training
from experiments.record.entry import Entry
from experiments.record.ledger import append
from experiments.tables.__main__ import app
from experiments.tables.build import PAPER_SIZE, OurValue, build_table, flatten, judge_claims
from experiments.tables.metrics_map import measured, metric_key
from experiments.tables.published import PUBLISHED, SUBMISSIONS_FILE, load_published, read_table
from experiments.tables.registry import TABLES, table_info
from experiments.tables.render import (
    CLAIM_FORMATS,
    TABLE_FORMATS,
    escape_latex,
    escape_markdown,
    format_ours,
    table_html,
    table_latex,
    table_markdown,
)

PRINTED = load_published()


def entry(scheme="nfm", seed=1, size="small", metrics=None, *, alpha=1.0, **changes):
    """A line of the ledger as a recipe's training would give it."""
    settings = {
        **{"data": "cifar10", "model": "preactresnet18", "epochs": 3, "batch_size": 64, "learning_rate": 0.1},
        **{"model_options": (("width", 8),), "samples": 2000},
    }
    training = Training(scheme=Scheme(scheme, alpha=alpha), **(settings | changes))
    return SimpleNamespace(
        **{"recipe": f"nfm-table1/{scheme}", "hash": training.hash, "size": size, "scheme": scheme, "seed": seed},
        **{"suite": "clean", "metrics": metrics or {"clean": 0.5}, "settings": training.to_dict()},
    )


# Reading


@pytest.mark.parametrize("table", TABLES)
def test_every_printed_number_is_read_once(table):
    text = (PUBLISHED / TABLES[table].file).read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    skipped = ("scheme", "label", "ref", "alpha", "epochs", "metric", "level", "bold", "min", "max")
    switches = ("augmentations", "feature_mixing", "noise_injections", "jsd_loss")
    expected = [line[name] for line in lines for name in line if name not in (*skipped, *switches) and line[name]]
    values = read_table(table)
    assert sorted(value.text for value in values) == sorted(expected)
    assert len({(value.row, value.column) for value in values}) == len(values)


def test_every_file_is_a_table_and_is_described():
    files = {path.name for path in PUBLISHED.glob("*.csv")}
    assert files == {info.file for info in TABLES.values()} | {SUBMISSIONS_FILE}
    assert len(TABLES) == 19
    assert len(PRINTED.submissions) == 8


def test_single_values():
    nfm = PRINTED.get("nfm-table1", "nfm", "white_noise_sigma/0.3")
    assert (nfm.value, nfm.metric, nfm.level, nfm.bold, nfm.alpha) == (83.0, "white_noise/0.3", 0.3, True, 1.0)
    mix = PRINTED.get("noisymix-table2", "noisymix", "cifar100_c")
    assert (mix.value, mix.minimum, mix.maximum, mix.data) == (71.0, 70.3, 71.3, "cifar100")
    assert PRINTED.get("noisymix-table2", "augmax", "cifar10") is None
    assert PRINTED.number("noisymix-table1", "puzzlemix", "imagenet_c/excl_noise") == 46.4
    assert list(PRINTED.rows("nfm-table3"))[2:] == ["nfm/alpha=0.2", "nfm/alpha=1.0"]
    assert "puzzlemix/epochs=1200" in PRINTED.rows("nfm-table2")
    assert len(PRINTED.rows("noisymix-table4")) == 10


def test_amend_changes_one_number_only():
    amended = PRINTED.amend("nfm-table1", "nfm", "clean", "95.5")
    assert amended.number("nfm-table1", "nfm", "clean") == 95.5
    assert sum(a != b for a, b in zip(PRINTED.values, amended.values, strict=True)) == 1


def test_bad_ids_and_cells_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one of nfm-table1"):
        table_info("table1")
    with pytest.raises(ValueError, match="published/README"):
        metric_key("nfm-table1", "accuracy_of_cats", data="cifar10")
    (tmp_path / "noisymix_figure4.csv").write_text("scheme,label,accuracy\nnfm,NFM,many\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a number, got 'many'"):
        read_table("noisymix-figure4", folder=tmp_path)


def test_keys_of_the_ledger():
    keys = {(t, c.id): c for t in TABLES for c in PRINTED.columns(t)}
    assert keys["noisymix-table12", "mfr"].metric == "flip_rate/mean"
    assert keys["noisymix-table13", "tilt"].metric == "flip_probability/tilt"
    assert keys["noisymix-table8", "fog"].metric == "corrupted/fog"
    assert keys["noisymix-table8", "fog"].data == "cifar100"
    assert keys["noisymix-table5", "cifar10_c_third"].metric == "corrupted/mean_without_noise"
    # Calibration on the clean test set is another quantity than that of Table 11.
    assert keys["noisymix-table11", "aurra"].metric == "imagenet_r/aurra"
    lower = {c.metric for c in keys.values() if not c.higher_is_better}
    assert lower == {m.metric for m in keys.values() if m.metric.startswith("flip")} | {
        "imagenet_r/rms_calibration_error"
    }


def test_a_corruption_is_the_mean_of_its_five_severities():
    metrics = {f"corrupted/fog/{severity}": severity / 10 for severity in range(1, 6)}
    assert measured(metrics, "corrupted/fog") == pytest.approx(0.3)
    del metrics["corrupted/fog/5"]
    assert measured(metrics, "corrupted/fog") is None
    assert measured({"clean": 0.5}, "") is None


# Join


def test_cells_are_means_over_the_seeds_of_one_training():
    values = [0.5, 0.6, 0.55, 0.7]
    entries = [entry(seed=seed, metrics={"clean": value}) for seed, value in enumerate(values)]
    (group,) = build_table("nfm-table1", entries, "small").groups
    ours = group.cells["nfm", "clean"]
    assert ours.mean == pytest.approx(100 * np.mean(values))
    assert ours.stderr == pytest.approx(100 * np.std(values, ddof=1) / 2)
    assert (ours.seeds, ours.minimum, ours.maximum) == (4, 50.0, 70.0)
    assert set(group.cells) == {("nfm", "clean")}
    assert OurValue(((1, 3.0),)).stderr is None


def test_the_suites_of_one_network_meet_in_its_row():
    entries = [entry(metrics={"clean": 0.9}), entry(metrics={"white_noise/0.1": 0.8, "white_noise/0.2": 0.7})]
    (group,) = build_table("nfm-table1", entries).groups
    assert [column for _, column in group.cells] == ["clean", "white_noise_sigma/0.1", "white_noise_sigma/0.2"]


def test_ways_of_training_are_never_mixed():
    entries = [
        entry(metrics={"clean": 0.1}),
        entry(metrics={"clean": 0.2}, samples=500),
        entry(metrics={"clean": 0.3}, model_options=(("width", 16),)),
        entry(metrics={"clean": 0.4}, learning_rate=0.2),
        entry(metrics={"clean": 0.9}, size=PAPER_SIZE, samples=None, epochs=200, model_options=()),
    ]
    groups = build_table("nfm-table1", entries).groups
    assert sorted(group.cells["nfm", "clean"].mean for group in groups) == pytest.approx([10, 20, 30, 40, 90])
    assert len({group.heading for group in groups}) == 5
    assert any("width 16" in group.heading and "samples 2000" in group.heading for group in groups)
    assert any("learning_rate 0.2" in group.heading for group in groups)
    assert len(build_table("nfm-table1", entries, "small").groups) == 4
    assert len(build_table("nfm-table1", entries, ("digits", PAPER_SIZE)).groups) == 1


def test_views_belong_to_the_scheme_and_data_to_the_column():
    entries = [
        entry("baseline", alpha=0.0, metrics={"clean": 0.5}),
        entry("augmix", alpha=0.0, metrics={"clean": 0.6}, views="augmix"),
        entry("augmix", alpha=0.0, metrics={"clean": 0.3, "corrupted/mean": 0.2}, views="augmix", data="cifar100"),
    ]
    (group,) = build_table("noisymix-table2", entries).groups
    shown = {key: value.mean for key, value in group.cells.items()}
    expected = {("baseline", "cifar10"): 50, ("augmix", "cifar10"): 60}
    assert shown == pytest.approx(expected | {("augmix", "cifar100"): 30, ("augmix", "cifar100_c"): 20})
    assert "cifar10 and cifar100" in group.heading


@pytest.mark.parametrize(
    "changes",
    [{"data": "cifar100"}, {"model": "resnet50"}, {"alpha": 0.2}, {"scheme": "puzzle"}, {"size": PAPER_SIZE}],
    ids=str,
)
def test_what_is_not_the_papers_row_does_not_enter(changes):
    assert build_table("nfm-table1", [entry(**changes)]).groups == ()


def test_alpha_and_epochs_tell_rows_apart():
    image = {"data": "imagenet", "model": "resnet50"}
    entries = [entry(alpha=0.2, **image), entry(alpha=1.0, metrics={"clean": 0.6}, **image)]
    (group,) = build_table("nfm-table3", entries).groups
    shown = {row: value.mean for (row, _), value in group.cells.items()}
    assert shown == pytest.approx({"nfm/alpha=0.2": 50, "nfm/alpha=1.0": 60})
    wide = {"data": "cifar100", "alpha": 0.0, "model_options": (("width", 128),)}
    entries = [entry("puzzlemix", epochs=epochs, size=PAPER_SIZE, **wide) for epochs in (200, 1200)]
    groups = build_table("nfm-table2", entries).groups
    assert {row for group in groups for row, _ in group.cells} == {"puzzlemix/epochs=200", "puzzlemix/epochs=1200"}


def test_two_recipes_for_one_cell_are_named_and_not_averaged():
    table = build_table("noisymix-table7", [entry(alpha=alpha, metrics={"corrupted/fog": 0.5}) for alpha in (0.5, 1.0)])
    assert table.groups == ()
    assert "several recipes fit" in table.notes[0]


def test_stand_ins_are_for_sizes_other_than_the_papers():
    stand_ins = {"imagenet": ["cifar10"], "resnet50": ["preactresnet18"]}
    small, full = entry(alpha=0.2), entry(alpha=0.2, size=PAPER_SIZE)
    assert [g.size for g in build_table("nfm-table3", [small, full], stand_ins=stand_ins).groups] == ["small"]
    assert build_table("nfm-table3", [small, full]).groups == ()


def test_another_activation_is_another_network():
    smooth = entry(model_options=(("activation", "silu"), ("width", 8)))
    (group,) = build_table("nfm-table1", [entry(), smooth]).groups
    assert build_table("nfm-table1", [smooth]).groups == ()
    assert "activation" not in group.heading


def test_every_recipe_of_a_table_finds_its_row():
    """Each recipe with metrics of every kind: no row stays empty, no cell has two recipes."""
    keys = {column.metric: 0.5 for table in TABLES for column in PRINTED.columns(table) if column.metric}
    entries = {
        recipe.hash: SimpleNamespace(
            **{"recipe": recipe.name, "hash": recipe.hash, "size": recipe.size, "seed": 1, "suite": "all"},
            **{"scheme": recipe.training.scheme.name, "metrics": keys, "settings": recipe.training.to_dict()},
        )
        for recipe in all_recipes().values()
    }
    for table in TABLES:
        built = build_table(table, entries.values())
        assert built.notes == ()
        found = {row for group in built.groups for row, _ in group.cells}
        assert set(PRINTED.rows(table)) - found <= {"augmax", "stylized_imagenet"}
    (toy,) = build_table("nfm-figure-toy", entries.values()).groups
    assert len(toy.cells) == 8
    assert len(build_table("nfm-table2", entries.values(), PAPER_SIZE).groups) == 3


def test_settings_may_be_nested():
    nested = {"data": {"name": "cifar10", "samples": 9}, "model": {"name": "net"}, "scheme_options": {"alpha": 1}}
    assert flatten(nested) == {"data": "cifar10", "samples": 9, "model": "net"}


def test_claims_on_the_ledger_by_group():
    good, bad = {"clean": 0.6}, {"clean": 0.4}
    entries = [entry("baseline", alpha=0.0, seed=s, metrics={"clean": 0.5}) for s in (1, 2)]
    entries += [entry("manifold_mixup", seed=s, metrics=good) for s in (1, 2)]
    entries += [entry("baseline", alpha=0.0, samples=500), entry("manifold_mixup", samples=500, metrics=bad)]
    judged = {judgement.claim.id: judgement for judgement in judge_claims(entries, "small")}
    verdicts = {h.split("samples ")[1][:4]: o.verdict for h, o in judged["manifold-clean-1"].ours.items()}
    assert verdicts == {"2000": "reproduced", "500,": "not reproduced (one seed)"}
    assert {o.verdict for o in judged["nfm-white-1"].ours.values()} == {"not run"}
    assert judged["flips-12"].ours == {}


# Rendering


def shown_table():
    entries = [entry(seed=s, metrics={"clean": v, "white_noise/0.1": 0.4}) for s, v in ((1, 0.5), (2, 0.6))]
    return build_table("nfm-table1", [*entries, entry("baseline", alpha=0.0)], "small")


class Cells(HTMLParser):
    """Rows of an HTML table as texts."""

    def __init__(self):
        super().__init__()
        self.rows, self.scopes = [], []

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.scopes.append(dict(attrs).get("scope"))

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_markdown_html_and_latex_show_the_same_cells():
    table = shown_table()
    markdown = [line for line in table_markdown(table).splitlines() if line.startswith("| ")]
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in markdown[2:]]
    parser = Cells()
    parser.feed(table_html(table))
    assert parser.rows[2:] == rows
    body = table_latex(table).split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    latex = [[cell.strip() for cell in line.removesuffix(r"\\").split("&")] for line in body]
    strip = [[cell.replace(r"\textbf{", "").replace("}", "").replace(r"$\pm$", "±") for cell in row] for row in latex]
    assert strip == rows
    assert {len(row) for row in rows} == {1 + 2 * 7}
    nfm = rows[-1]
    assert nfm[1:3] == ["95.4", "95.0"]
    assert nfm[8:11] == ["55.0 ± 5.0 (2)", "40.0 ± 0.0 (2)", "not run"]
    assert rows[0][8] == "50.0 (1)"


@pytest.mark.parametrize("form", TABLE_FORMATS)
@pytest.mark.parametrize("table", TABLES)
def test_every_table_renders_the_same_twice_without_trailing_spaces(form, table):
    text = TABLE_FORMATS[form](build_table(table, []))
    assert text == TABLE_FORMATS[form](build_table(table, []))
    assert text.endswith("\n")
    assert not any(line != line.rstrip() for line in text.split("\n"))
    assert "None" not in text
    assert "Ours: not run." in text


@pytest.mark.parametrize("form", CLAIM_FORMATS)
def test_claims_render(form):
    judgements = judge_claims([entry()])
    text = CLAIM_FORMATS[form](judgements)
    assert "NoisyMix dominates on 6 of the 10 perturbations" in text
    assert "not supported (7 counted)" in text
    assert not any(line != line.rstrip() for line in text.split("\n"))


def test_foreign_text_is_escaped():
    table = shown_table()
    nasty = "a|b <i>&_%$#{}~^\\ c"
    rows = ((table.rows[0][0], nasty), *table.rows[1:])
    table = replace(table, rows=rows, notes=("<script>",))
    assert "a\\|b" in table_markdown(table)
    assert "<i>" not in table_html(table)
    assert "<script>" not in table_html(table)
    assert r"\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in table_latex(table)
    assert escape_latex("50%") == r"50\%"
    assert escape_markdown("a\n|") == "a \\|"
    assert format_ours(None) == "not run"


def test_html_headings_say_what_they_head():
    parser = Cells()
    text = table_html(shown_table())
    parser.feed(text)
    assert {"col", "row", "colgroup"} <= set(parser.scopes)
    assert text.count("<caption>") == 1
    assert "width 8" in text


# Command


def test_command_writes_tables_and_claims(tmp_path):
    arguments = ["--format", "latex", "--table", "noisymix-table4", "--size", "small", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.tex", "noisymix-table4.tex"]
    assert CliRunner().invoke(app, ["audit", "--out", str(tmp_path)]).exit_code == 0
    assert "72.93" in (tmp_path / "audit.md").read_text(encoding="utf-8")


def test_command_reads_a_ledger(tmp_path):
    line = entry(metrics={"clean": 0.6123})
    append(
        tmp_path / "ours.jsonl",
        Entry(
            **vars(line),
            **{"suite_settings": {}, "seconds": 1.0, "commit": None, "dirty": False, "versions": {}, "device": "cpu"},
            training={"epochs": 3, "steps": 9, "samples": 2000, "seconds": 1.0, "final_loss": 1.0},
            time="2026-01-31T12:00:00+00:00",
        ),
    )
    result = CliRunner().invoke(app, ["--table", "nfm-table1", "--ledger", str(tmp_path / "ours.jsonl")])
    assert result.exit_code == 0
    assert "61.2 (1)" in result.output
    assert "width 8, samples 2000, epochs 3" in result.output.replace("\\_", "_")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "pdf"], "expected one of md"),
        (["--table", "table9"], "expected one of nfm-table1"),
        (["--ledger", "nowhere.jsonl"], "--ledger"),
    ],
)
def test_command_refuses_bad_options(arguments, words):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())
