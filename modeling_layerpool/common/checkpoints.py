"""Opens checkpoints of this package and of plain encoders for training."""

from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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
from ..models.modeling_layerpool_pooler_base import Pooler
from ..models.modeling_layerpool_poolers import POOLERS
from ..models.modeling_layerpool_roberta import LayerPoolRobertaForSequenceClassification, LayerPoolRobertaModel
from .checkpoint_files import (
    check_padding,
    check_sizes,
    check_vocabulary,
    has_classifier,
    load_tokenizer,
    open_checkpoint,
    published_pooling,
    read_config,
)
from .errors import InputError
from .prompts import saved_prompts


class EncoderClasses(NamedTuple):
    """The classes of one encoder. They open their own checkpoints and those of the plain encoder."""

    config: type[PreTrainedConfig]
    embedding: type[PreTrainedModel]
    sequence_classification: type[PreTrainedModel]

    @property
    def model_types(self) -> tuple[str, ...]:
        """Every `model_type` that these classes open, the plain encoder's first."""
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
# Prefixes of the tensors of the pooler and the classifier.
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
    default_pooler: str | None = None,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Open a checkpoint of this package, or of a plain encoder, with its tokenizer, for training. `encode` of the model
    uses this tokenizer if it is given none.

    A plain encoder, or a sentence-transformers folder, gets a new pooler and a new classifier. Without a `pooler_type`
    the pooler is the pooling that the folder names in `1_Pooling/config.json`, `mean` or `cls`, and `mean` if it names
    none. A checkpoint of this package must hold both as trained, unless a new one is requested: a pooler
    by another `pooler_type`, a linear map to another width by `projection_dim`, a classifier by
    `ignore_mismatched_sizes`. A sentence encoder without a classifier gets a new one.

    A sentence encoder keeps the prompts and the `include_prompt` of a sentence-transformers model; a classifier reads
    texts without prompts.

    Args:
        model_name_or_path: a folder or a Hub model ID.
        task: `"embedding"` for the sentence encoder, `"sequence-classification"` for one with a classifier on it.
        revision: branch, tag or commit on the Hub. Default: `"main"`.
        allow_pickle: accept weights that are pickled, if there are no safetensors. Default: False.
        attn_implementation: `sdpa`, `eager`, ... Default: the choice of transformers.
        dtype: dtype of the weights, or `"auto"` for that of the file, as in transformers. Default: `torch.float32`,
            since weights in half precision lose small updates. Mixed precision in training comes from autocast.
        ignore_mismatched_sizes: start a new classifier if that of the checkpoint is missing or has another shape.
            Default: False.
        default_pooler: pooler of an encoder that has none, if no `pooler_type` is given. Default: the pooling that it
            was published with.
        config_overrides: fields of the configuration to change. With another `pooler_type`, the options of the old
            pooler return to their defaults, and `projection_dim` too, unless a classifier on it is kept.

    Raises:
        InputError: the checkpoint does not exist, is broken, or is not of a known encoder; it has no weights or no
            tokenizer; its weights are pickled, or lack a part of the encoder or of a trained pooler or classifier; or
            an override does not fit or has no effect.
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
    if model_type == classes.config.model_type:
        config, config_overrides = _by_new_names(config), _by_new_names(config_overrides)
    else:
        config_overrides = _with_new_pooler(model_name_or_path, revision, config_overrides, default_pooler)
    trained = config.get("pooler_type")
    config_overrides = _pooler_overrides(model_name_or_path, config, config_overrides)
    if task == "embedding":
        config_overrides = saved_prompts(model_name_or_path, revision, config) | config_overrides
    else:
        config_overrides |= {"prompts": None, "default_prompt_name": None, "include_prompt": True}
    keeps_classifier = task == "sequence-classification" and has_classifier(config) and not ignore_mismatched_sizes
    if config_overrides.get("pooler_type", trained) != trained and not keeps_classifier:
        # Every save writes the width of the pooler that it had, which a kept classifier still needs.
        config_overrides.setdefault("projection_dim", None)
    model, info = open_checkpoint(
        getattr(classes, task.replace("-", "_")),
        model_name_or_path,
        revision=revision,
        allow_pickle=allow_pickle,
        attn_implementation=attn_implementation,
        dtype=dtype,
        **config_overrides,
    )
    new_heads = HEADS
    if model_type == classes.config.model_type:
        new_heads = _new_heads(config, config_overrides, ignore_mismatched_sizes)
    width = config.get("projection_dim")
    _check_tensors(model_name_or_path, info, new_heads, config_overrides.get("projection_dim", width) != width)
    tokenizer = load_tokenizer(model_name_or_path, revision)
    check_vocabulary(model, tokenizer, model_name_or_path)
    check_padding(model_name_or_path, tokenizer)
    model.tokenizer = tokenizer
    return model, tokenizer


def _new_heads(config: dict[str, Any], overrides: dict[str, Any], ignore_mismatched_sizes: bool) -> tuple[str, ...]:
    """The prefixes of the tensors of a checkpoint of this package that are initialized again."""
    trained = config.get("pooler_type", LayerPoolConfigMixin.pooler_type)
    is_new_pooler = overrides.get("pooler_type", trained) != trained
    is_new_classifier = ignore_mismatched_sizes or not has_classifier(config)
    return ("pooler.",) * is_new_pooler + ("classifier.",) * is_new_classifier


def _check_tensors(name: str, info: dict[str, Any], new_heads: tuple[str, ...], has_new_width: bool) -> None:
    """Raise an `InputError` if a tensor without one of the prefixes `new_heads` is missing or has another shape."""
    absent = sorted(key for key in info["missing_keys"] if not key.startswith(new_heads))
    if has_new_width:
        # A pooler of the encoder's own width has no projection yet. A projection of another shape is refused below.
        absent = [key for key in absent if not key.startswith("pooler.projection.")]
    of_encoder = [key for key in absent if not key.startswith(HEADS)]
    if of_encoder:
        raise InputError(
            f"{name}: the weights are not those of the encoder in config.json: {len(of_encoder)} tensors are missing "
            f"(for example {of_encoder[0]})"
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
            f"{name}: {len(misfits)} tensors have another shape than in the configuration (for example "
            f"{key}: {tuple(found)} rather than {tuple(expected)}){fix}"
        )


def _new_head_by(key: str) -> str:
    if key.startswith("classifier."):
        return "start a new classifier with --ignore_mismatched_sizes"
    return "start a new pooler with another --pooler_type"


def _by_new_names(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration, where `weighted_layers` with a residual has its name of today, `residual_layers`."""
    is_renamed = fields.get("pooler_type") == "weighted_layers" and fields.get("pooler_residual") is not None
    return fields | {"pooler_type": "residual_layers"} if is_renamed else fields


def _with_new_pooler(name: str, revision: str, given: dict[str, Any], default_pooler: str | None) -> dict[str, Any]:
    """The given fields for a plain encoder, with the pooler that it gets."""
    published = published_pooling(name, revision)
    given = _by_new_names({"pooler_type": default_pooler or published} | given)
    if given["pooler_type"] == "residual_layers":
        given.setdefault("pooler_residual", published)
    return given


def _pooler_overrides(name: str, config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The given overrides, checked against the pooler. Options of the checkpoint's old pooler return to defaults."""
    trained = config.get("pooler_type")  # None: a plain encoder
    pooler = given.get("pooler_type") or trained or LayerPoolConfigMixin.pooler_type
    overrides = dict(given)
    for option, poolers in POOLER_OPTIONS.items():
        default = getattr(LayerPoolConfigMixin, option)
        if pooler in poolers or pooler not in POOLERS:  # an unknown one is refused with the configuration
            continue
        if given.get(option, default) != default:
            raise InputError(
                f"{option}={given[option]} does nothing with pooler_type={pooler}; it is of {', '.join(poolers)}"
            )
        if option in config:
            overrides[option] = default
    residual = config.get("pooler_residual") or POOLERS.get(trained, Pooler).residual
    new = given.get("pooler_residual", config.get("pooler_residual")) or POOLERS.get(pooler, Pooler).residual
    # The two poolers with a scalar for each state have the same names of weights.
    have_same_names = pooler == trained or {pooler, trained} == {"weighted_layers", "residual_layers"}
    if have_same_names and new != residual:
        raise InputError(
            f"{name}: its {trained} was trained with pooler_residual={residual}, and its weights mean something else "
            f"with {new}; leave pooler_type and pooler_residual as they are, or start from an encoder without pooler"
        )
    if pooler == "residual_layers" and given.get("pooler_residual", "mean") is None:
        raise InputError("residual_layers needs a pooler_residual, mean or cls; weighted_layers has none")
    return overrides
