"""--help of every script: short, complete, and with an example that can be pasted."""

import importlib
import shlex
from dataclasses import fields

import pytest
from transformers import TrainingArguments


SCRIPTS = ("run_contrastive", "run_mlm", "run_classification", "run_evaluation")


@pytest.fixture(params=SCRIPTS)
def script(request):
    return importlib.import_module(request.param)


@pytest.fixture
def start(script, monkeypatch, capsys):
    """Reads these words as the script does, and returns what it prints."""

    def read(*words, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *words])
        script.parse_arguments()
        return capsys.readouterr().out

    return read


def printed(start, capsys, *words, **options):
    with pytest.raises(SystemExit) as end:
        start(*words, **options)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_help_is_a_page_that_fits_the_terminal(start, capsys, width):
    lines = printed(start, capsys, "--help", width=width).splitlines()
    assert len(lines) <= 100
    example = [line for line in lines if line.startswith("    ")]
    others = [line for line in lines if line.startswith("  ") and line not in example]
    assert max(map(len, others)) <= min(max(width, 80), 100)
    assert max(map(len, lines)) <= 88 or width > 88


def test_the_help_names_every_option_of_our_own_and_begins_with_the_model(script, start, capsys):
    text = printed(start, capsys, "--help")
    options = {word for line in text.splitlines() if line.startswith("  ") for word in line.split()}
    types = [value for name, value in vars(script).items() if name.endswith("Arguments") and isinstance(value, type)]
    own = {field.name for kind in types for field in fields(kind)} - {
        field.name for field in fields(TrainingArguments)
    }
    assert {f"--{name}" for name in own} <= options
    groups = text.split("\n\n")
    first = next(group for group in groups if group.startswith("options to begin with:"))
    assert first.splitlines()[1].startswith("  --model_name_or_path ")
    assert "--output_dir" in first


def test_all_options_are_in_the_long_help_with_their_defaults(script, start, capsys):
    text = printed(start, capsys, "--help_all")
    assert "--revision" in text
    if script.__name__ != "run_evaluation":
        assert "--adam_beta1" in text
        assert "options of transformers:" in text
    assert "Default: main." in text


def test_the_example_can_be_pasted(script, start, capsys):
    block = [line for line in printed(start, capsys, "--help").splitlines() if line.startswith("    ")]
    command = "\n".join(block[: next(i for i, line in enumerate(block) if not line.endswith("\\")) + 1])
    words = shlex.split(command.replace("\\\n", ""))
    assert words[:2] == ["python", f"{script.__name__}.py"]
    start(*words[2:])
