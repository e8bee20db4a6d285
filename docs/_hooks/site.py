"""Adds the changelog to the site, and keeps flags in inline code and scores with their deviation on one line."""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files


def on_files(files: Files, config) -> Files:
    changelog = Path(config.config_file_path).parent / "CHANGELOG.md"
    files.append(File.generated(config, "changelog.md", content=changelog.read_text(encoding="utf-8")))
    return files


def on_page_content(html: str, page, config, files: Files) -> str:
    html = html.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    # A browser may break a line after the hyphens of a flag. Highlighted code has tags inside, and does not match.
    return re.sub(
        r"<code>[^<]*</code>", lambda code: re.sub(r"--\w[\w-]*", r'<span class="flag">\g<0></span>', code[0]), html
    )
