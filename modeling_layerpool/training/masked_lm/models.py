"""Masked language models: new ones, and those from a checkpoint."""

import logging

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...common.checkpoint_files import (
    check_sizes,
    load_tokenizer,
    loading_errors,
    open_checkpoint,
    read_config,
)
from ...common.errors import InputError


logger = logging.getLogger(__name__)


def new_config(model_type: str, overrides: str | None = None) -> PreTrainedConfig:
    """
    The transformers configuration of a new masked language model.

    Args:
        model_type: its name in transformers: `bert`, `roberta`, `modernbert`, ...
        overrides: fields and values, such as `hidden_size=256,num_hidden_layers=4`.

    Raises:
        InputError: the model type, field or value does not exist, or the values do not fit together.
    """
    known = {config.model_type for config in MODEL_FOR_MASKED_LM_MAPPING}
    if model_type not in known:
        raise InputError(f"--model_type {model_type}: is unknown; use one of {', '.join(sorted(known))}")
    config = AutoConfig.for_model(model_type)
    values = {}
    for override in overrides.split(",") if overrides else ():
        name, equals, _ = override.partition("=")
        if not equals:
            raise InputError(f"--config_overrides {overrides}: {override!r} must read name=value")
        if not hasattr(config, name) or callable(getattr(config, name)):
            raise InputError(f"--config_overrides {overrides}: {model_type} has no field {name!r}")
        try:
            config.update_from_string(override)
        except (ValueError, TypeError) as error:
            raise InputError(f"--config_overrides {overrides}: {override} does not fit ({error})") from error
        values[name] = getattr(config, name)
    with loading_errors(f"--config_overrides {overrides}", "makes no configuration"):
        # Created again, because some fields follow from others: ModernBERT's types of layers from their number.
        return AutoConfig.for_model(model_type, **values)


def start_model(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> PreTrainedModel:
    """
    A new model with the vocabulary and special tokens of a tokenizer.

    Args:
        config: the configuration of the model; it is changed in place.
        tokenizer: the tokenizer of the texts.
        attn_implementation: `sdpa`, `eager`, ... Default: chosen by transformers.
        dtype: the dtype of the weights. Default: `torch.float32`.

    Raises:
        InputError: transformers cannot create a model from the configuration.
    """
    config.vocab_size = len(tokenizer)
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with loading_errors(f"--model_type {config.model_type}", "no model can be made of this"):
        model = AutoModelForMaskedLM.from_config(config, dtype=dtype, **attention)
    _check_encoder(model, f"--model_type {config.model_type}")
    return model


def load_masked_language_model(
    name: str,
    *,
    revision: str = "main",
    allow_pickle: bool = False,
    attn_implementation: str | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Open a checkpoint that `AutoModelForMaskedLM` opens, with its tokenizer, for training. A missing head is
    initialized.

    Args:
        name: a folder or a Hub model ID.
        revision: branch, tag or commit on the Hub. Default: `"main"`.
        allow_pickle: accept pickled weights if the checkpoint has no safetensors. Default: False.
        attn_implementation: `sdpa`, `eager`, ... Default: chosen by transformers.
        dtype: the dtype of the weights, or `"auto"` for that of the file. Default: `torch.float32`, because weights in
            half precision lose small updates; for mixed precision use autocast.

    Raises:
        InputError: the checkpoint does not exist or is broken, it has no weights or tokenizer, its weights are pickled
            or do not fit the encoder, or transformers has no masked language model of its type.
    """
    config = read_config(name, revision)
    classes = {known.model_type: known for known in MODEL_FOR_MASKED_LM_MAPPING}
    model_type = config.get("model_type")
    if model_type not in classes:
        raise InputError(f"{name}: there is no masked language model of type {model_type!r}")
    check_sizes(name, config, classes[model_type])
    model, info = open_checkpoint(
        AutoModelForMaskedLM,
        name,
        revision=revision,
        allow_pickle=allow_pickle,
        attn_implementation=attn_implementation,
        dtype=dtype,
    )
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    of_encoder = sorted(key for key in absent if key.startswith(f"{model.base_model_prefix}."))
    if of_encoder:
        raise InputError(
            f"{name}: the weights are not those of the encoder that config.json describes: {len(of_encoder)} tensors "
            f"are missing or of another shape ({of_encoder[0]} for one)"
        )
    if absent:
        logger.warning(
            f"{name}: has no head for masked language modeling; a new one is initialized ({', '.join(sorted(absent))})"
        )
    tokenizer = load_tokenizer(name, revision)
    _check_encoder(model, name)
    return model, tokenizer


def _check_encoder(model: PreTrainedModel, name: str) -> None:
    if model.config.is_encoder_decoder:
        raise InputError(f"{name}: is an encoder with a decoder, not an encoder")
