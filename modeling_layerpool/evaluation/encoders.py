"""What evaluation knows of a model: `encode(list[str]) -> array (len, d)`. Any Hugging Face model can be given it.

[`load_encoder`] opens three kinds: a model of this package, a sentence-transformers model, any other encoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..common.checkpoints import (
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
from ..common.errors import InputError
from ..common.positions import position_limit
from ..common.rows import is_folder
from .sentence_transformers_files import Module, Prompts, check_modules, read_modules, read_settings


POOLINGS = ("mean", "cls")


class Encoder(Protocol):
    """Anything that turns n texts into n embeddings.

    One that embeds the queries or the documents of a retrieval set in another way than other texts, after a prompt
    for instance, has encoders for them as its attributes `queries` and `documents`.
    """

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Embeddings (len(sentences), d), float, in the order of the sentences."""


def query_and_document_encoders(encoder: Encoder) -> tuple[Encoder, Encoder]:
    """The encoders of the queries and of the documents of a retrieval set: the encoder itself unless it has others."""
    return tuple(getattr(encoder, kind, None) or encoder for kind in ("queries", "documents"))


def encode_queries_and_documents(
    encoder: Encoder, queries: Sequence[str], documents: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of queries (q, d) and of documents (c, d), in a single call if one encoder is for both."""
    of_queries, of_documents = query_and_document_encoders(encoder)
    if of_queries is of_documents:
        embeddings = of_queries.encode([*queries, *documents])
        return embeddings[: len(queries)], embeddings[len(queries) :]
    return of_queries.encode(list(queries)), of_documents.encode(list(documents))


def prompts_in_use(encoder: Encoder, *, sentences: bool, retrieval: bool) -> dict[str, str]:
    """The prompts before `sentences`, `queries` and `documents` that an evaluation of these uses, unless empty."""
    of_queries, of_documents = query_and_document_encoders(encoder)
    encoders = {"sentences": encoder} if sentences else {}
    encoders |= {"queries": of_queries, "documents": of_documents} if retrieval else {}
    prompts = {kind: getattr(encoder, "prompt", "") for kind, encoder in encoders.items()}
    return {kind: prompt for kind, prompt in prompts.items() if prompt}


class CachingEncoder:
    """An encoder that asks another for each distinct text once, remembers the embedding and refuses a broken one.

    Args:
        encoder: the encoder to ask.

    `encode` returns float32 (n, d). It raises an `InputError` for values that are not finite, which would otherwise
    end in a score that looks like one, and a `RuntimeError` for embeddings of another shape. Queries and documents
    are remembered apart from other texts if the encoder embeds them in another way.
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        of_queries, of_documents = query_and_document_encoders(encoder)
        self.queries = self if of_queries is encoder else CachingEncoder(of_queries)
        self.documents = self if of_documents is encoder else CachingEncoder(of_documents)
        self.rows: dict[str, int] = {}
        self.embeddings = np.zeros((0, 0), dtype=np.float32)

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(sentences) if text not in self.rows]
        if new:
            embeddings = np.asarray(self.encoder.encode(new), dtype=np.float32)
            if embeddings.ndim != 2 or len(embeddings) != len(new):
                raise RuntimeError(f"the encoder returned embeddings of shape {embeddings.shape} for {len(new)} texts")
            broken = ~np.isfinite(embeddings).all(axis=1)
            if broken.any():
                text = new[int(broken.argmax())]
                raise InputError(
                    f"{broken.sum()} of {len(new)} embeddings hold nan or infinity (the first of {text[:80]!r}): "
                    "the model's weights or its precision are broken, and no score was computed"
                )
            self.rows.update(zip(new, range(len(self.rows), len(self.rows) + len(new)), strict=True))
            self.embeddings = np.concatenate([self.embeddings, embeddings]) if len(self.embeddings) else embeddings
        rows = [self.rows[text] for text in sentences]
        # no copy where nothing repeats, so that a large corpus is held once
        return self.embeddings if rows == list(range(len(self.embeddings))) else self.embeddings[rows]


@dataclass
class LayerPoolEncoder:
    """A model of this package with its tokenizer, embedding with the pooler that the checkpoint names.

    The `prompt` is put before each text; queries and documents may have encoders with prompts of their own.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens_per_batch: int
    show_progress_bar: bool = True
    prompt: str = ""
    queries: "LayerPoolEncoder | None" = None
    documents: "LayerPoolEncoder | None" = None

    def encode(self, sentences: list[str]) -> np.ndarray:
        return self.model.encode(
            [self.prompt + sentence for sentence in sentences],
            self.tokenizer,
            max_tokens_per_batch=self.max_tokens_per_batch,
            normalize=False,
            show_progress_bar=self.show_progress_bar,
            convert_to_numpy=True,
        )


@dataclass
class SentenceTransformersEncoder:
    """A `SentenceTransformer`, embedding with the modules that its folder lists.

    The model's `method` itself puts the `prompt` before each text, and may choose modules by the kind of text.
    """

    model: Any
    max_tokens_per_batch: int
    prompt: str = ""
    method: str = "encode"
    queries: "SentenceTransformersEncoder | None" = None
    documents: "SentenceTransformersEncoder | None" = None

    def encode(self, sentences: list[str]) -> np.ndarray:
        tokenizer = self.model.tokenizer
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            lengths = [len(ids) for ids in tokenizer(sentences, truncation=True)["input_ids"]]
        else:  # a static model, which computes next to nothing per token
            lengths = [len(sentence) for sentence in sentences]

        def embed(batch: list[int]) -> np.ndarray:
            texts = [sentences[index] for index in batch]
            encode = getattr(self.model, self.method)
            return encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True)

        return _encode_by_length(lengths, self.max_tokens_per_batch, embed)


@dataclass
class PooledEncoder:
    """Any encoder of transformers, its last hidden state pooled: `mean` over all tokens, or the first (`cls`)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: str
    max_tokens_per_batch: int

    def encode(self, sentences: list[str]) -> np.ndarray:
        tokens = self.tokenizer(sentences, truncation=True, return_attention_mask=True)

        @torch.inference_mode()
        def embed(batch: list[int]) -> np.ndarray:
            columns = {name: [values[index] for index in batch] for name, values in tokens.items()}
            inputs = self.tokenizer.pad(columns, padding_side="right", return_tensors="pt").to(self.model.device)
            states = self.model(**inputs).last_hidden_state.float()
            if self.pooling == "cls":
                return states[:, 0].cpu().numpy()
            mask = inputs["attention_mask"].unsqueeze(-1)
            return ((states * mask).sum(1) / mask.sum(1)).cpu().numpy()

        return _encode_by_length([len(ids) for ids in tokens["input_ids"]], self.max_tokens_per_batch, embed)


def _encode_by_length(
    lengths: Sequence[int], max_tokens_per_batch: int, embed: Callable[[list[int]], np.ndarray]
) -> np.ndarray:
    """Embed texts in batches of similar length, longest first, of at most `max_tokens_per_batch` tokens with padding.

    `embed` turns indices of texts into their embeddings (len, d). A longer text makes a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = []
    start = 0
    with logging.tqdm(total=len(order), desc="Encoding", unit="text") as progress:
        while start < len(order):
            longest = max(1, lengths[order[start]])
            batch = order[start : start + max(1, max_tokens_per_batch // longest)]
            batches.append(embed(batch))
            start += len(batch)
            progress.update(len(batch))
    embeddings = np.concatenate(batches).astype(np.float32, copy=False)
    return embeddings[np.argsort(order)]


def load_encoder(
    model_name_or_path: str | Path,
    *,
    revision: str = "main",
    max_seq_length: int | None = None,
    pooling: str | None = None,
    max_tokens_per_batch: int = 8192,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Encoder:
    """Open a folder or a model of the Hub as an encoder.

    A model of this package (`model_type` "layerpool_...") embeds with its own pooler; a sentence-transformers model
    (it has a `modules.json`) with its own modules and prompts, and needs sentence-transformers; any other by mean
    pooling. A model of this package to which such a file adds further modules is a sentence-transformers model.

    Args:
        model_name_or_path: a folder, or a name on the Hub.
        revision: branch, tag or commit on the Hub.
        max_seq_length: tokens at which a text is cut, special tokens included. By default what the saved model
            says: the tokenizer's `model_max_length`, or a sentence-transformers model's own `max_seq_length`, but
            never more than the model has positions.
        pooling: `mean` or `cls` of the last hidden state, whatever a sentence-transformers folder says. Not for a
            model of this package, which knows its pooler.
        max_tokens_per_batch: tokens computed at a time, padding included: the bound on memory.
        device: by default the GPU if there is one.
        trust_remote_code: run code that the checkpoint brings along.
        allow_pickle: load weights from pickle files too, which can run code; by default only safetensors.

    Returns:
        An [`Encoder`] whose embeddings are float32 and not normalised (unless a sentence-transformers module does).

    Raises:
        InputError: there is no such model, one of its files is broken, it lacks weights or a tokenizer, its weights
            are pickled, it needs `trust_remote_code` or sentence-transformers, there is no such device, or an argument
            does not fit it.
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
    prompts, truncate_dim = (Prompts(), None) if modules is None else read_settings(name, revision)
    is_sentence_transformers = modules is not None and not (
        is_layerpool and _is_one_transformer(modules) and truncate_dim is None
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
        model = _load_sentence_transformer(name, device, **loading)
        if isinstance(model.tokenizer, PreTrainedTokenizerBase):
            check_tokenizer(name, model.tokenizer)
            model.max_seq_length = _length_limit(model, model.tokenizer, max_seq_length)
        elif max_seq_length is not None:
            raise InputError(f"--max_seq_length {max_seq_length}: {name} has no tokenizer whose length could be set")
        encoder = SentenceTransformersEncoder(model, max_tokens_per_batch, prompts.sentences)
        encoder.queries = replace(encoder, prompt=prompts.queries, method="encode_query")
        encoder.documents = replace(encoder, prompt=prompts.documents, method="encode_document")
        return encoder
    model, tokenizer = _load_transformers(name, is_layerpool, **loading)
    tokenizer.model_max_length = _length_limit(model, tokenizer, max_seq_length)
    model = model.to(device)
    if is_layerpool:
        encoder = LayerPoolEncoder(model, tokenizer, max_tokens_per_batch, prompt=prompts.sentences)
        if any(prompts):
            encoder.queries = replace(encoder, prompt=prompts.queries)
            encoder.documents = replace(encoder, prompt=prompts.documents)
        return encoder
    return PooledEncoder(model, tokenizer, pooling or "mean", max_tokens_per_batch)


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        usable = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:  # no such device; torch was built without it
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(f"--device {device}: torch cannot use it ({reason}); use cpu, or cuda on a GPU") from error
    if usable.type == "meta":
        raise InputError(f"--device {device}: its tensors have no values to compute with; use cpu, or cuda on a GPU")
    return usable


def _is_one_transformer(modules: list[Module]) -> bool:
    """Whether modules.json lists what a model of this package writes there, and nothing more."""
    first, *more = modules
    names = first.type.split(".")  # releases of sentence-transformers differ in those between
    return (names[0], names[-1], first.path, more) == ("sentence_transformers", "Transformer", "", [])


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
        # Modules that do not fit each other fail when they compute; a Router may need to be told what for.
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
    # A pooler over the first token is not used here; anything else that was not loaded would be random.
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    absent = {key for key in absent if is_layerpool or not key.startswith("pooler.")}
    if absent:
        raise InputError(
            f"{name}: the weights do not fit the configuration: {len(absent)} tensors are missing or of another shape "
            f"({min(absent)} for one)"
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_padding(name, tokenizer)
    return model.eval(), tokenizer


def _length_limit(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, max_seq_length: int | None) -> int:
    """The length to cut at: `max_seq_length` if it fits the model, else what the tokenizer says, within the model."""
    positions = position_limit(model)
    if max_seq_length is None:
        return min(tokenizer.model_max_length, positions)
    if max_seq_length > positions:
        raise InputError(f"--max_seq_length {max_seq_length}: the model has positions for at most {positions} tokens")
    special = tokenizer.num_special_tokens_to_add()
    if max_seq_length <= special:
        raise InputError(
            f"--max_seq_length {max_seq_length}: leaves no token of the text beside {special} special ones"
        )
    return max_seq_length
