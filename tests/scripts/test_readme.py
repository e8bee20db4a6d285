"""The Python code of README.md and docs/ runs, the flags of the commands exist, and the links work."""

import json
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from transformers import HfArgumentParser

from modeling_layerpool.common.errors import InputError
from tests.hub_server import running_hub
from tests.processes import ROOT
from tests.publishing.test_hub import run as run_beside_hub


PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
NEEDS_A_DOWNLOAD = "<!-- needs a download -->"
HUB_PAGE = "docs/hub.md"  # publishes to a Hub, in the test to one on this machine
COMMANDS_PAGE = "docs/how-to.md"  # test_wheel.py runs it from a wheel
SLOW_PAGES = ["docs/onnx.md"]
OTHERS = re.compile(r"(pip|hf|pytest|tensorboard|trackio) ")
# Replaces `...` in a command.
AND_SO_ON = "--model_name_or_path model --train_file train.jsonl --output_dir out"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, except those that need a download."""
    found = re.finditer(rf"^({NEEDS_A_DOWNLOAD}\n)?```{language}\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)
    return [match[2] for match in found if match[1] is None]


def spans_of(page: str) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE))


def commands(page: str) -> list[str]:
    """The commands of a page that start one of our programs, in code blocks and in the text."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in spans_of(page)]
    ours = re.compile(r"python (-m modeling_layerpool\.|(benchmarks/)?\w+\.py)|accelerate launch .*\.py")
    return [re.sub(r"[][]", "", line) for line in lines if ours.match(line)]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def run(page: str) -> dict:
    """Run the code blocks of a page from top to bottom, and return their variables."""
    variables = {"__name__": page}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page}, Python block {number}", "exec"), variables)
    return variables


# --- Python ---


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW_PAGES else [])
        for page in pages_with("python")
        if page not in (HUB_PAGE, COMMANDS_PAGE)
    ],
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_python_of_the_page_on_the_hub_publishes_and_opens(tiny_folder, tmp_path):
    code = "\n".join(blocks(HUB_PAGE, "python"))
    assert "get_model_path()" in code
    # A tiny folder replaces the real one, because all weights are uploaded and downloaded.
    (tmp_path / "page.py").write_text(code.replace("get_model_path()", repr(tiny_folder)), encoding="utf-8")
    with running_hub() as (hub, address):
        run_beside_hub(["page.py"], address, tmp_path)
    assert {"model.safetensors", "modeling_layerpool_bert.py", "tokenizer.json"} <= set(hub.files("me/my-encoder")[1])


def test_the_readme_gives_the_cosines_that_its_code_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embeddings = run("README.md")["embeddings"]
    cosines = embeddings @ embeddings.T
    expected = f"# cosines: {cosines[0, 1]:.2f} for the first two, {cosines[0, 2]:.2f} for the first and the last"
    assert expected in text_of("README.md")


# --- commands ---


# Modules of benchmarks that are no programs, and programs whose flags occur in the pages.
SHARED = ("similarity_and_search", "gpu_bench", "gpu_parts", "gpu_steps", "measuring", "studies")
PROGRAMS = [
    *sorted(path.name for path in ROOT.glob("run_*.py")),
    *sorted(f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in SHARED),
    "-m modeling_layerpool.publishing.convert",
    "-m modeling_layerpool.publishing.export_onnx",
    "-m modeling_layerpool.publishing.export_plain",
    "-m modeling_layerpool.evaluation.mine_negatives",
]


class Parsed(BaseException):
    """Stops a program after it has parsed its arguments."""


def stopping_after(parse):
    def parse_and_stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    return parse_and_stop


def parse(command: str, monkeypatch) -> None:
    """Let the program of a command parse and check its arguments; a wrong one raises `SystemExit` or an error."""
    words = shlex.split(command.replace("...", AND_SO_ON), comments=True)
    if words[:2] == ["accelerate", "launch"]:
        script = next(index for index, word in enumerate(words) if word.endswith(".py"))
        launcher = launch_command_parser().parse_args(words[2:])
        assert launcher.config_file is None or (ROOT / launcher.config_file).is_file()
        words = ["python", *words[script:]]
    monkeypatch.setattr(sys, "argv", words[3:] if words[1] == "-m" else words[1:])
    if words[1] == "-m":
        sys.argv.insert(0, words[2])
        program = import_module(words[2]).main
    else:
        monkeypatch.syspath_prepend(ROOT / Path(words[1]).parent)
        names = runpy.run_path(str(ROOT / words[1]))
        if "parse_arguments" in names:
            names["parse_arguments"]()
            return
        program = names["main"]
    monkeypatch.setattr(
        HfArgumentParser,
        "parse_args_into_dataclasses",
        stopping_after(HfArgumentParser.parse_args_into_dataclasses),
    )
    monkeypatch.setattr(ArgumentParser, "parse_args", stopping_after(ArgumentParser.parse_args))
    with pytest.raises(Parsed):
        program()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_have_flags_that_their_programs_take(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    for block in blocks(page, "yaml"):
        for path in (Path("arguments.yaml"), Path("runs/my-encoder/_arguments.yaml")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, encoding="utf-8")
    for command in commands(page):
        if command.endswith("--help") or ("arguments.yaml" in command and not blocks(page, "yaml")):
            continue
        print(command)  # shown if the test fails
        with monkeypatch.context() as patch:
            parse(command, patch)


def test_a_wrong_flag_in_a_command_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, error in (
        ("python run_contrastive.py ... --poler_type mean", Exception),
        ("python run_evaluation.py --model_name_or_path m --output_dir o --stss a=b", InputError),
        ("python -m modeling_layerpool.publishing.convert a b --mlp perhaps", SystemExit),
        ("accelerate launch --num_machins 2 run_contrastive.py ...", SystemExit),
    ):
        with monkeypatch.context() as patch, pytest.raises(error):
            parse(command, patch)


def test_every_flag_that_a_page_names_is_one_of_a_program(monkeypatch, capsys):
    known = set(launch_command_parser()._option_string_actions)  # its help omits most of them
    for program in PROGRAMS:
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            parse(f"python {program} {'--help_all' if re.search('run_|mine_', program) else '--help'}", patch)
        known |= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    for page in PAGES:
        spans = " ".join(span for span in spans_of(page) if not OTHERS.match(span))
        flags = set(re.findall(r"(?<![\w-])--\w[\w-]*+(?!\.\.\.)", spans))
        assert not flags - known, page


# --- the rest ---


@pytest.mark.parametrize("page", [*pages_with("json"), *pages_with("yaml")])
def test_the_json_and_yaml_of_a_page_can_be_read(page):
    for block in blocks(page, "json"):
        try:
            json.loads(block)
        except ValueError:
            for line in block.splitlines():
                json.loads(line)
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_fit_the_width_of_the_site(page):
    for block in re.findall(r"^```\w*\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE):
        assert not [line for line in block.splitlines() if len(line) > 88]


@pytest.mark.parametrize("page", PAGES)
def test_tables_have_a_header_and_blank_lines_around_them(page):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n", text.strip()):
        rows = [line.startswith("|") for line in block.splitlines()]
        assert all(rows) or not any(rows), block
        assert not any(rows) or re.match(r"\|.*\n\|[ :|-]+(\n|$)", block), block


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text_of(page)):
        assert (path.parent / target).is_file(), target
