"""
Adds the changelog to the site, writes formulas as MathML, and keeps identifiers and scores with their deviation on one
line.
"""

import html as html_module
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files


# A formula as pymdownx.arithmatex leaves it, in the text or on its own lines.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

# A browser may break a line after a hyphen.
HYPHENATED = re.compile(r"\S*-\S*")
NAME_OR_NUMBER = re.compile(r"(?<![\w/-])(?:all-MiniLM-L6-v2|\d(?:\.\d+)?e-\d+)(?![\w-])")
MAX_UNBROKEN = 40  # characters that fit a narrow screen


def on_files(files: Files, config) -> Files:
    changelog = Path(config.config_file_path).parent / "CHANGELOG.md"
    files.append(File.generated(config, "changelog.md", content=changelog.read_text(encoding="utf-8")))
    return files


def on_page_content(html: str, page, config, files: Files) -> str:
    html = FORMULA.sub(_mathml, html)
    html = html.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    # Highlighted code has tags inside, and does not match.
    html = re.sub(r"(?<=<code>)[^<]*(?=</code>)", lambda code: HYPHENATED.sub(_unbroken, code[0]), html)
    return re.sub(r"(?<=>)[^<]+", lambda text: NAME_OR_NUMBER.sub(_unbroken, text[0]), html)


def _mathml(formula: re.Match[str]) -> str:
    tag, bracket, source = formula.groups()
    display = "block" if bracket == "[" else "inline"
    return f'<{tag} class="formula">{convert(html_module.unescape(source.strip()), display=display)}</{tag}>'


def _unbroken(name: re.Match[str]) -> str:
    return f'<span class="unbroken">{name[0]}</span>' if len(name[0]) <= MAX_UNBROKEN else name[0]
