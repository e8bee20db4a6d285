"""The Python of README.md and docs/ runs as it stands, in a folder of its own and without network."""

import re

import pytest

from .conftest import ROOT


PAGES = ("README.md", "docs/quick-tour.md", "docs/configuration.md", "docs/encoders.md", "docs/extending.md")
NEEDS_A_DOWNLOAD = "<!-- needs a download -->"


def python_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(rf"^({NEEDS_A_DOWNLOAD}\n)?```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [match[2] for match in found if match[1] is None]


def run(page: str) -> dict:
    """Run the blocks of a page from top to bottom, and return the variables that they leave."""
    variables = {"__name__": page}
    for number, block in enumerate(python_blocks(page), 1):
        exec(compile(block, f"{page}, Python block {number}", "exec"), variables)
    return variables


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert python_blocks(page)
    run(page)


def test_the_readme_gives_the_cosines_that_its_code_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embeddings = run("README.md")["embeddings"]
    cosines = embeddings @ embeddings.T
    expected = f"# cosines: {cosines[0, 1]:.2f} for the first two, {cosines[0, 2]:.2f} for the first and the last"
    assert expected in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [*PAGES, "docs/data-formats.md"])
def test_links_between_pages_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).is_file(), target
