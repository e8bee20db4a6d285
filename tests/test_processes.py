"""The processes that tests start."""

import json
import sys

from .processes import launch


def test_a_process_does_not_see_the_folders_that_a_test_added_to_the_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "added")])
    script = tmp_path / "script.py"
    script.write_text("import json, sys; print(json.dumps(sys.path))")
    done = launch(script)
    assert done.returncode == 0, done.stderr
    path = json.loads(done.stdout)
    assert path[0] == str(tmp_path)
    assert str(tmp_path / "added") not in path
