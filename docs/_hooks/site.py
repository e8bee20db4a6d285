"""What the site has beside the pages of this folder."""

from pathlib import Path

from mkdocs.structure.files import File, Files


def on_files(files: Files, config) -> Files:
    changelog = Path(config.config_file_path).parent / "CHANGELOG.md"
    files.append(File.generated(config, "changelog.md", content=changelog.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> None:
    if page.file.src_uri.startswith("results/"):  # logs: linked from where they are told of, and not searched
        page.meta["search"] = {"exclude": True}
