"""The files with which sentence-transformers opens an exported model, without code of this package."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..common.checkpoint_files import find_file, read_config
from ..common.errors import InputError
from ..common.prompts import SETTINGS_FILE
from ..evaluation.sentence_transformers_files import Module, read_modules
from ..models.configuration_layerpool import LayerPoolConfigMixin


# The fields of our configurations that a stock one has not, or sets itself.
OWN_FIELDS = {field.name for field in fields(LayerPoolConfigMixin)}
OWN_FIELDS |= {"architectures", "auto_map", "model_type", "transformers_version"}
# These names of the classes work in every release of sentence-transformers.
MODULES = "sentence_transformers.models."
MODULE_FILES = ("config.json", "model.safetensors")


def stock_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of a model's encoder in transformers, with the layers that the model has."""
    values = {name: value for name, value in model.config.to_dict().items() if name not in OWN_FIELDS}
    config = type(model.base_model).config_class(**values)
    config.num_hidden_layers = model.pooler.states[-1]
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    return config


def is_own_checkpoint(source: str, revision: str) -> bool:
    """Whether the `config.json` is that of a model of this package."""
    return read_config(source, revision).get("model_type", "").startswith("layerpool_")


def added_modules(source: str, revision: str) -> list[Module]:
    """
    The modules that sentence-transformers added after a model of this package, such as Normalize.

    Raises:
        InputError: a module is not one of sentence-transformers, or the model is not the first one.
    """
    if not is_own_checkpoint(source, revision):
        return []  # its own modules pool, which the pooler of this package replaces
    first, *added = read_modules(source, revision) or [Module(f"{MODULES}Transformer", "")]
    if first.path != "":
        raise InputError(f"{source}: modules.json: the first module is in {first.path!r}, not in the model's folder")
    for module in added:
        if not module.type.startswith("sentence_transformers."):
            raise InputError(f"{source}: modules.json: {module.type} is not of sentence-transformers; remove it")
    # With include_prompt=False a Pooling stands for the model's own pooler.
    return [module for module in added if not module.type.endswith(".Pooling")]


def write_stock_files(
    folder: Path,
    source: str,
    revision: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: str,
    width: int,
    added: Sequence[Module],
    include_prompt: bool = True,
    projection: nn.Linear | None = None,
) -> None:
    """
    Write tokenizer, modules and prompts.

    Args:
        folder: already holds the model.
        source, revision: the checkpoint whose prompts and added modules are copied.
        tokenizer: its `model_max_length` is the length at which texts are truncated.
        pooling: `"mean"` or `"cls"`.
        width: width of the token embeddings.
        added: the result of [`added_modules`].
        include_prompt: whether the mean counts the tokens of a prompt.
        projection: becomes a Dense module after the pooling.
    """
    limit = tokenizer.model_max_length
    # Other tools obey a length that an earlier owner of the tokenizer left in its files; transformers does not.
    tokenizer.init_kwargs.pop("max_length", None)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.enable_truncation(limit)
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    types = [f"{MODULES}Transformer", f"{MODULES}Pooling"]
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": include_prompt,
        },
    )
    if projection is not None:
        types.append(f"{MODULES}Dense")
        _write_json(
            folder / "2_Dense" / "config.json",
            {
                "in_features": projection.in_features,
                "out_features": projection.out_features,
                "bias": True,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        weights = {f"linear.{name}": tensor.contiguous() for name, tensor in projection.state_dict().items()}
        save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    for module in added:
        path = folder / f"{len(types)}_{module.type.rpartition('.')[2]}"
        path.mkdir()
        for name in MODULE_FILES:
            _copy(source, revision, f"{module.path}/{name}", path / name)
        types.append(module.type)
    paths = ["", *(f"{index}_{name.rpartition('.')[2]}" for index, name in enumerate(types) if index)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": name}
        for index, (path, name) in enumerate(zip(paths, types, strict=True))
    ]
    _write_json(folder / "modules.json", modules)
    _copy(source, revision, SETTINGS_FILE, folder / SETTINGS_FILE)


def _copy(source: str, revision: str, name: str, target: Path) -> None:
    path = find_file(source, name, revision)
    if path is not None:
        shutil.copyfile(path, target)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
