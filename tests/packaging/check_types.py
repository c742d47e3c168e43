"""A user's script, checked in strict mode against the installed wheel. `make types` runs this file, pytest does not."""

import json
import shutil
import sys
from pathlib import Path

from installed import run

SCRIPT = Path(__file__).resolve().with_name("user_script.py")


def test_a_users_script_has_no_type_errors(bare, tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    done = run(sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", bare / "python", folder=tmp_path)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] >= 1
    messages = [f"line {d['range']['start']['line'] + 1}: {d['message']}" for d in found["generalDiagnostics"]]
    assert messages == []
