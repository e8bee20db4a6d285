"""The wheel holds all that a user needs: in a new environment, outside the repository."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.scripts.test_readme import blocks


pytestmark = pytest.mark.long
pytest.importorskip("setuptools", minversion="77", reason="an older setuptools cannot build the wheel")

PACKAGE = "modeling_layerpool"


def run(*words, cwd):
    """Run a command without this repository on its path, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of a new environment with the wheel. It finds all other packages where this Python does."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools builds in the folder of the source
    shutil.copytree(ROOT / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))):
        shutil.copy(path, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, source, cwd=folder)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.fixture
def programs(python):
    """The folder of `python` and `accelerate`, which both run with the wheel."""
    program = python.with_name("accelerate")
    program.write_text(f"#!{python}\nfrom accelerate.commands.accelerate_cli import main\nmain()\n")
    program.chmod(0o755)
    return python.parent


def test_every_block_of_the_page_of_commands_runs_in_an_empty_folder(python, programs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    page = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8")
    found = re.findall(r"(<!-- needs .*-->\n)?```(python|bash)\n(.*?)```", page, flags=re.DOTALL)
    assert len(found) == page.count("```") / 2
    for need, language, code in found:
        if not need:
            run(*(("bash", "-euc", code) if language == "bash" else (python, "-c", code)), cwd=tmp_path)
    runs = {"questions", "mixed", "prompts", "triplets", "two", "mined"}
    assert {path.parent.name for path in tmp_path.glob("runs/*/model.safetensors")} == runs
    assert json.loads((tmp_path / "runs/two/trainer_state.json").read_text())["global_step"] == 5
    assert (tmp_path / "onnx-questions/onnx/model.onnx").is_file()
    assert "capitals" in (tmp_path / "runs/questions/README.md").read_text()


def test_the_quick_tour_and_the_scripts_run_in_an_empty_folder(python, tmp_path):
    names = [PACKAGE, *(path.stem for path in ROOT.glob("run_*.py"))]
    tour = tmp_path / "tour.py"
    imports = f"import {', '.join(names)}\nprint(*(module.__file__ for module in ({', '.join(names)})), sep='\\n')"
    tour.write_text("\n".join([*blocks("docs/quick-tour.md", "python"), imports]))
    for file in run(python, tour, cwd=tmp_path).splitlines()[-len(names) :]:
        assert Path(file).is_relative_to(python.parents[1])
    assert (tmp_path / "my-encoder" / "model.safetensors").is_file()
