"""Models, data and commands as a card names them: links to the Hub, no path of this machine, no token."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..common.rows import FORMATS


# An absolute path, or one that leaves the working folder, at the start of a word or after a quotation mark or "=".
_PATH = re.compile(r"""(?<![^\s="',\[({])(?:~|\.\.|[A-Za-z]:)?[/\\][^"',\])}]*""")
# A flag that takes a token, and the form of a token of the Hub.
_TOKEN_FLAG = re.compile(r"(--[\w-]*token)(?:=.*)?")
_TOKEN = re.compile(r"\bhf_\w{8,}")


def is_hub_name(name: str) -> bool:
    """Whether this is a name on the Hub. A folder of that name goes first, as in transformers and datasets."""
    if Path(name).exists() or Path(name.removesuffix(".gz")).suffix in FORMATS:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def base_link(base_model: str) -> str:
    """The base model in a sentence: a link to the Hub, or no name at all."""
    return f"[{base_model}](https://huggingface.co/{base_model})" if is_hub_name(base_model) else "an encoder"


def source(name: str, kind: str = "") -> str:
    """A model or a dataset: a link if it is on the Hub, else the bare name of the file or folder."""
    if is_hub_name(name):
        return f"[{name}](https://huggingface.co/{kind}{name})"
    return f"`{name_of(name)}` (local)"


def data_source(name: str | None, part: str, hub_parts: Mapping[str, str]) -> str:
    """Data as [`source`] names them, with configuration and split if they are on the Hub."""
    if not name:
        return "not named"
    used = [hub_parts[key] for key in ("config", part) if is_hub_name(name) and key in hub_parts]
    return ", ".join([source(name, "datasets/"), *(f"`{value}`" for value in used)])


def name_of(path: str) -> str:
    """The last part of a path, or its part inside an installed package, which is public anyway."""
    path = os.path.abspath(path)
    parts = Path(path).parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return os.path.basename(path)


def clean_command(command: str, token: str | None = None) -> str:
    """The command without paths outside the working folder and without tokens, whatever flag they belong to."""
    try:
        words = shlex.split(command)
    except ValueError:  # joined without quoting
        words = command.split()
    cleaned: list[str] = []
    for word in words:
        if cleaned and "=" not in cleaned[-1] and _TOKEN_FLAG.fullmatch(cleaned[-1]):
            cleaned.append("...")
        elif match := _TOKEN_FLAG.fullmatch(word):
            cleaned.append(f"{match[1]}=..." if "=" in word else word)
        else:
            word = _TOKEN.sub("...", word.replace(token, "...") if token else word)
            cleaned.append(_PATH.sub(lambda found: _command_path(found[0]), word))
    return command if cleaned == words else shlex.join(cleaned)


def _command_path(path: str) -> str:
    if "\\" in path:
        return PureWindowsPath(path).name
    is_inside = os.path.isabs(path) and Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if is_inside and "site-packages" not in path else name_of(path)
