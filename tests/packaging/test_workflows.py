"""The workflows: pinned actions, few permissions, and what is published is what was tested."""

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / ".github" / "workflows"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yml"))}


def jobs(name):
    return yaml.safe_load(TEXTS[name])["jobs"]


def used(job):
    return [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]


def artifact(job, action):
    (step,) = (step for step in job["steps"] if step.get("uses", "").startswith(f"actions/{action}@"))
    return step["with"]


@pytest.mark.parametrize("name", TEXTS)
def test_every_action_is_pinned_to_a_commit_with_its_version_beside(name):
    lines = [line.strip(" -") for line in TEXTS[name].splitlines() if re.match(r"\s*(- )?uses:", line)]
    assert lines
    for line in lines:
        assert re.fullmatch(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_one_action_has_one_commit():
    pins = {re.search(r"uses: (\S+)@(\S+ # \S+)", line).groups() for text in TEXTS.values()
            for line in text.splitlines() if "uses: " in line}  # fmt: skip
    assert len({action for action, _ in pins}) == len(pins)


@pytest.mark.parametrize("name", TEXTS)
def test_a_job_may_only_read_unless_it_says_so(name):
    assert yaml.safe_load(TEXTS[name])["permissions"] == {"contents": "read"}
    writing = {job for job, content in jobs(name).items() if "permissions" in content}
    assert writing <= {"publish", "deploy"}
    assert all("timeout-minutes" in content for content in jobs(name).values())


def test_the_wheel_that_is_published_is_the_one_that_was_tested():
    build, test, publish = (jobs("release.yml")[name] for name in ("build", "test", "publish"))
    assert (test["needs"], publish["needs"]) == ("build", "test")
    made, tested, published = (
        artifact(build, "upload-artifact"), artifact(test, "download-artifact"), artifact(publish, "download-artifact")
    )  # fmt: skip
    assert made == tested == published == {"name": "dist", "path": "dist"}
    commands = "\n".join(step["run"] for step in test["steps"] if "run" in step)
    assert 'pip" install dist/*.whl' in commands
    assert 'NFM_WHEEL="$(ls "$PWD"/dist/*.whl)" make test' in commands
    assert "python -m build" not in commands
    # The job with the right to publish runs no code of the repository
    assert [step for step in publish["steps"] if "run" in step] == []
    assert used(publish) == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]
