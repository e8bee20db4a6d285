"""Opening checkpoints, with one sentence for each way in which one can be unusable."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..models.configuration_layerpool import POOLER_OPTIONS, LayerPoolConfigMixin
from ..models.configuration_layerpool_bert import LayerPoolBertConfig
from ..models.configuration_layerpool_deberta_v2 import LayerPoolDebertaV2Config
from ..models.configuration_layerpool_distilbert import LayerPoolDistilBertConfig
from ..models.configuration_layerpool_electra import LayerPoolElectraConfig
from ..models.configuration_layerpool_modernbert import LayerPoolModernBertConfig
from ..models.configuration_layerpool_mpnet import LayerPoolMPNetConfig
from ..models.configuration_layerpool_roberta import LayerPoolRobertaConfig
from ..models.modeling_layerpool_bert import LayerPoolBertForSequenceClassification, LayerPoolBertModel
from ..models.modeling_layerpool_deberta_v2 import LayerPoolDebertaV2ForSequenceClassification, LayerPoolDebertaV2Model
from ..models.modeling_layerpool_distilbert import (
    LayerPoolDistilBertForSequenceClassification,
    LayerPoolDistilBertModel,
)
from ..models.modeling_layerpool_electra import LayerPoolElectraForSequenceClassification, LayerPoolElectraModel
from ..models.modeling_layerpool_modernbert import (
    LayerPoolModernBertForSequenceClassification,
    LayerPoolModernBertModel,
)
from ..models.modeling_layerpool_mpnet import LayerPoolMPNetForSequenceClassification, LayerPoolMPNetModel
from ..models.modeling_layerpool_poolers import POOLERS
from ..models.modeling_layerpool_roberta import LayerPoolRobertaForSequenceClassification, LayerPoolRobertaModel
from .errors import InputError
from .rows import read_json, shown


class EncoderClasses(NamedTuple):
    """The classes of one encoder. They open their own checkpoints, and those of the plain encoder."""

    config: type[PreTrainedConfig]
    embedding: type[PreTrainedModel]
    sequence_classification: type[PreTrainedModel]

    @property
    def model_types(self) -> tuple[str, ...]:
        """Every `model_type` that these classes open, that of the plain encoder first."""
        return (*self.config.encoder_model_types, self.config.model_type)


MODELS = (
    EncoderClasses(LayerPoolBertConfig, LayerPoolBertModel, LayerPoolBertForSequenceClassification),
    EncoderClasses(LayerPoolRobertaConfig, LayerPoolRobertaModel, LayerPoolRobertaForSequenceClassification),
    EncoderClasses(LayerPoolDistilBertConfig, LayerPoolDistilBertModel, LayerPoolDistilBertForSequenceClassification),
    EncoderClasses(LayerPoolElectraConfig, LayerPoolElectraModel, LayerPoolElectraForSequenceClassification),
    EncoderClasses(LayerPoolMPNetConfig, LayerPoolMPNetModel, LayerPoolMPNetForSequenceClassification),
    EncoderClasses(LayerPoolDebertaV2Config, LayerPoolDebertaV2Model, LayerPoolDebertaV2ForSequenceClassification),
    EncoderClasses(LayerPoolModernBertConfig, LayerPoolModernBertModel, LayerPoolModernBertForSequenceClassification),
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Exceptions of a model that is not there, is broken, or needs something that is not installed; their text says so.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
# Fields of config.json whose wrong numbers transformers may accept, or try to build until memory runs out.
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
# Files of a checkpoint, other than config.json, that hold one JSON object.
JSON_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
)
# Prefixes of the tensors of pooler and classifier, which sit on the encoder.
HEADS = ("classifier.", "pooler.")


def load_layerpool(
    model_name_or_path: str,
    *,
    task: Literal["embedding", "sequence-classification"] = "embedding",
    revision: str = "main",
    allow_pickle: bool = False,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = torch.float32,
    ignore_mismatched_sizes: bool = False,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Open a checkpoint of this package, or of a plain encoder, with its tokenizer, for training.

    On a plain encoder the pooler and the classifier start afresh. A checkpoint of this package has to hold both as it
    was trained, but for those that are asked for anew: the pooler by another `pooler_type`, a linear map to another
    width by `projection_dim`, the classifier by `ignore_mismatched_sizes`. A checkpoint of the sentence encoder gets
    a new classifier by itself.

    Args:
        model_name_or_path: a folder, or a name on the Hub.
        task: `"embedding"` for the sentence encoder, `"sequence-classification"` for one with a classifier on it.
        revision: branch, tag or commit on the Hub. Default: `"main"`.
        allow_pickle: accept weights that are pickled, if there are no safetensors. Default: False.
        attn_implementation: `sdpa`, `eager`, ... Default: the choice of transformers.
        dtype: of the weights, or `"auto"` for that of the file, as in transformers. Default: `torch.float32`, as
            weights in half precision lose small updates; mixed precision in training is autocast's.
        ignore_mismatched_sizes: start a new classifier where that of the checkpoint is missing or has another shape.
            Default: False.
        config_overrides: fields of the configuration to change. What is the pooler's only stays as the checkpoint has
            it while its pooler does.

    Raises:
        InputError: there is no such checkpoint, it is broken or not of a known encoder, it has no weights or
            tokenizer, its weights are pickled or do not hold the whole encoder, or the trained pooler or classifier,
            or an override does not fit it or does nothing.
    """
    config = read_config(model_name_or_path, revision)
    model_type = config.get("model_type", "bert")
    classes = next((classes for classes in MODELS if model_type in classes.model_types), None)
    if classes is None:
        known = ", ".join(name for classes in MODELS for name in classes.config.encoder_model_types)
        raise InputError(
            f"{model_name_or_path}: a model of type {model_type!r}; use one of {known}, or of this package"
        )
    check_sizes(model_name_or_path, config, classes.config)
    config_overrides = _pooler_overrides(model_name_or_path, config, config_overrides)
    if Path(model_name_or_path).is_dir():
        check_weights(Path(model_name_or_path), allow_pickle=allow_pickle)
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with loading_errors(model_name_or_path):
        model, info = getattr(classes, task.replace("-", "_")).from_pretrained(
            model_name_or_path,
            revision=revision,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            dtype=dtype,
            **attention,
            **config_overrides,
        )
    new_heads = HEADS
    if model_type == classes.config.model_type:
        new_heads = _new_heads(config, config_overrides, ignore_mismatched_sizes)
    width = config.get("projection_dim")
    _check_whole(model_name_or_path, info, new_heads, config_overrides.get("projection_dim", width) != width)
    tokenizer = load_tokenizer(model_name_or_path, revision)
    check_vocabulary(model, tokenizer, model_name_or_path)
    check_padding(model_name_or_path, tokenizer)
    return model, tokenizer


def _new_heads(config: dict[str, Any], overrides: dict[str, Any], ignore_mismatched_sizes: bool) -> tuple[str, ...]:
    """How the tensors begin that start afresh on a checkpoint of this package."""
    trained = config.get("pooler_type", LayerPoolConfigMixin.pooler_type)
    is_new_pooler = overrides.get("pooler_type", trained) != trained
    is_new_classifier = ignore_mismatched_sizes or not has_classifier(config)
    return ("pooler.",) * is_new_pooler + ("classifier.",) * is_new_classifier


def _check_whole(name: str, info: dict[str, Any], new_heads: tuple[str, ...], has_new_width: bool) -> None:
    """Raise an `InputError` if a tensor is not there, or of another shape, that does not start afresh."""
    absent = sorted(key for key in info["missing_keys"] if not key.startswith(new_heads))
    if has_new_width:
        # A pooler of the encoder's own width has no such map yet. One of another shape is refused below.
        absent = [key for key in absent if not key.startswith("pooler.projection.")]
    of_encoder = [key for key in absent if not key.startswith(HEADS)]
    if of_encoder:
        raise InputError(
            f"{name}: the weights are not those of the encoder that config.json describes: {len(of_encoder)} tensors "
            f"are missing ({of_encoder[0]} for one)"
        )
    if absent:
        raise InputError(
            f"{name}: the weights lack {absent[0]}, which was trained; copy the whole checkpoint again, or "
            f"{_new_head_by(absent[0])}"
        )
    misfits = sorted(entry for entry in info["mismatched_keys"] if not entry[0].startswith(new_heads))
    if misfits:
        key, found, expected = misfits[0]
        fix = f"; {_new_head_by(key)}" if key.startswith(HEADS) else ""
        raise InputError(
            f"{name}: {len(misfits)} tensors have another shape than the configuration asks for ({key} for one: "
            f"{tuple(found)} rather than {tuple(expected)}){fix}"
        )


def _new_head_by(key: str) -> str:
    if key.startswith("classifier."):
        return "start a new classifier with --ignore_mismatched_sizes"
    return "start a new pooler with another --pooler_type"


def has_classifier(config: dict[str, Any]) -> bool:
    """Whether a checkpoint, by its `config.json`, is a model with a classifier."""
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _pooler_overrides(name: str, config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What was given, checked against the pooler; what the checkpoint says of another pooler's goes to its default."""
    trained = config.get("pooler_type")  # None: a plain encoder
    pooler = given.get("pooler_type") or trained or LayerPoolConfigMixin.pooler_type
    overrides = dict(given)
    for option, poolers in POOLER_OPTIONS.items():
        default = getattr(LayerPoolConfigMixin, option)
        if pooler in poolers or pooler not in POOLERS:  # an unknown one is refused with the configuration
            continue
        if given.get(option, default) != default:
            raise InputError(
                f"{option}={given[option]} does nothing with pooler_type={pooler}; it is of {' and '.join(poolers)}"
            )
        if option in config:
            overrides[option] = default
    residual = config.get("pooler_residual")
    if pooler == trained and given.get("pooler_residual", residual) != residual:
        raise InputError(
            f"{name}: its {pooler} was trained with pooler_residual={residual}, and its weights mean something else "
            f"with {given['pooler_residual']}; leave pooler_residual as it is, or start from an encoder without pooler"
        )
    return overrides


def no_model(name: str, revision: str = "main") -> InputError:
    """Why a name without a `config.json` is no model."""
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        return InputError(f"{name}: an adapter, which is no model of its own; give the folder that it was merged into")
    if os.path.isdir(name):
        return InputError(f"{name}: has no config.json")
    of_revision = "" if revision == "main" else f" at the revision {revision}"
    return InputError(f"{name}: no such folder, nor a model to reach{of_revision}")


def find_file(name: str, filename: str, revision: str = "main") -> str | None:
    """Where a file of a folder, or of a model on the Hub, lies on this machine; None if there is none to reach."""
    try:
        return cached_file(name, filename, revision=revision)
    except (OSError, ValueError):  # every way of not being there: folder, repository, file, network
        return None


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises an `InputError` if the file cannot be read, or holds something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, names and their values, not {shown(content)}")
    return content


def read_config(name: str, revision: str = "main") -> dict[str, Any]:
    """The content of `config.json`, as [`find_config`] gives it. Raises an `InputError` if there is no such file."""
    config = find_config(name, revision)
    if config is None:
        raise no_model(name, revision)
    return config


def find_config(name: str, revision: str = "main") -> dict[str, Any] | None:
    """
    The `config.json` of a folder or of a model on the Hub, or None if there is none to reach. Its `model_type`,
    `architectures` and `id2label` are of the right kind or not there.

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
    """Raise an `InputError` if no folder holds weights, or one only pickled ones that were not asked for."""
    without = [folder for folder in folders if not any(folder.glob("*.safetensors"))]
    pickled = [path for folder in without for pattern in PICKLES for path in folder.glob(pattern)]
    if pickled and not allow_pickle:
        raise InputError(
            f"{pickled[0]}: a pickle file, which can run code when it is opened; convert it to safetensors, or trust "
            "it with --allow_pickle"
        )
    if len(without) == len(folders) and not pickled:
        raise InputError(f"{folders[0]}: has no weights (model.safetensors)")


def load_tokenizer(name: str, revision: str = "main", *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint. Raises an `InputError` if there is none that could be used."""
    check_token_numbers(name, revision)
    with loading_errors(name, "has no tokenizer that could be opened"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    check_tokenizer(name, tokenizer)
    return tokenizer


def check_token_numbers(name: str, revision: str = "main", folder: str = "") -> None:
    """
    Raise an `InputError` if `tokenizer.json`, in a folder of the model, numbers a token that no vocabulary is so large
    for: the tokenizers package would make room for all below it, and end the process when memory runs out.
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
    """Raise an `InputError` if the tokenizer knows a token that the model has no embedding of."""
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    tokens = 1 + max(tokenizer.get_vocab().values())
    if size is not None and tokens > size:
        raise InputError(
            f"{name and f'{name}: '}the tokenizer has {tokens} tokens, but the model only {size}; take the tokenizer "
            "that belongs to it"
        )


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raise an `InputError` if a checkpoint came without tokenizer, for which transformers makes one that knows no word,
    or if its `model_max_length` leaves no room for a text.
    """
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{name}: has no tokenizer (tokenizer.json)")
    limit, special = tokenizer.model_max_length, tokenizer.num_special_tokens_to_add()
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
    Turn whatever a package raises within this context into an `InputError`, as in [`loading_error`]: a broken file can
    raise anything.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # The tokenizers package panics with an exception that is no Exception.
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        for path in (Path(name, file) for file in JSON_FILES):
            if path.is_file():
                read_json_object(path)  # where that is what is broken, its name and reason say more
        raise loading_error(name, error, problem) from error


def loading_error(name: str, error: BaseException, problem: str = "could not be loaded") -> InputError:
    """What a package said, in one sentence that begins with the name of the checkpoint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    reason = reason.rstrip(".:")
    is_clear = type(error).__module__ != "builtins" or type(error) is Exception or isinstance(error, LOADING_ERRORS)
    if not is_clear or " " not in reason:  # a KeyError says the key and nothing else
        reason = f"{type(error).__name__}: {reason}".rstrip(": ")
    hint = "; it may need --trust_remote_code" if "trust_remote_code" in str(error) else ""
    return InputError(f"{name}: {problem} ({reason}){hint}")
