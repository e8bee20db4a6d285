"""The JSON files of a sentence-transformers model: its modules, the code that they name, and its prompts."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import torch

from ..common.checkpoint_files import check_weights, find_file, read_json_object
from ..common.errors import InputError
from ..common.prompts import SETTINGS_FILE, Prompts, prompts_in, read_settings_file
from ..common.rows import is_folder, read_json, shown


# The first of these files that exists and is not empty configures a Transformer module.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


class Module(NamedTuple):
    """A module: its dotted class name, `type`, and its folder, `path`, which is "" for the folder of the model."""

    type: str
    path: str


class Settings(NamedTuple):
    """
    The settings in `config_sentence_transformers.json`. `prompts` is None if there is no such file, and `truncate_dim`
    for the whole width.
    """

    prompts: Prompts | None = None
    truncate_dim: int | None = None


def read_modules(name: str, revision: str = "main") -> list[Module] | None:
    """The modules in the `modules.json` of a folder or a Hub model, or None if there is no such file.

    Raises:
        InputError: the file is broken, lists no modules, or names a folder outside the model's.
    """
    where = Path(name, "modules.json")
    path = find_file(name, "modules.json", revision)
    if path is None:
        return None
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: must be a list with at least one module, got {shown(content)}")
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict):
            raise InputError(f"{where}, module {number}: must be an object, got {shown(entry)}")
        for key in ("type", "path", "name"):
            if not isinstance(entry.get(key), str):
                raise InputError(f"{where}, module {number}: {key!r} must be a text, got {shown(entry.get(key))}")
        _check_path(entry["path"], where)
    return [Module(entry["type"], entry["path"]) for entry in content]


def read_settings(name: str, revision: str = "main") -> Settings:
    """The settings in `config_sentence_transformers.json`, by the rules of sentence-transformers.

    `encode_query` uses the prompt "query" and `encode_document` the prompt "document"; both are empty by default.
    `encode` uses the prompt that `default_prompt_name` names, or none.

    Raises:
        InputError: the file is broken, a prompt is no text, or the default is not one of the prompts.
    """
    where = Path(name, SETTINGS_FILE)
    content = read_settings_file(name, revision)
    if content is None:
        return Settings()
    prompts, default = prompts_in(content, where)
    width = content.get("truncate_dim")
    if width is not None and (type(width) is not int or width < 1):
        raise InputError(f"{where}: 'truncate_dim' must be a whole number of at least 1, got {shown(width)}")
    return Settings(Prompts.of(prompts, default), width)


def check_modules(
    name: str, modules: list[Module], revision: str = "main", *, trust_remote_code: bool, allow_pickle: bool
) -> None:
    """Check the folders of modules before sentence-transformers opens them. It must be installed.

    Up to release 5.4, sentence-transformers imports any class that a local folder names: as a module, as a module
    inside a Router, as an activation function or as a tokenizer. Every release passes on a request for kernels of any
    author. Only folders have their weights checked, since the files of a Hub model are not known before the download.

    Raises:
        InputError: a folder is missing or its configuration is broken; or it names code from outside
            sentence-transformers and torch without `trust_remote_code`, or has pickled weights without `allow_pickle`.
    """
    from sentence_transformers.base.modules import Module as BaseModule
    from sentence_transformers.base.modules import Router

    folders = []
    pending = [(module, Path(name, "modules.json")) for module in modules]
    for module, where in pending:  # grows by the modules inside modules
        module_class = _class_of(module.type, "sentence_transformers.", BaseModule)
        if module_class is None and not trust_remote_code:
            raise _untrusted(where, module.type)
        folder = Path(name, module.path)
        folders.append(folder)
        # A Normalize module has no files, and a repository drops its empty folder.
        needs_folder = module_class is not None and module_class.__name__ != "Normalize"
        if needs_folder and is_folder(name) and not is_folder(folder):
            raise InputError(f"{where}: names the folder {module.path}, which is missing; copy the whole model")
        for file in _configuration_files(module_class):
            path = PurePosixPath(module.path, file)
            configuration = _read_object(name, str(path), revision) or {}
            if not trust_remote_code:
                _check_code(configuration, Path(name, path))
            if issubclass(module_class, Router):
                inside = _modules_inside(configuration, module.path, Path(name, path))
                pending += [(inner, Path(name, path)) for inner in inside]
    if is_folder(name):
        check_weights(*folders, allow_pickle=allow_pickle)
        for folder in folders:
            # Without model.safetensors this file is loaded, whatever else the folder has.
            pickled = folder / "pytorch_model.bin"
            has_safetensors = any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json"))
            if pickled.exists() and not has_safetensors and not allow_pickle:
                raise InputError(
                    f"{pickled}: a pickle file, which can run code when it is opened; convert it to safetensors, or "
                    "trust it with --allow_pickle"
                )


def _read_object(name: str, filename: str, revision: str) -> dict[str, Any] | None:
    path = find_file(name, filename, revision)
    return None if path is None else read_json_object(path)


def _check_path(path: str, where: Path) -> None:
    parts = PureWindowsPath(path)  # parses both kinds of separators
    if parts.anchor or ".." in parts.parts or "\0" in path:
        raise InputError(f"{where}: names the folder {shown(path)}, which is not inside the model's")


def _configuration_files(module_class: type | None) -> tuple[str, ...]:
    """The files that configure a module of sentence-transformers. Those of another package are unknown."""
    if module_class is None:
        return ()
    if module_class.config_file_name in TRANSFORMER_FILES:
        return TRANSFORMER_FILES
    return tuple(dict.fromkeys((module_class.config_file_name, "config.json")))


def _modules_inside(configuration: dict[str, Any], folder: str, where: Path) -> Iterator[Module]:
    types = configuration.get("types", {})
    if not isinstance(types, dict) or not all(isinstance(module_type, str) for module_type in types.values()):
        raise InputError(f"{where}: 'types' must be an object of texts, got {shown(types)}")
    for path, module_type in types.items():
        _check_path(path, where)
        if not PurePosixPath(path).parts:
            raise InputError(f"{where}: the name of a module inside must be that of its folder, got {shown(path)}")
        yield Module(module_type, str(PurePosixPath(folder, path)))


def _class_of(dotted_name: Any, package: str, base: type) -> type | None:
    """The class with a dotted name, if it is a subclass of `base` in this package. Imports no other package."""
    from sentence_transformers.util import import_from_string

    if not isinstance(dotted_name, str) or not dotted_name.startswith(package):
        return None
    try:
        found = import_from_string(dotted_name)
    except Exception:  # importing a wrong name can raise anything
        return None
    is_own = isinstance(found, type) and issubclass(found, base) and found.__module__.startswith(package)
    return found if is_own else None


def _check_code(configuration: dict[str, Any], where: Path) -> None:
    from sentence_transformers.sentence_transformer.modules.tokenizer import WordTokenizer

    allowed = {
        "activation_function": ("torch.nn.", torch.nn.Module),
        "tokenizer_class": ("sentence_transformers.", WordTokenizer),
    }
    for key, (package, base) in allowed.items():
        if key in configuration and _class_of(configuration[key], package, base) is None:
            raise _untrusted(where, configuration[key])
    for key in ("model_args", "model_kwargs"):
        options = configuration.get(key)
        if isinstance(options, dict) and options.get("allow_all_kernels"):
            raise _untrusted(where, "allow_all_kernels")


def _untrusted(where: Path, code: Any) -> InputError:
    return InputError(
        f"{where}: names code to run, {shown(code)}, which is not part of sentence-transformers "
        f"{version('sentence-transformers')}; trust it with --trust_remote_code"
    )
