"""The runner of recorded studies: where it writes, what it compares, and its exit status."""

import json
from dataclasses import replace

import pytest
import torch
from rich.table import Table
from typer.testing import CliRunner

from experiments.commands import app
from experiments.processes import map_cases
from experiments.record.files import RESULTS, read_lines, write_lines
from experiments.studies import bounds, commands, decomposition, expansion, explore, validity, where
from experiments.studies.recorded import RecordedStudy, RecordFile, compare, run_study

FILE = RecordFile("toy.jsonl", ("name",), lambda new, old: "" if abs(new["value"] - old["value"]) < 1 else "far off")


def measure(case):
    return ([{"name": case, "value": float(len(case)), "seconds": 1.0}],)


STUDY = RecordedStudy("toy", (FILE,), measure, lambda records: Table(title=f"{len(records)} records"))


def record(name, value, **more):
    return {"name": name, "value": value, "seconds": 2.0, **more}


def test_records_are_written_beside_the_tracked_ones_and_compared(tmp_path, capsys):
    tracked = tmp_path / "toy.jsonl"
    write_lines(tracked, [record("a", 1.0 + 1e-8), record("bb", 2.5)])
    before = tracked.read_bytes()
    assert run_study(STUDY, ["a", "bb", "ccc"], out=tmp_path / "again", tracked=tmp_path) == 0
    assert tracked.read_bytes() == before
    assert [r["value"] for r in read_lines(tmp_path / "again" / "toy.jsonl")] == [1, 2, 3]
    printed = capsys.readouterr().out
    assert "2 of 2 records agree with the tracked ones, 1 of them to six digits; 1 are not in the" in printed
    assert f"written: {tmp_path / 'again' / 'toy.jsonl'}" in printed


def test_a_contradiction_is_named_and_is_the_exit_status(tmp_path, capsys):
    write_lines(tmp_path / "toy.jsonl", [record("a", 1), record("bb", 7)])
    assert run_study(STUDY, ["a", "bb"], out=None, tracked=tmp_path) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 records agree" in printed
    assert "contradiction: bb: far off" in printed
    assert run_study(STUDY, ["bb"], out=None, tracked=None) == 0
    refuted = replace(STUDY, conclude=lambda records: (3, ["undecided"]))
    assert run_study(refuted, ["a", "bb"], out=None, tracked=tmp_path) == 3


def test_only_record_replaces_the_tracked_file(tmp_path, capsys):
    write_lines(tmp_path / "toy.jsonl", [record("a", 1)])
    run_study(STUDY, ["a", "bb"], out=tmp_path / "again", tracked=tmp_path, record=True)
    assert [r["name"] for r in read_lines(tmp_path / "toy.jsonl")] == ["a", "bb"]
    assert "recorded: " in capsys.readouterr().out


def test_what_was_measured_before_a_failure_is_kept(tmp_path):
    def fails(case):
        if case == "bb":
            raise RuntimeError("stopped")
        return measure(case)

    with pytest.raises(RuntimeError, match="stopped"):
        run_study(replace(STUDY, measure=fails), ["a", "bb"], out=tmp_path, tracked=None)
    assert [r["name"] for r in read_lines(tmp_path / "toy.jsonl")] == ["a"]


def test_results_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    assert list(map_cases(lambda case: torch.get_num_threads(), [1, 2], 1)) == [1, 1]
    assert torch.get_num_threads() == before


STUDIES = {
    "expansion": (expansion.STUDY, expansion.cases()),
    "bounds": (bounds.study(), bounds.cases()),
    "validity": (validity.study(), commands.layer_cases()),
    "decomposition": (decomposition.STUDY, decomposition.cases()),
    "explore": (explore.STUDY, explore.cases()),
    "where": (where.STUDY, where.cases()),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_tracked_records_agree_with_themselves_and_cover_the_cases(name):
    study, cases = STUDIES[name]
    for file in study.files:
        tracked = read_lines(RESULTS / file.name)
        found = compare(file, tracked, json.loads(json.dumps(tracked)))
        assert (found.same, found.unknown, found.contradictions) == (len(tracked), 0, [])
        assert len({file.key_of(line) for line in tracked}) == len(tracked) >= len(cases)
    if study.sample is not None:
        assert 0 < sum(map(study.sample, cases)) < len(cases) / 2 + 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("expansion", lambda r: r["report"].update(verdict="refuted")),
        ("expansion", lambda r: r["report"].update(predicted_coefficient=2 * r["report"]["predicted_coefficient"])),
        ("bounds", lambda r: r["bound"][0].update(verdict="refuted")),
        ("bounds", lambda r: r["bound"][-1].update(nfm_loss=2 * r["bound"][-1]["nfm_loss"])),
        ("validity", lambda r: r["curve"]["relative_error"]["2"].append(9.0)),
        ("decomposition", lambda r: r.update(loss=2 * r["loss"])),
        ("explore", lambda r: r["coefficients"].update(R2=2 * r["coefficients"]["R2"])),
        ("where", lambda r: r["per_layer"][""].update(R2_add=2 * r["per_layer"][""]["R2_add"])),
    ],
)
def test_a_record_that_says_something_else_contradicts(name, change):
    study, _ = STUDIES[name]
    file = study.files[0]
    tracked = read_lines(RESULTS / file.name)
    new = json.loads(json.dumps(tracked[:2]))
    change(new[0])
    found = compare(file, new, tracked)
    assert len(found.contradictions) == found.same == 1
    assert "recorded" in found.contradictions[0]


def test_recording_takes_all_cases():
    for other in ("--sample", "--quick"):
        run = CliRunner().invoke(app, ["study", "expansion", "--record", other])
        assert run.exit_code == 2
        assert "leave out --sample" in " ".join(run.output.replace("│", " ").split())


def test_a_sample_says_what_it_is(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "run_study", lambda study, cases, **options: seen.append((cases, options)) or 0)
    run = CliRunner().invoke(app, ["study", "expansion", "--sample", "--out", str(tmp_path)])
    assert run.exit_code == 0
    assert "NFM at the hidden layers" in run.output
    assert "all cases: python -m experiments study expansion" in run.output
    ((cases, options),) = seen
    assert {case.scheme for case in cases} == {"mixup", "nfm"}
    assert (options["out"], options["tracked"], options["record"]) == (tmp_path, RESULTS, False)
    CliRunner().invoke(app, ["study", "expansion"])
    assert seen[1][1]["out"] == RESULTS / "again"
