"""A head in a folder of a few hundred KB: the pooler and the classifier of one task, without their encoder."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.configuration_layerpool import POOLER_OPTIONS, LayerPoolConfigMixin
from ..models.modeling_layerpool_classification import LayerPoolClassificationMixin
from ..models.modeling_layerpool_pooler_base import is_int
from ..models.modeling_layerpool_poolers import POOLERS
from .card_facts import package_versions
from .checkpoint_files import HEAD_FILE, loading_errors, read_json_object
from .checksums import encoder_checksum
from .errors import InputError
from .labels import PROBLEM_TYPES, LabelNames
from .rows import check_file, shown


WEIGHTS_FILE = "head.safetensors"
TYPES = {str: "a text", int: "a positive whole number", list: "a list of texts", dict: "a JSON object"}


@dataclass(frozen=True)
class HeadDescription:
    """
    The content of `head.json`.

    Args:
        encoder: the encoder that the head was trained on, a folder or a Hub model ID.
        revision: its branch, tag or commit on the Hub.
        encoder_checksum: the checksum of its weights up to the highest state that the head reads.
        pooler: the fields of the configuration that the pooler reads. `pooler_layers` names the states from 0.
        problem_type: as in the configuration of transformers.
        labels: the names of the classes in the order of their IDs; for a regression the one name of its number.
        text_columns: the names of the one text of a row, or of the two of a pair.
        max_seq_length: the maximum number of tokens of a text or of a pair.
        versions: the versions of the packages that saved the head.
    """

    encoder: str
    revision: str
    encoder_checksum: str
    pooler: dict
    problem_type: str
    labels: list
    text_columns: list
    max_seq_length: int
    versions: dict

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "HeadDescription":
        """Read and check the `head.json` of a folder. Raises an [`InputError`]."""
        path = Path(folder, HEAD_FILE)
        if not path.is_file():
            raise InputError(f"{folder}: holds no head ({HEAD_FILE}); use a folder from save_head or --save_head_only")
        content = read_json_object(path)
        types = {field.name: field.type for field in fields(cls)}
        for name in content:
            if name not in types:
                raise InputError(
                    f"{path}: the field {shown(name)} is unknown; a newer version may have saved this head"
                )
        for name, kind in types.items():
            if name not in content:
                raise InputError(f"{path}: the field {name!r} is missing; copy the whole folder again")
            value = content[name]
            is_right = isinstance(value, kind)
            if kind is int:
                is_right = is_int(value) and value > 0
            elif kind is list:
                is_right = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
            if not is_right:
                raise InputError(f"{path}: {name} must be {TYPES[kind]}, not {shown(value)}")
        description = cls(**content)
        description._check_values(path)
        return description

    def _check_values(self, path: Path) -> None:
        known = {field.name for field in fields(LayerPoolConfigMixin)}
        unknown = next((name for name in self.pooler if name not in known), None)
        if unknown is not None:
            raise InputError(
                f"{path}: the field {shown(unknown)} of the pooler is unknown; a newer version may have it"
            )
        layers = self.pooler.get("pooler_layers")
        are_states = isinstance(layers, list) and layers and all(is_int(layer) and layer >= 0 for layer in layers)
        if not are_states or layers != sorted(set(layers)):
            raise InputError(f"{path}: pooler_layers must list hidden states from 0, ascending, not {shown(layers)}")
        pooler_type = self.pooler.get("pooler_type")
        known_types = [name for name, pooler in POOLERS.items() if not pooler.reads_tokens]
        if pooler_type not in known_types:
            raise InputError(f"{path}: pooler_type must be one of {', '.join(known_types)}, not {shown(pooler_type)}")
        if self.problem_type not in PROBLEM_TYPES:
            raise InputError(
                f"{path}: problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {shown(self.problem_type)}"
            )
        if len(self.text_columns) > 2:
            raise InputError(f"{path}: text_columns must be one name or two, not {shown(self.text_columns)}")

    @property
    def encoder_name(self) -> str:
        """The encoder, with its revision if that is not the default one."""
        return self.encoder if self.revision == "main" else f"{self.encoder}, revision {self.revision}"

    @property
    def takes_pairs(self) -> bool:
        return len(self.text_columns) == 2


def save_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    *,
    encoder: str | os.PathLike,
    revision: str = "main",
    text_columns: Sequence[str] = ("text",),
) -> None:
    """
    Save the pooler and the classifier of a model whose encoder was frozen, without the encoder.

    Writes `head.safetensors` and `head.json` into the folder, the latter last, so that a folder with a `head.json` is
    complete. [`load_heads`] opens it.

    Args:
        model: a layer-pooled classifier. Its encoder must have the weights of `encoder`.
        tokenizer: its tokenizer, whose `model_max_length` is saved.
        folder: folder to write into; made if it does not exist.
        encoder: the checkpoint that the training started from, a folder or a Hub model ID. The path of a folder is
            saved as an absolute path.
        revision: branch, tag or commit of the encoder on the Hub. Default: `"main"`.
        text_columns: the names of the one text of a row, or of the two of a pair. Default: one `text`.

    Raises:
        InputError: the model has no classifier, its pooler reads every token, as that of hire does, or its weights
            are not in float32.
    """
    config = model.config
    check_separable(model)
    if len(text_columns) not in (1, 2):
        raise InputError(f"text_columns={shown(text_columns)} must be one name or two")
    options = [name for name, poolers in POOLER_OPTIONS.items() if config.pooler_type in poolers]
    pooler = {name: getattr(config, name) for name in ("pooler_type", "projection_dim", *options)}
    labels = LabelNames.from_config(config.to_dict())
    description = HeadDescription(
        encoder=os.path.abspath(encoder) if os.path.isdir(encoder) else str(encoder),
        revision=revision,
        encoder_checksum=encoder_checksum(model),
        pooler=pooler | {"pooler_layers": model.pooler.states},
        problem_type=labels.problem_type,
        labels=list(labels.names),
        text_columns=list(text_columns),
        max_seq_length=min(tokenizer.model_max_length, model.max_tokens),
        versions=package_versions(),
    )
    parts = {"pooler": model.pooler, "classifier": model.classifier}
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A crash between the two files must not leave the description of one head with the weights of another.
    (folder / HEAD_FILE).unlink(missing_ok=True)
    with _replacing(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
    with _replacing(folder / HEAD_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(description), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_separable(model: PreTrainedModel) -> None:
    """Raise an [`InputError`] if [`save_head`] cannot save the head of this model."""
    if not isinstance(model, LayerPoolClassificationMixin):
        raise InputError(f"{type(model).__name__} has no classifier; save an encoder whole with save_pretrained")
    if model.pooler.reads_tokens:
        raise InputError(
            f"a head with pooler_type={model.config.pooler_type} cannot be saved without its encoder, because it "
            "reads every token and not only the first one and the mean; save the whole model, or choose another "
            "pooler_type"
        )
    if model.dtype != torch.float32:
        raise InputError(f"a head is saved from weights in float32, not {model.dtype}; train it without --dtype")


def read_weights(folder: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a head. Raises an [`InputError`] if the file is missing or broken."""
    path = Path(folder, WEIGHTS_FILE)
    check_file(path)
    with loading_errors(str(path), "is not a complete file of weights"):
        return load_file(path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to `path`, which replaces it if it is written to its end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
