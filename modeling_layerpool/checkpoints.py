"""Opening checkpoints, with one sentence for each way in which one can be unusable."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .configuration_layerpool import POOLER_OPTIONS, POOLER_TYPES, LayerPoolConfigMixin
from .configuration_layerpool_bert import LayerPoolBertConfig
from .configuration_layerpool_deberta_v2 import LayerPoolDebertaV2Config
from .configuration_layerpool_distilbert import LayerPoolDistilBertConfig
from .configuration_layerpool_electra import LayerPoolElectraConfig
from .configuration_layerpool_modernbert import LayerPoolModernBertConfig
from .configuration_layerpool_mpnet import LayerPoolMPNetConfig
from .configuration_layerpool_roberta import LayerPoolRobertaConfig
from .errors import InputError
from .modeling_layerpool_bert import LayerPoolBertForSequenceClassification, LayerPoolBertModel
from .modeling_layerpool_deberta_v2 import LayerPoolDebertaV2ForSequenceClassification, LayerPoolDebertaV2Model
from .modeling_layerpool_distilbert import LayerPoolDistilBertForSequenceClassification, LayerPoolDistilBertModel
from .modeling_layerpool_electra import LayerPoolElectraForSequenceClassification, LayerPoolElectraModel
from .modeling_layerpool_modernbert import LayerPoolModernBertForSequenceClassification, LayerPoolModernBertModel
from .modeling_layerpool_mpnet import LayerPoolMPNetForSequenceClassification, LayerPoolMPNetModel
from .modeling_layerpool_roberta import LayerPoolRobertaForSequenceClassification, LayerPoolRobertaModel


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
# What the libraries raise for a model that is not there, is broken, or needs something that is not installed.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)


def load_layerpool(
    model_name_or_path: str,
    *,
    task: Literal["embedding", "sequence-classification"] = "embedding",
    revision: str = "main",
    allow_pickle: bool = False,
    attn_implementation: str | None = None,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Open a checkpoint of this package, or of a plain encoder, with its tokenizer, for training.

    Args:
        model_name_or_path: a folder, or a name on the Hub.
        task: `"embedding"` for the sentence encoder, `"sequence-classification"` for one with a classifier on it,
            which starts afresh unless the checkpoint has one of the same shape.
        revision: branch, tag or commit on the Hub.
        allow_pickle: accept weights that are pickled, if there are no safetensors.
        attn_implementation: `sdpa`, `eager`, ...; by default the library's choice.
        config_overrides: fields of the configuration to change. What is the pooler's only stays as the checkpoint has
            it while its pooler does.

    Raises:
        InputError: there is no such checkpoint, it is not of a known encoder, it has no weights or tokenizer, its
            weights are pickled or do not hold the whole encoder, or an override does not fit it or does nothing.
    """
    config = read_checkpoint_json(model_name_or_path, "config.json", revision)
    if config is None:
        raise no_model(model_name_or_path, revision)
    model_type = config.get("model_type", "bert")
    classes = next((classes for classes in MODELS if model_type in classes.model_types), None)
    if classes is None:
        known = ", ".join(name for classes in MODELS for name in classes.config.encoder_model_types)
        raise InputError(
            f"{model_name_or_path}: a model of type {model_type!r}; use one of {known}, or of this package"
        )
    config_overrides = _pooler_overrides(model_name_or_path, config, config_overrides)
    if Path(model_name_or_path).is_dir():
        check_weights(Path(model_name_or_path), allow_pickle=allow_pickle)
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        model, info = getattr(classes, task.replace("-", "_")).from_pretrained(
            model_name_or_path,
            revision=revision,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **attention,
            **config_overrides,
        )
    except LOADING_ERRORS as error:
        raise loading_error(model_name_or_path, error) from error
    absent = sorted(key for key in info["missing_keys"] if not key.startswith(("pooler.", "classifier.")))
    if absent:
        raise InputError(
            f"{model_name_or_path}: the weights are not those of the encoder that config.json describes: "
            f"{len(absent)} tensors are missing ({absent[0]} for one)"
        )
    misfits = sorted(entry for entry in info["mismatched_keys"] if not entry[0].startswith("classifier."))
    if misfits:
        key, found, expected = misfits[0]
        raise InputError(
            f"{model_name_or_path}: {len(misfits)} tensors have another shape than the configuration asks for "
            f"({key} for one: {tuple(found)} rather than {tuple(expected)})"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, revision=revision, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise loading_error(model_name_or_path, error, "has no tokenizer that could be opened") from error
    check_tokenizer(model_name_or_path, tokenizer)
    return model, tokenizer


def _pooler_overrides(name: str, config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What was given, checked against the pooler; what the checkpoint says of another pooler's goes to its default."""
    trained = config.get("pooler_type")  # None: a plain encoder
    pooler = given.get("pooler_type") or trained or LayerPoolConfigMixin.pooler_type
    overrides = dict(given)
    for option, poolers in POOLER_OPTIONS.items():
        default = getattr(LayerPoolConfigMixin, option)
        if pooler in poolers or pooler not in POOLER_TYPES:  # an unknown one is refused with the configuration
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
    if Path(name, "adapter_config.json").is_file():
        return InputError(f"{name}: an adapter, which is no model of its own; give the folder that it was merged into")
    if Path(name).is_dir():
        return InputError(f"{name}: has no config.json")
    of_revision = "" if revision == "main" else f" at the revision {revision}"
    return InputError(f"{name}: no such folder, nor a model to reach{of_revision}")


def read_checkpoint_json(name: str, filename: str, revision: str = "main") -> Any:
    """A JSON file of a folder or of a model on the Hub, or None if there is none to reach."""
    try:
        path = cached_file(name, filename, revision=revision)
    except OSError:  # every way of not being there: folder, repository, file, network
        path = None
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


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


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an `InputError` if a checkpoint came without tokenizer: then the library makes one that knows no word."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{name}: has no tokenizer (tokenizer.json)")


def loading_error(name: str, error: Exception, problem: str = "could not be loaded") -> InputError:
    """The first sentence of what a library said, behind the name of the checkpoint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0].rstrip(".:") if lines else type(error).__name__
    hint = "; it may need --trust_remote_code" if "trust_remote_code" in str(error) else ""
    return InputError(f"{name}: {problem} ({reason}){hint}")
