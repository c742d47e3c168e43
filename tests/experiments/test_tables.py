"""The published tables, ours beside them, the verdicts on claims, and the three renderings."""

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from ledger_entries import entry, full_ledger
from typer.testing import CliRunner

from experiments.commands import app
from experiments.recipes import get_recipe
from experiments.record.ledger import append
from experiments.tables.build import OurValue, build_table, judge_claims
from experiments.tables.claims_list import all_claims
from experiments.tables.join import SIZES, own_studies, recipes_of, studies_of
from experiments.tables.metrics_map import measured, metric_key
from experiments.tables.published import BENCHMARK_FILE, PUBLISHED, SUBMISSIONS_FILE, load_published, read_table
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
    assert files == {info.file for info in TABLES.values()} | {SUBMISSIONS_FILE, BENCHMARK_FILE}
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
    assert measured({"clean": 0.5}, "corrupted/mean") is None


# Join


def test_cells_are_means_over_the_seeds_of_one_training():
    values = [0.5, 0.6, 0.55, 0.7]
    entries = [entry("digits/nfm", seed, clean=value) for seed, value in enumerate(values)]
    (group,) = build_table("nfm-table1", entries).groups
    ours = group.cells["nfm", "clean"]
    assert ours.mean == pytest.approx(100 * np.mean(values))
    assert ours.stderr == pytest.approx(100 * np.std(values, ddof=1) / 2)
    assert ours.seeds == 4
    assert set(group.cells) == {("nfm", "clean")}
    assert OurValue(((1, 3.0),)).stderr is None


def test_the_suites_of_one_network_meet_in_its_row():
    noise = {"white_noise/0.1": 0.8, "white_noise/0.2": 0.7}
    entries = [entry("digits/nfm", 1, clean=0.9), entry("digits/nfm", 1, "noise", **noise)]
    (group,) = build_table("nfm-table1", entries).groups
    assert [column for _, column in group.cells] == ["clean", "white_noise_sigma/0.1", "white_noise_sigma/0.2"]


def test_sizes_are_groups_of_their_own_and_say_what_was_trained():
    names = ("nfm-table1/nfm", "cifar10-compact/nfm", "digits/nfm")
    entries = [entry(name, 1, clean=value) for name, value in zip(names, (0.9, 0.6, 0.7), strict=True)]
    groups = build_table("nfm-table1", entries).groups
    assert [(g.size, g.cells["nfm", "clean"].mean) for g in groups] == [("paper", 90), ("compact", 60), ("digits", 70)]
    epochs = get_recipe(names[1]).training.epochs
    assert groups[1].heading == f"compact: cifar10, fast_cnn, samples all, epochs {epochs}"
    assert [g.size for g in build_table("nfm-table1", entries, ["digits"]).groups] == ["digits"]


def test_columns_of_several_data_sets_have_recipes_of_their_own():
    entries = [entry("noisymix-table2/cifar10-augmix", 1, clean=0.6)]
    entries += [entry("noisymix-table2/cifar100-augmix", 1, clean=0.3, **{"corrupted/mean": 0.2})]
    (group,) = build_table("noisymix-table2", entries).groups
    shown = {key: value.mean for key, value in group.cells.items()}
    assert shown == pytest.approx({("augmix", "cifar10"): 60, ("augmix", "cifar100"): 30, ("augmix", "cifar100_c"): 20})
    assert group.heading.startswith("paper: cifar10 and cifar100, ")


def test_the_protocols_of_the_two_papers_are_not_mixed():
    """The baseline of NoisyMix Table 2 has the data, network and scheme of that of NFM Table 1, and other settings."""
    mix = entry("noisymix-table2/cifar10-baseline", 1, clean=0.9)
    assert build_table("nfm-table1", [mix]).groups == ()
    assert build_table("noisymix-table2", [mix]).groups[0].cells["baseline", "cifar10"].mean == 90
    assert build_table("noisymix-table2", [entry("nfm-table1/baseline", 1, clean=0.9)]).groups == ()


def test_rows_with_the_same_training_share_its_results():
    seen = entry("noisymix-table2/cifar10-nfm", 1, **{"corrupted/mean": 0.7, "corrupted/fog": 0.6})
    (group,) = build_table("noisymix-table7", [seen]).groups
    assert group.cells["nfm", "fog"].mean == 60


def test_results_of_other_settings_do_not_enter():
    old = replace(entry("digits/nfm", 1, clean=0.9), hash="0" * 16)
    assert build_table("nfm-table1", [old]).groups == ()
    assert build_table("nfm-table1", [entry("digits-text/nfm", 1, clean=0.9)]).groups == ()


@pytest.mark.parametrize(
    ("table", "row", "data", "names"),
    [
        ("nfm-table3", "nfm/alpha=0.2", "imagenet", ["nfm-table3/nfm-alpha0.2"]),
        ("nfm-table2", "puzzlemix/epochs=200", "cifar100", ["nfm-table2/puzzlemix-epochs200"]),
        ("nfm-table2", "puzzlemix/epochs=1200", "cifar100", ["nfm-table2/puzzlemix-epochs1200"]),
        ("noisymix-table4", "augmix_noise", "cifar100", ["noisymix-table4/1011"]),
        ("noisymix-table5", "mixup", "cifar10", ["noisymix-table5/cifar10-mixup"]),
        ("nfm-figure-toy", "noise_injection", "toy_rings", ["nfm-figure-toy/noise_injection"]),
        ("noisymix-table2", "augmax", "cifar10", []),
    ],
)
def test_rows_and_their_recipes(table, row, data, names):
    found = [recipe.name for recipe in recipes_of(table, row, data)]
    assert [name for name in found if get_recipe(name).size != "compact"] == names


def test_rows_of_the_compact_size_have_the_names_of_the_schemes():
    for epochs, row in ((200, "puzzlemix"), (1200, "puzzlemix-long")):
        names = [recipe.name for recipe in recipes_of("nfm-table2", f"puzzlemix/epochs={epochs}", "cifar100")]
        assert names == [f"nfm-table2/puzzlemix-epochs{epochs}", f"cifar100-compact/{row}"]


def test_studies_stand_for_the_tables_on_their_data_from_the_largest_size_on():
    for table in TABLES:
        for data in {column.data for column in PRINTED.columns(table)}:
            found = studies_of(table, data)
            sizes = [SIZES.index(own_studies()[study][0]) for study in found]
            assert sizes == sorted(sizes)
            for study in found:
                trained = own_studies()[study][1]
                assert trained == data or (trained not in ("cifar10", "cifar100", "imagenet") and data == "cifar10")
                named = {study for row in PRINTED.rows(table) for r in recipes_of(table, row, data)
                         if (study := r.name.partition("/")[0]) != table}  # fmt: skip
                assert study in named
    assert "digits" in studies_of("nfm-table1", "cifar10")
    assert "cifar100-compact" in studies_of("nfm-table2", "cifar100")
    assert "digits" not in studies_of("nfm-table2", "cifar100")
    # Parts of studies and networks on a part of the images stand for nothing. Networks of ImageNet, networks that start
    # from others, and the toys have no stand-ins.
    apart = {"digits-terms", "digits-text", "digits-eps", "fashion-variations", "cifar10-preact"}
    assert not apart & set(studies_of("nfm-table1", "cifar10"))
    assert "cifar100-variations" not in studies_of("nfm-table2", "cifar100")
    assert studies_of("noisymix-table1", "imagenet") == studies_of("noisymix-table5", "cifar10") == ()
    assert studies_of("nfm-figure-toy", "toy_rings") == ()


def test_two_studies_of_one_size_are_groups_of_their_own():
    """Rows of different studies never meet in a group; the study with more comparisons speaks for the size."""
    entries = [entry("noisymix-table2/cifar10-nfm", 1, clean=0.9), entry("noisymix-table2/cifar100-nfm", 1, clean=0.6)]
    groups = build_table("noisymix-table2", entries).groups
    assert [(group.study, group.size) for group in groups] == [("noisymix-table2", "paper")]
    ours = [entry(f"{name}-compact/nfm", 1, clean=0.5) for name in ("cifar10", "cifar100")]
    groups = build_table("noisymix-table2", ours).groups
    assert [group.study for group in groups] == ["cifar10-compact", "cifar100-compact"]
    assert [set(group.cells) for group in groups] == [{("nfm", "cifar10")}, {("nfm", "cifar100")}]


@pytest.mark.parametrize(("rows", "study"), [(6, "cifar10-compact"), (2, "fashion-compact")])
def test_a_claim_on_cifar_is_judged_on_cifar_if_half_of_it_was_run_there(rows, study):
    schemes = (
        "nfm",
        "baseline",
        "baseline_noise",
        "label_smoothing",
        "mixup",
        "cutmix",
        "manifold_mixup",
        "noisy_mixup",
    )
    ran = {"cifar10-compact": schemes[:rows], "fashion-compact": schemes}
    noise = {"white_noise/0.1": 0.8, "white_noise/0.2": 0.7, "white_noise/0.3": 0.6}
    entries = [entry(f"{name}/{row}", seed, **noise) for name, some in ran.items() for row in some for seed in (1, 2)]
    (judged,) = (one for one in judge_claims(entries) if one.claim.id == "nfm-white-1")
    assert judged.ours["compact"].study == study


def test_the_gain_of_the_ablation_is_a_difference_of_two_rows_seed_by_seed():
    rows = {"0000": (0.5, 0.52), "1111": (0.6, 0.65)}
    entries = [
        entry(f"noisymix-table4/{row}", seed, "corrupted", **{"corrupted/mean": value})
        for row, values in rows.items()
        for seed, value in enumerate(values)
    ]
    (group,) = build_table("noisymix-table4", entries).groups
    gain = group.cells["noisymix", "robustness_gain"]
    assert [value for _, value in gain.by_seed] == pytest.approx([10, 13])
    assert ("baseline", "robustness_gain") not in group.cells
    text = table_markdown(build_table("noisymix-table4", entries))
    assert "11.5 ± 1.5 (2)" in text


def test_flip_rates_say_that_their_unit_is_not_verified():
    words = "flip probabilities of AlexNet as we recall them; they are not verified"
    for name in TABLES:
        assert (words in table_markdown(build_table(name, []))) == (name in ("noisymix-table1", "noisymix-table12"))


# How hard a test is


def test_a_claim_is_judged_where_the_baseline_has_lost_as_much_as_in_the_paper():
    """In print the baseline loses 4.2, 17.9 and 38.3 points at the three levels."""
    curve = {"white_noise/0.1": 0.85, "white_noise/0.2": 0.8, "white_noise/0.3": 0.7, "white_noise/0.5": 0.6}
    entries = [entry("digits/baseline", 1, clean=0.9, **curve, **{"white_noise/1": 0.5, "salt_pepper/0.02": 0.89})]
    (group,) = build_table("nfm-table1", entries).groups
    place = {name: (level.metric, level.ceiling) for name, level in group.levels.items()}
    assert place["white_noise_sigma/0.1"] == ("white_noise/0.1", False)
    assert place["white_noise_sigma/0.2"] == ("white_noise/0.3", False)
    assert place["white_noise_sigma/0.3"] == ("white_noise/1", False)
    assert place["salt_pepper_gamma/0.02"] == ("salt_pepper/0.02", True)  # no level takes that much
    assert group.cells["baseline", "white_noise_sigma/0.3"].mean == 70
    assert group.judged["baseline", "white_noise_sigma/0.3"].mean == 50
    assert "clean" not in place
    (paper,) = build_table("nfm-table1", [entry("nfm-table1/baseline", 1, clean=0.9, **curve)]).groups
    assert paper.levels == {}
    assert paper.judged == paper.cells


def test_the_corruptions_of_a_detailed_table_are_as_hard_as_in_print():
    """Table 7 has no clean accuracy, so that of Table 2 counts: 94.6 % there, and 47.6 % under white noise."""

    def level(value):
        line = entry("digits/baseline", 1, clean=0.95, **{"corrupted/gaussian_noise": value})
        return build_table("noisymix-table7", [line]).groups[0].levels["gaussian_noise"]

    loss = PRINTED.number("noisymix-table2", "baseline", "cifar10") - PRINTED.number(
        "noisymix-table7", "baseline", "gaussian_noise"
    )
    assert not level(0.95 - loss / 100 - 0.001).ceiling
    assert level(0.95 - loss / 100 + 0.001).ceiling


def test_a_ceiling_is_named():
    def verdict(noisy, gain=0.02):
        entries = []
        for seed in (1, 2, 3):
            entries.append(entry("digits/baseline", seed, clean=0.95, **{"white_noise/0.1": noisy}))
            entries.append(entry("digits/manifold_mixup", seed, clean=0.95, **{"white_noise/0.1": noisy - 0.01}))
            better = noisy + gain + 0.001 * seed
            entries.append(entry("digits/nfm", seed, clean=0.95, **{"white_noise/0.1": better}))
        judged = {j.claim.id: j for j in judge_claims(entries)}
        return judged["nfm-manifold-1"].ours["digits"].text

    assert verdict(0.85) == "reproduced (1 of 3 comparisons)"
    assert verdict(0.94) == "reproduced (ceiling, 1 of 3 comparisons)"
    assert verdict(0.94, gain=-0.03) == "not reproduced (ceiling, 1 of 3 comparisons)"


def test_a_full_ledger_joins_every_row_and_judges_every_claim():
    """No column of a row that has a runnable recipe stays empty, and only a claim without numbers is not judged."""
    entries = full_ledger()
    for table in TABLES:
        (*groups,) = build_table(table, entries).groups
        rows = set(PRINTED.rows(table))
        if TABLES[table].data[0].startswith("toy"):
            assert groups == []
            continue
        (group,) = groups
        columns = [column.id for column in PRINTED.columns(table)]
        expected = {(row, column) for row in rows - {"augmax", "stylized_imagenet"} for column in columns}
        expected -= {("baseline", "robustness_gain")}
        assert set(group.cells) == expected
    judged = {judgement.claim.id: judgement for judgement in judge_claims(entries)}
    without = {name for name, judgement in judged.items() if not judgement.ours}
    assert without == {"nfm-star", "nfm-toy", "noisymix-toy"}  # no numbers are printed; the toys are no paper recipes
    parts = {name: (j.ours["paper"].judged, j.ours["paper"].total) for name, j in judged.items() if j.ours}
    # The stylized row has no weights to train, and only the claims that compare with it lack a comparison.
    lacking = {name for name, (judged_, total) in parts.items() if judged_ < total}
    stylized = {c.id for c in all_claims() if any(pair.other == "stylized_imagenet" for pair in c.comparisons)}
    assert lacking == stylized
    assert parts["noisymix-imagenet-c"] == (8, 9)


def test_with_every_recipe_of_our_own_every_claim_on_cifar_is_judged():
    """What is left needs ImageNet or numbers in print."""
    sizes = tuple(size for size in SIZES if size != "paper")
    judged = {j.claim.id: j for j in judge_claims(full_ledger(sizes=sizes))}
    open_ = {name for name, j in judged.items() if not j.ours}
    for name in open_:
        claim = judged[name].claim
        data = {
            column.data for c in claim.comparisons for column in PRINTED.columns(claim.table) if column.id in c.columns
        }
        networks = [r for c in claim.comparisons for d in data for r in recipes_of(claim.table, c.row, d)]
        foreign = "imagenet" in data or any(r.training.pretrained for r in networks)
        assert foreign or name == "nfm-star", name
    assert len(open_ - {"nfm-star"}) == 25
    assert {"nfm-toy", "noisymix-toy", "nfm-white-1", "nfm-white-2", "noisymix-cifar100-c-3", "flips-14"} <= (
        judged.keys() - open_
    )


def test_a_claim_with_a_missing_row_is_judged_on_the_others():
    entries = full_ledger(without=("nfm-table1/cutmix", "nfm-figure6/cifar10-cutmix"))
    outcome = next(j for j in judge_claims(entries) if j.claim.id == "nfm-white-1").ours["paper"]
    columns = sum(column.id.startswith("white") for column in PRINTED.columns("nfm-table1"))
    assert (outcome.judged, outcome.total) == (7 * columns, 8 * columns)
    assert f"{7 * columns} of {8 * columns} comparisons" in outcome.text


def test_claims_on_the_ledger_by_size():
    entries = [entry("digits/baseline", s, clean=0.5) for s in (1, 2)]
    entries += [entry("digits/manifold_mixup", s, clean=0.6 + 0.001 * s) for s in (1, 2)]
    entries += [entry("cifar10-compact/baseline", 1, clean=0.5), entry("cifar10-compact/manifold_mixup", 1, clean=0.4)]
    judged = {judgement.claim.id: judgement for judgement in judge_claims(entries)}
    texts = {size: outcome.text for size, outcome in judged["manifold-clean-1"].ours.items()}
    assert texts == {"digits": "reproduced", "compact": "not reproduced (one seed)"}
    assert judged["nfm-white-1"].ours == judged["flips-12"].ours == {}


# Rendering


def shown_table():
    entries = [
        entry("digits/nfm", seed, clean=value, **{"white_noise/0.1": 0.4}) for seed, value in ((1, 0.5), (2, 0.6))
    ]
    return build_table("nfm-table1", [*entries, entry("digits/baseline", 1, clean=0.5)])


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
    judgements = judge_claims([entry("digits/nfm", 1, clean=0.5)])
    text = CLAIM_FORMATS[form](judgements)
    assert "NoisyMix dominates on 6 of the 10 perturbations" in text
    assert "not supported (7 counted)" in text
    assert not any(line != line.rstrip() for line in text.split("\n"))


def test_foreign_text_is_escaped():
    table = shown_table()
    nasty = "a|b <i>&_%$#{}~^\\ c"
    rows = ((table.rows[0][0], nasty), *table.rows[1:])
    table = replace(table, rows=rows, groups=(replace(table.groups[0], heading="<script>"),))
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
    arguments = ["--format", "latex", "--table", "noisymix-table4", "--size", "compact", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, ["tables", *arguments]).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.tex", "noisymix-table4.tex"]
    assert CliRunner().invoke(app, ["audit", "--out", str(tmp_path)]).exit_code == 0
    assert "72.93" in (tmp_path / "audit.md").read_text(encoding="utf-8")


def test_command_reads_a_ledger(tmp_path):
    append(tmp_path / "ours.jsonl", entry("digits/nfm", 1, clean=0.6123))
    arguments = ["tables", "--table", "nfm-table1", "--ledger", str(tmp_path / "ours.jsonl")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "61.2 (1)" in result.output
    assert "width 8, samples all, epochs 20" in result.output.replace("\\_", "_")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "pdf"], "--format: expected one of md"),
        (["--table", "table9"], "--table: expected one of nfm-table1"),
        (["--size", "large"], "--size: expected one of paper"),
        (["--ledger", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_command_refuses_bad_options(arguments, words):
    result = CliRunner().invoke(app, ["tables", *arguments])
    assert result.exit_code == 2
    assert words in result.output
