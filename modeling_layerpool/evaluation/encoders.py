"""Encoders, the only interface between evaluation and a model: `encode(list[str]) -> array (len, d)`.

There are three kinds: a model of this package, a sentence-transformers model, and any other encoder of transformers.
A fourth one returns the token means of all hidden states of a model of this package.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..common.checksums import text_checksum, weights_checksum
from ..common.errors import InputError
from ..common.prompts import Prompts


# The parts of a tokenizer that its calls set.
CALL_OPTIONS = ("truncation", "padding")


class Encoder(Protocol):
    """Anything that turns n texts into n embeddings.

    An encoder that embeds the queries or documents of a retrieval set differently from other texts, for example with
    a prompt, has the attributes `queries` and `documents`, which are encoders too.
    """

    def encode(self, sentences: list[str]) -> np.ndarray:
        """Embeddings (len(sentences), d), float, in the order of the sentences."""


def query_and_document_encoders(encoder: Encoder) -> tuple[Encoder, Encoder]:
    """The encoders for the queries and documents of a retrieval set: the encoder itself unless it has others."""
    return tuple(getattr(encoder, kind, None) or encoder for kind in ("queries", "documents"))


def encode_queries_and_documents(
    encoder: Encoder, queries: Sequence[str], documents: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of queries (q, d) and of documents (c, d), in a single call if both have the same encoder."""
    of_queries, of_documents = query_and_document_encoders(encoder)
    if of_queries is of_documents:
        embeddings = of_queries.encode([*queries, *documents])
        return embeddings[: len(queries)], embeddings[len(queries) :]
    return of_queries.encode(list(queries)), of_documents.encode(list(documents))


def pair_cosines(encoder: Encoder, sentences1: Sequence[str], sentences2: Sequence[str]) -> np.ndarray:
    """The cosine (n,) of the embeddings of the two sides of each pair, in float64."""
    embeddings = torch.from_numpy(encoder.encode([*sentences1, *sentences2])).double()
    first, second = F.normalize(embeddings, dim=1).chunk(2)
    return (first * second).sum(1).numpy()


def prompts_in_use(encoder: Encoder, *, sentences: bool, retrieval: bool) -> dict[str, str]:
    """The non-empty prompts that an evaluation puts before its `sentences`, `queries` and `documents`."""
    of_queries, of_documents = query_and_document_encoders(encoder)
    encoders = {"sentences": encoder} if sentences else {}
    encoders |= {"queries": of_queries, "documents": of_documents} if retrieval else {}
    prompts = {kind: getattr(encoder, "prompt", "") for kind, encoder in encoders.items()}
    return {kind: prompt for kind, prompt in prompts.items() if prompt}


class CachingEncoder:
    """An encoder that embeds each distinct text once and keeps the embedding.

    Args:
        encoder: computes the embeddings.

    `encode` returns float32 (n, d). It raises an `InputError` for values that are not finite, which could otherwise
    give a plausible score, and a `RuntimeError` for embeddings of another shape. Queries and documents have caches of
    their own if the encoder embeds them differently.
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
        # Without repeats there is no copy, so that a large corpus is in memory once.
        return self.embeddings if rows == list(range(len(self.embeddings))) else self.embeddings[rows]


@dataclass
class LayerPoolEncoder:
    """A model of this package with its tokenizer and its own pooler.

    The `prompt` goes before each text, and no other prompt of the model. Queries and documents may have encoders with
    their own prompts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens_per_batch: int = 8192
    show_progress_bar: bool = True
    prompt: str = ""
    queries: "LayerPoolEncoder | None" = None
    documents: "LayerPoolEncoder | None" = None

    def encode(self, sentences: list[str]) -> np.ndarray:
        return self.model.encode(
            sentences,
            self.tokenizer,
            prompt=self.prompt,
            max_tokens_per_batch=self.max_tokens_per_batch,
            normalize=False,
            show_progress_bar=self.show_progress_bar,
            convert_to_numpy=True,
        )

    @property
    def identity(self) -> str:
        """A checksum of everything that the embeddings depend on."""
        return _identity(self.model, self.tokenizer, self.prompt)


@dataclass
class PromptingEncoder:
    """An encoder without prompts of its own, which reads the `prompt` before each text."""

    encoder: Encoder
    prompt: str = ""
    queries: "PromptingEncoder | None" = None
    documents: "PromptingEncoder | None" = None

    def encode(self, sentences: list[str]) -> np.ndarray:
        return self.encoder.encode([self.prompt + sentence for sentence in sentences])

    @property
    def identity(self) -> str:
        """A checksum of everything that the embeddings depend on."""
        return text_checksum(self.prompt, self.encoder.identity)


def with_prompts(
    encoder: LayerPoolEncoder | PromptingEncoder, prompts: Prompts
) -> LayerPoolEncoder | PromptingEncoder:
    """The encoder with the prompt of sentences, and encoders with those of queries and documents if there are any."""
    if not any(prompts):
        return encoder
    return replace(
        encoder,
        prompt=prompts.sentences,
        queries=replace(encoder, prompt=prompts.queries),
        documents=replace(encoder, prompt=prompts.documents),
    )


class FrozenLayerPoolEncoder:
    """A model of this package whose encoder does not change: keeps the states of all texts that it has embedded.

    The texts hold their prompts already.

    Args:
        model, tokenizer: a model, whose pooler may be trained between calls, and its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        self.rows: dict[str, int] = {}
        self.states = torch.zeros(0)

    def encode(self, sentences: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(sentences) if text not in self.rows]
        if new:
            states = self.model.encode_states(new, self.tokenizer, prompt="", convert_to_numpy=False).cpu()
            self.rows |= {text: len(self.rows) + index for index, text in enumerate(new)}
            self.states = torch.cat([self.states, states]) if len(self.states) else states
        return self.model.pool_states(self.states[[self.rows[text] for text in sentences]]).cpu().numpy()


@dataclass
class StatesEncoder:
    """All hidden states that a model of this package reads, as one vector for each text, for transfer tasks.

    `encode` returns (len(sentences), n * h): the mean over the tokens of each of the n states.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens_per_batch: int = 8192
    prompt: str = ""

    @property
    def states(self) -> int:
        """n, the number of hidden states."""
        return len(self.model.pooler.states)

    def encode(self, sentences: list[str]) -> np.ndarray:
        options = {"max_tokens_per_batch": self.max_tokens_per_batch, "show_progress_bar": True}
        # (len, n, 2, h): first token and mean
        states = self.model.encode_states(sentences, self.tokenizer, prompt=self.prompt, **options)
        return states[:, :, 1].reshape(len(sentences), -1)


@dataclass
class SentenceTransformersEncoder:
    """A `SentenceTransformer` with the modules that its folder lists.

    The `method` of the model itself puts the `prompt` before each text, and may choose modules by the kind of text.
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
        else:  # a static model, with almost no computation per token
            lengths = [len(sentence) for sentence in sentences]

        def embed(batch: list[int]) -> np.ndarray:
            texts = [sentences[index] for index in batch]
            encode = getattr(self.model, self.method)
            return encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True)

        return _encode_by_length(lengths, self.max_tokens_per_batch, embed)

    @property
    def identity(self) -> str:
        """A checksum of everything that the embeddings depend on."""
        return _identity(self.model, self.model.tokenizer, self.prompt, self.method, repr(self.model))


@dataclass
class PooledEncoder:
    """Any encoder of transformers. Its last hidden state is pooled: `mean` over tokens, or the first token (`cls`)."""

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

    @property
    def identity(self) -> str:
        """A checksum of everything that the embeddings depend on."""
        return _identity(self.model, self.tokenizer, self.pooling)


def _identity(model: torch.nn.Module, tokenizer: Any, *options: str) -> str:
    """A checksum of a model's weights and configuration, of its tokenizer and of options."""
    config = getattr(model, "config", None)
    settings = {} if config is None else config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        settings.pop(name, None)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        options = (*options, json.dumps(tokenizer.get_vocab(), sort_keys=True), str(tokenizer.model_max_length))
        tokenizer = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(tokenizer, Tokenizer):
        # Calls change how it truncates and pads.
        rules = {name: rule for name, rule in json.loads(tokenizer.to_str()).items() if name not in CALL_OPTIONS}
        options = (*options, json.dumps(rules, sort_keys=True))
    weights = weights_checksum(model.state_dict())
    return text_checksum(type(model).__name__, weights, json.dumps(settings, sort_keys=True, default=str), *options)


def _encode_by_length(
    lengths: Sequence[int], max_tokens_per_batch: int, embed: Callable[[list[int]], np.ndarray]
) -> np.ndarray:
    """Embed texts in [`batches_by_length`]; `embed` returns the embeddings (len, d) of given indices."""
    order, parts = [], []
    with logging.tqdm(total=len(lengths), desc="Encoding", unit="text", leave=False) as progress:
        for batch in batches_by_length(lengths, max_tokens_per_batch):
            order += batch
            parts.append(embed(batch))
            progress.update(len(batch))
    embeddings = np.concatenate(parts).astype(np.float32, copy=False)
    return embeddings[np.argsort(order)]


def batches_by_length(lengths: Sequence[int], max_tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of texts in batches of similar length, longest first, of at most `max_tokens_per_batch` tokens.

    The tokens include padding. A longer text is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        batch = order[start : start + max(1, max_tokens_per_batch // longest)]
        yield batch
        start += len(batch)
