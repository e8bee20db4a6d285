"""Prompts: texts that a model reads before each sentence, by name, as sentence-transformers saves them."""

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from .checkpoint_files import find_file, read_json_object
from .errors import InputError
from .rows import check_unicode, read_json, shown


SETTINGS_FILE = "config_sentence_transformers.json"
# The two names that sentence-transformers has in every model.
QUERY, DOCUMENT = "query", "document"


class Prompts(NamedTuple):
    """The texts that go before each sentence, before each query and before each document of a retrieval set."""

    sentences: str = ""
    queries: str = ""
    documents: str = ""

    @classmethod
    def of(cls, prompts: dict[str, str] | None, default_prompt_name: str | None) -> "Prompts":
        """Those among the prompts of a model that an evaluation uses."""
        prompts = prompts or {}
        return cls(prompts.get(default_prompt_name, ""), prompts.get(QUERY, ""), prompts.get(DOCUMENT, ""))


def read_settings_file(name: str, revision: str = "main") -> dict[str, Any] | None:
    """
    The content of `config_sentence_transformers.json` in a folder or a Hub model, or None if there is no such file or
    it belongs to another kind of model. Raises an `InputError` if it is broken.
    """
    path = find_file(name, SETTINGS_FILE, revision)
    content = None if path is None else read_json_object(path)
    if content is None or content.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        return None  # sentence-transformers ignores the file of another kind of model
    return content


def prompts_in(content: dict[str, Any], where: Path) -> tuple[dict[str, str], str | None]:
    """
    The prompts by name in `config_sentence_transformers.json`, and the name of the default one.

    Raises:
        InputError: a prompt is no text, or the default is not one of the prompts. Begins with `where`.
    """
    given = content.get("prompts", {})
    if not isinstance(given, dict):
        raise InputError(f"{where}: 'prompts' must be an object of texts, got {shown(given)}")
    prompts = {QUERY: "", DOCUMENT: ""}
    for prompt_name, prompt in given.items():
        if not isinstance(prompt, str | None):
            raise InputError(f"{where}: the prompt {shown(prompt_name)} must be a text, got {shown(prompt)}")
        prompts[prompt_name] = check_unicode(prompt or "", f"{where}, prompts", prompt_name)
    default = content.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise InputError(
            f"{where}: 'default_prompt_name' is {shown(default)}, which is none of the prompts ({', '.join(prompts)})"
        )
    return prompts, default


def saved_prompts(name: str, revision: str, config: dict[str, Any]) -> dict[str, Any]:
    """
    The fields of a configuration about the prompts that the files of sentence-transformers hold, for a folder or a Hub
    model with this `config.json`. A model of this package has some of them in its `config.json` too, where
    sentence-transformers neither reads nor changes them.
    """
    fields: dict[str, Any] = {}
    content = read_settings_file(name, revision)
    if content is not None:
        prompts, default = prompts_in(content, Path(name, SETTINGS_FILE))
        has_prompts = any(prompts.values())
        fields = {"prompts": prompts if has_prompts else None, "default_prompt_name": default if has_prompts else None}
    if "pooler_type" not in config:
        fields |= _saved_pooling(name, revision)
    return fields


def _saved_pooling(name: str, revision: str) -> dict[str, Any]:
    """`include_prompt` as the Pooling module of a sentence-transformers model has it, if it has one."""
    path = find_file(name, "modules.json", revision)
    modules = [] if path is None else read_json(path)
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type")).endswith(".Pooling"):
            path = find_file(name, str(PurePosixPath(str(module.get("path")), "config.json")), revision)
            content = {} if path is None else read_json_object(path)
            if content.get("include_prompt") is False:
                return {"include_prompt": False}
    return {}


def prompts_of(config: PreTrainedConfig) -> Prompts:
    """The prompts of a layer-pooled model that an evaluation uses."""
    return Prompts.of(config.prompts, config.default_prompt_name)
