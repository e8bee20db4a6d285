"""Opens any Hugging Face model as an encoder: one of this package, of sentence-transformers, or of transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ..common.checkpoint_files import (
    check_padding,
    check_sizes,
    check_token_numbers,
    check_tokenizer,
    check_vocabulary,
    check_weights,
    find_config,
    load_tokenizer,
    loading_errors,
    no_model,
)
from ..common.checkpoints import load_layerpool
from ..common.errors import InputError
from ..common.positions import position_limit
from ..common.prompts import Prompts, prompts_of
from ..common.rows import is_folder
from .encoders import (
    Encoder,
    LayerPoolEncoder,
    PooledEncoder,
    SentenceTransformersEncoder,
    StatesEncoder,
    with_prompts,
)
from .sentence_transformers_files import Module, Settings, check_modules, read_modules, read_settings


POOLINGS = ("mean", "cls")


def load_encoder(
    model_name_or_path: str | Path,
    *,
    revision: str = "main",
    max_seq_length: int | None = None,
    pooling: str | None = None,
    max_tokens_per_batch: int = 8192,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Encoder:
    """Open a folder or a Hub model as an encoder.

    A model of this package (`model_type` "layerpool_...") uses its own pooler. A sentence-transformers model (with a
    `modules.json`) uses its own modules and prompts, and needs sentence-transformers. Any other model uses mean
    pooling. A model of this package whose `modules.json` adds modules is a sentence-transformers model.

    Args:
        model_name_or_path: a folder or a Hub model ID.
        revision: branch, tag or commit on the Hub.
        max_seq_length: maximum number of tokens of a text, special tokens included. Default: the tokenizer's
            `model_max_length`, or a sentence-transformers model's own `max_seq_length`, but no more than the model has
            positions.
        pooling: `mean` or `cls` of the last hidden state, whatever a sentence-transformers folder specifies. A model
            of this package has its own pooler and refuses this.
        max_tokens_per_batch: tokens computed at once, padding included. This limits memory.
        device: by default the GPU if there is one.
        dtype: of the weights. Default: that in which they are loaded.
        trust_remote_code: run code that comes with the checkpoint.
        allow_pickle: also load pickled weights, which can run code. By default only safetensors.

    Returns:
        An [`Encoder`] with float32 embeddings. They are not normalized unless a sentence-transformers module does it.

    Raises:
        InputError: the model does not exist, has a broken file, lacks weights or a tokenizer, has pickled weights, or
            needs `trust_remote_code` or sentence-transformers; or the device does not exist, or an argument does not
            fit the model.
    """
    name = str(model_name_or_path)
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"--pooling {pooling}: use one of {', '.join(POOLINGS)}")
    if is_folder(name) and revision != "main":
        raise InputError(f"--revision {revision}: {name} is a folder, and only a model of the Hub has revisions")
    config = find_config(name, revision)
    model_type = (config or {}).get("model_type", "")
    is_layerpool = model_type.startswith("layerpool_")
    if is_layerpool and pooling is not None:
        raise InputError(f"--pooling {pooling}: {name} has its own pooler, {config.get('pooler_type')}")
    modules = read_modules(name, revision) if pooling is None else None
    if config is None and modules is None:
        raise no_model(name, revision)
    if model_type in CONFIG_MAPPING:
        check_sizes(name, config, CONFIG_MAPPING[model_type])
    prompts, truncate_dim = Settings() if modules is None else read_settings(name, revision)
    is_sentence_transformers = modules is not None and not (
        is_layerpool and _are_of_this_package(modules, config) and truncate_dim is None
    )
    if is_sentence_transformers:
        _require_sentence_transformers(name, is_layerpool)
        check_modules(name, modules, revision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        for module in modules:
            check_token_numbers(name, revision, module.path)
    elif is_folder(name):
        check_weights(Path(name), allow_pickle=allow_pickle)

    device = _usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loading = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": None if allow_pickle else True,
    }
    if is_sentence_transformers:
        model = _load_sentence_transformer(name, device, **loading).to(dtype=dtype)
        if isinstance(model.tokenizer, PreTrainedTokenizerBase):
            check_tokenizer(name, model.tokenizer)
            model.max_seq_length = _length_limit(model, model.tokenizer, max_seq_length)
        elif max_seq_length is not None:
            raise InputError(f"--max_seq_length {max_seq_length}: {name} has no tokenizer whose length could be set")
        prompts = prompts or Prompts()
        encoder = SentenceTransformersEncoder(model, max_tokens_per_batch, prompts.sentences)
        encoder.queries = replace(encoder, prompt=prompts.queries, method="encode_query")
        encoder.documents = replace(encoder, prompt=prompts.documents, method="encode_document")
        return encoder
    model, tokenizer = _load_transformers(name, is_layerpool, **loading)
    tokenizer.model_max_length = _length_limit(model, tokenizer, max_seq_length)
    model = model.to(device=device, dtype=dtype)
    if is_layerpool:
        encoder = LayerPoolEncoder(model, tokenizer, max_tokens_per_batch)
        return with_prompts(encoder, prompts_of(model.config) if prompts is None else prompts)
    return PooledEncoder(model, tokenizer, pooling or "mean", max_tokens_per_batch)


def load_states_encoder(
    model_name_or_path: str | Path,
    *,
    revision: str = "main",
    max_seq_length: int | None = None,
    max_tokens_per_batch: int = 8192,
    device: str | torch.device | None = None,
    allow_pickle: bool = False,
    prompt: str = "",
) -> StatesEncoder:
    """Open a model of this package, or an encoder that it can pool, to read all of its hidden states.

    The encoder of a sentence-transformers folder is read without the folder's other modules.

    Args:
        model_name_or_path, revision, max_seq_length, max_tokens_per_batch, device, allow_pickle: as in
            [`load_encoder`].
        prompt: goes before each text.

    Raises:
        InputError: [`load_layerpool`] cannot open the model, or the device does not exist.
    """
    name = str(model_name_or_path)
    try:
        # A pooler without weights, which reads all states.
        model, tokenizer = load_layerpool(
            name, revision=revision, allow_pickle=allow_pickle, pooler_type="concat_layers", projection_dim=None
        )
    except InputError as error:
        raise InputError(f"--features states: {error}; --features pooled takes any encoder") from error
    tokenizer.model_max_length = _length_limit(model, tokenizer, max_seq_length)
    device = _usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return StatesEncoder(model.eval().to(device), tokenizer, max_tokens_per_batch, prompt)


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        usable = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:  # no such device, or torch is built without it
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(f"--device {device}: torch cannot use it ({reason}); use cpu, or cuda on a GPU") from error
    if usable.type == "meta":
        raise InputError(f"--device {device}: its tensors have no values to compute with; use cpu, or cuda on a GPU")
    return usable


def _are_of_this_package(modules: list[Module], config: dict[str, Any]) -> bool:
    """
    Whether modules.json lists only what a model of this package writes there: one Transformer, and a Pooling if its
    mean leaves the prompt out.
    """
    own = [("Transformer", "")]
    if config.get("include_prompt") is False:
        own.append(("Pooling", "1_Pooling"))
    # The parts of a name between its ends differ by release of sentence-transformers.
    listed = [(module.type.rpartition(".")[2], module.path) for module in modules]
    return listed == own and all(module.type.startswith("sentence_transformers.") for module in modules)


def _require_sentence_transformers(name: str, is_layerpool: bool) -> None:
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        way_out = "" if is_layerpool else "; or give --pooling to pool its encoder directly"
        raise InputError(
            f"{name}: a sentence-transformers model, which needs that package (pip install sentence-transformers)"
            f"{way_out}"
        ) from error


def _load_sentence_transformer(
    name: str, device: torch.device, revision: str, trust_remote_code: bool, use_safetensors: bool | None
):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    with loading_errors(name):
        model = SentenceTransformer(
            name,
            device=str(device),
            revision=revision,
            trust_remote_code=trust_remote_code,
            model_kwargs={"use_safetensors": use_safetensors},
        )
        # Modules that do not fit each other fail only when they compute. A Router may need to know the kind of text.
        if not any(isinstance(module, Router) for module in model):
            model.encode(["a text"], show_progress_bar=False)
    return model


def _load_transformers(
    name: str, is_layerpool: bool, revision: str, trust_remote_code: bool, use_safetensors: bool | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with loading_errors(name):
        model, report = AutoModel.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    tokenizer = load_tokenizer(name, revision, trust_remote_code=trust_remote_code)
    check_vocabulary(model, tokenizer, name)
    # The plain encoder's own pooler is not used here. Any other tensor that was not loaded would be random.
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    absent = {key for key in absent if is_layerpool or not key.startswith("pooler.")}
    if absent:
        raise InputError(
            f"{name}: the weights do not fit the configuration: {len(absent)} tensors are missing or of another shape "
            f"(for example {min(absent)})"
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_padding(name, tokenizer)
    return model.eval(), tokenizer


def _length_limit(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, max_seq_length: int | None) -> int:
    """The maximum number of tokens: `max_seq_length`, or the tokenizer's limit within the positions of the model."""
    positions = position_limit(model)
    if max_seq_length is None:
        return min(tokenizer.model_max_length, positions)
    if max_seq_length > positions:
        raise InputError(f"--max_seq_length {max_seq_length}: the model has positions for at most {positions} tokens")
    special = tokenizer.num_special_tokens_to_add()
    if max_seq_length <= special:
        raise InputError(
            f"--max_seq_length {max_seq_length}: leaves no token for the text, with {special} special tokens"
        )
    return max_seq_length
