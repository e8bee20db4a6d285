import runpy
from pathlib import Path

import datasets
import pytest
import transformers

from tests.processes import flags


@pytest.fixture(autouse=True)
def no_pictures_in_cards(monkeypatch):
    """Runs in this process write their card without pictures, which take as long as a training; see test_plots.py."""
    monkeypatch.setattr("modeling_layerpool.publishing.model_card.draw", lambda path, *args: None)


@pytest.fixture(autouse=True)
def progress_bars_as_before():
    """A run turns off the progress bars of its process, which is also that of the next test."""
    yield
    datasets.enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def out(arguments):
    return Path(arguments["output_dir"])


@pytest.fixture
def run(request, monkeypatch, capsys):
    """
    Runs the script of the test module, or another one, in this process, and returns what it prints. The options are a
    dictionary of flags, or the file that holds them.
    """

    def start(options, script=None):
        path = str(script or request.module.SCRIPT)
        words = flags(options) if isinstance(options, dict) else [str(options)]
        monkeypatch.setattr("sys.argv", [path, *words])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return start
