"""Finds, reads and checks the files of a checkpoint. An unusable file ends in one sentence."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .errors import InputError
from .rows import read_json, shown


logger = logging.getLogger(__name__)

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Packages raise these for a model that is missing, broken, or needs another package. Their text gives the reason.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
# transformers may accept wrong numbers in these fields of config.json, or build until memory runs out.
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "pooler_gru_layers",
    "vocab_size",
)
MOST_LAYERS = 1000
MOST_TOKENS = 10_000_000
# The switches in a Pooling module's config.json, and the modes that they stand for.
POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
HEAD_FILE = "head.json"  # of a head that was saved without its encoder
# Files of a checkpoint, other than config.json, that hold one JSON object.
JSON_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
)


def no_model(name: str, revision: str = "main") -> InputError:
    """The error for a name without a `config.json`."""
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        return InputError(f"{name}: an adapter, which is not a whole model; use the folder that it was merged into")
    if os.path.isfile(os.path.join(name, HEAD_FILE)):
        return InputError(f"{name}: a head without its encoder; open it in Python with modeling_layerpool.load_heads")
    if os.path.isdir(name):
        return InputError(f"{name}: has no config.json")
    of_revision = "" if revision == "main" else f" at the revision {revision}"
    return InputError(f"{name}: no such folder, nor a Hub model that can be reached{of_revision}")


def find_file(name: str, filename: str, revision: str = "main") -> str | None:
    """The local path of a file in a folder or in a Hub repository, or None if there is none or it is unreachable."""
    try:
        return cached_file(name, filename, revision=revision)
    except (OSError, ValueError):  # no such folder, repository or file, or no network
        return None


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises an `InputError` if the file cannot be read or holds something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, names and their values, not {shown(content)}")
    return content


def read_config(name: str, revision: str = "main") -> dict[str, Any]:
    """The content of `config.json`, as in [`find_config`]. Raises an `InputError` if there is no such file."""
    config = find_config(name, revision)
    if config is None:
        raise no_model(name, revision)
    return config


def find_config(name: str, revision: str = "main") -> dict[str, Any] | None:
    """
    The `config.json` of a folder or of a Hub model, or None if there is none. Its `model_type`, `architectures` and
    `id2label` have the right types, or are absent.

    Raises:
        InputError: the file is broken.
    """
    path = find_file(name, "config.json", revision)
    if path is None:
        return None
    config = read_json_object(path)
    architectures, id2label = config.get("architectures") or [], config.get("id2label") or {}
    if not isinstance(config.get("model_type", ""), str):
        raise InputError(f"{name}: config.json: model_type must be a name, not {shown(config['model_type'])}")
    if not (isinstance(architectures, list) and all(isinstance(item, str) for item in architectures)):
        raise InputError(f"{name}: config.json: architectures must be a list of names, not {shown(architectures)}")
    if not (
        isinstance(id2label, dict)
        and all(key.isdecimal() and isinstance(label, str) for key, label in id2label.items())
    ):
        raise InputError(
            f"{name}: config.json: id2label must give the name of each class by its number, not {shown(id2label)}"
        )
    return config


def read_pooling(name: str, revision: str = "main") -> dict[str, Any] | None:
    """The configuration of the Pooling module of a sentence-transformers model, or None if it has none."""
    path = find_file(name, "modules.json", revision)
    modules = [] if path is None else read_json(path)
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type")).endswith(".Pooling"):
            path = find_file(name, str(PurePosixPath(str(module.get("path")), "config.json")), revision)
            return {} if path is None else read_json_object(path)
    return None


def published_pooling(name: str, revision: str = "main") -> str:
    """
    The pooling of a sentence-transformers model: `"mean"` or `"cls"`. `"mean"` if it is none, and, with a warning, if
    it has a pooling that is neither.
    """
    config = read_pooling(name, revision) or {}
    # Until sentence-transformers 5, the file had a switch for each mode: pooling_mode_cls_token.
    switches = [mode for switch, mode in POOLING_SWITCHES.items() if config.get(switch)]
    modes = config.get("pooling_mode", switches or "mean")
    mode = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
    if mode == "cls":
        return "cls"
    # A mean over the root of the number of tokens is the mean times a number, with the same cosines.
    if mode not in ("mean", "mean_sqrt_len_tokens"):
        logger.warning("%s: was pooled by %s, which no pooler here does; it starts as mean", name, shown(mode))
    return "mean"


def has_classifier(config: dict[str, Any]) -> bool:
    """Whether a checkpoint with this `config.json` has a classifier."""
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def check_sizes(name: str, config: dict[str, Any], config_class: type[PreTrainedConfig]) -> None:
    """Raise an `InputError` if a size in `config.json` is not a positive whole number, or names too many layers."""
    for size in SIZES:
        field = config_class.attribute_map.get(size, size)
        value = config.get(field)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name}: config.json: {field} must be a positive whole number, not {shown(value)}")
        if size.endswith("_layers") and (value or 0) > MOST_LAYERS:
            raise InputError(f"{name}: config.json: {field} is {shown(value)}; the most is {MOST_LAYERS}")


def check_weights(*folders: Path, allow_pickle: bool) -> None:
    """Raise an `InputError` if no folder holds weights, or if one holds only pickles and these are not allowed."""
    without = [folder for folder in folders if not any(folder.glob("*.safetensors"))]
    pickled = [path for folder in without for pattern in PICKLES for path in folder.glob(pattern)]
    if pickled and not allow_pickle:
        raise InputError(
            f"{pickled[0]}: a pickle file, which can run code when it is opened; convert it to safetensors, or trust "
            "it with --allow_pickle"
        )
    if len(without) == len(folders) and not pickled:
        raise InputError(f"{folders[0]}: has no weights (model.safetensors)")


def open_checkpoint(
    model_class: Any,
    name: str,
    *,
    revision: str,
    allow_pickle: bool,
    attn_implementation: str | None,
    dtype: str | torch.dtype,
    **overrides: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """
    The model of a checkpoint, by `model_class.from_pretrained`, and the loading info of transformers: tensors that are
    missing, or that have another shape, are initialized and listed there.
    """
    if Path(name).is_dir():
        check_weights(Path(name), allow_pickle=allow_pickle)
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with loading_errors(name):
        return model_class.from_pretrained(
            name,
            revision=revision,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=dtype,
            **attention,
            **overrides,
        )


def load_tokenizer(name: str, revision: str = "main", *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint. Raises an `InputError` if there is no usable one."""
    check_token_numbers(name, revision)
    with loading_errors(name, "has no tokenizer that could be opened"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    check_tokenizer(name, tokenizer)
    return tokenizer


def check_token_numbers(name: str, revision: str = "main", folder: str = "") -> None:
    """
    Raise an `InputError` if `tokenizer.json`, in a folder of the model, gives a token a number beyond any vocabulary.
    The tokenizers package would allocate all numbers below it, and end the process when memory runs out.
    """
    path = find_file(name, str(PurePosixPath(folder, "tokenizer.json")), revision)
    if path is None:
        return
    content = read_json_object(path)
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbers = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict):
            numbers[str(token.get("content"))] = token.get("id")
    for token, number in numbers.items():
        if isinstance(number, int) and not 0 <= number < MOST_TOKENS:
            raise InputError(
                f"{path}: the token {shown(token)} has the number {shown(number)}; the most is {MOST_TOKENS:,}"
            )


def check_padding(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an `InputError` if texts of different length cannot make a batch."""
    if tokenizer.pad_token is None:
        raise InputError(f"{name}: the tokenizer has no padding token; name its pad_token in tokenizer_config.json")


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "") -> None:
    """Raise an `InputError` if the tokenizer has tokens without an embedding in the model."""
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    tokens = 1 + max(tokenizer.get_vocab().values())
    if size is not None and tokens > size:
        raise InputError(
            f"{name and f'{name}: '}the tokenizer has {tokens} tokens, but the model only {size}; take the tokenizer "
            "that belongs to it"
        )


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raise an `InputError` if a checkpoint has no tokenizer, or if its `model_max_length` leaves no room for a text.
    Without tokenizer files, transformers returns a tokenizer without any words.
    """
    with loading_errors(name, "has a tokenizer with broken special tokens"):
        numbers, special = tokenizer.all_special_ids, tokenizer.num_special_tokens_to_add()
    if len(tokenizer) <= len(numbers):
        raise InputError(f"{name}: has no tokenizer (tokenizer.json)")
    limit = tokenizer.model_max_length
    if isinstance(limit, float) and limit.is_integer():
        limit = tokenizer.model_max_length = int(limit)  # 512.0, or 1e30 for no limit
    if not isinstance(limit, int) or isinstance(limit, bool) or limit <= special:
        raise InputError(
            f"{name}: tokenizer_config.json: model_max_length must be a whole number above {special}, the special "
            f"tokens of a text, not {shown(limit)}"
        )


@contextmanager
def loading_errors(name: str, problem: str = "could not be loaded") -> Iterator[None]:
    """
    Turn whatever a package raises within this context into an `InputError`, as in [`loading_error`], since a broken
    file can raise anything.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # The tokenizers package panics with a class that derives from BaseException only.
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        for path in (Path(name, file) for file in JSON_FILES):
            if path.is_file():
                read_json_object(path)  # if this file is broken, its own error is more precise
        raise loading_error(name, error, problem) from error


def loading_error(name: str, error: BaseException, problem: str = "could not be loaded") -> InputError:
    """The error of a package as one sentence that begins with the name of the checkpoint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    reason = reason.rstrip(".:")
    is_clear = type(error).__module__ != "builtins" or type(error) is Exception or isinstance(error, LOADING_ERRORS)
    if not is_clear or " " not in reason:  # the text of a KeyError is only the key
        reason = f"{type(error).__name__}: {reason}".rstrip(": ")
    hint = "; it may need --trust_remote_code" if "trust_remote_code" in str(error) else ""
    return InputError(f"{name}: {problem} ({reason}){hint}")
