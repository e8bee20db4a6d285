"""The documentation builds without a warning and is complete."""

import dataclasses
import html
import importlib
import re
import subprocess
import sys

import pytest

import modeling_layerpool
import modeling_layerpool.evaluation
import modeling_layerpool.publishing
import modeling_layerpool.training
from modeling_layerpool.models.configuration_layerpool import POOLER_OPTIONS
from tests.processes import ROOT


pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: pip install -e '.[docs]'")
pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def anchors(site) -> set[str]:
    """The names that the pages of the API reference document."""
    pages = (site / "api").glob("*.html")
    return {anchor for page in pages for anchor in re.findall(r'id="([\w.]+)"', page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("name", ["", ".training", ".evaluation", ".publishing"])
def test_the_reference_has_every_public_name(site, name):
    module = importlib.import_module(f"modeling_layerpool{name}")
    assert {f"{module.__name__}.{public}" for public in module.__all__} <= anchors(site)


def test_fields_are_documented_and_no_markup_stays_in_the_text(site):
    documented = anchors(site)
    assert all(any(anchor.endswith(f"Options.{name}") for anchor in documented) for name in POOLER_OPTIONS)
    arguments = modeling_layerpool.training.ContrastiveTrainingArguments
    fields = {field.name for field in dataclasses.fields(arguments)} & set(arguments.__annotations__)
    assert {f"modeling_layerpool.training.ContrastiveTrainingArguments.{name}" for name in fields} <= documented
    training = (site / "api" / "training.html").read_text(encoding="utf-8")
    assert "Temperature that cosines are divided by; above 0." in training  # help texts are the fields' descriptions
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\*optional\*|(Args|Raises|Returns|Keyword Args):|\[<code>", text), page


def pages(site):
    return [(page.relative_to(site).as_posix(), page.read_text(encoding="utf-8")) for page in site.rglob("*.html")]


def test_the_sections_are_those_that_a_reader_looks_for(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    tabs = re.search(r'<nav class="md-tabs".*?</nav>', home, re.DOTALL)[0]
    assert re.findall(r'class="md-tabs__link">\s*(.*?)\s*</a>', tabs) == ["Start", "Guides", "Reference", "Results"]
    assert "install.html" in home


def test_code_fits_the_width_of_the_page(site):
    for page, text in pages(site):
        for block in re.findall(r"<pre>.*?</pre>", text, re.DOTALL):
            lines = html.unescape(re.sub(r"<[^>]*>", "", block)).splitlines()
            assert not [line for line in lines if len(line) > 88], page


def test_formulas_are_rendered(site):
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    found = dict(pages(site))
    for name, source in sources.items():
        displayed = len(re.findall(r"^\$\$$", source, re.MULTILINE)) // 2
        assert found[f"{name}.html"].count('<div class="formula"><math') == displayed, name
    assert found["configuration.html"].count('<div class="formula"><math') >= 8
    for page, text in found.items():
        assert "arithmatex" not in text, page
        assert not re.search(r"\\(frac|sum|text|alpha|cdot)\b", text), page


def test_identifiers_are_not_broken_at_hyphens(site):
    configuration = dict(pages(site))["configuration.html"]
    assert '<code><span class="unbroken">--pooler_learning_rate</span></code>' in configuration
    assert '<span class="unbroken">all-MiniLM-L6-v2</span>' in configuration
    assert '<span class="unbroken">1e-4</span>' in dict(pages(site))["results.html"]
    css = (ROOT / "docs/stylesheets/site.css").read_text(encoding="utf-8")
    assert re.search(r"\.unbroken \{\s*white-space: nowrap;", css)


def test_the_site_fetches_nothing(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//[^"]*"', text), page
        assert not re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href="(?:https?:)?//', text), page
