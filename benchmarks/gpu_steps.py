"""
Training steps of gpu.py, here and in sentence-transformers: forward, loss, backward and AdamW, under bf16 autocast.
Batches are made in advance, as data workers do, and are on the device.
"""

import contextlib
from typing import Any

import torch
from gpu_bench import CLS, COLUMNS, FIRST_WORD, SEP, SPECIAL_TOKENS, Bench


TEMPERATURE = 0.05


class OneProcess:
    """What gradient caching asks of accelerate, for one process."""

    @staticmethod
    def backward(loss: torch.Tensor) -> None:
        loss.backward()

    @staticmethod
    def no_sync(model: Any) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


def our_step(bench: Bench, model: torch.nn.Module, is_cached: bool):
    """`(prepare, step)`: the collator makes a batch of token ids, and a step trains on it."""
    from modeling_layerpool.training.batching import PackingCollator, chunks_of, model_inputs
    from modeling_layerpool.training.contrastive.gradient_cache import GradientCache
    from modeling_layerpool.training.losses import info_nce

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    collator = PackingCollator(COLUMNS, 0, chunk_tokens=bench.shapes.chunk_tokens if is_cached else None)

    def prepare(sentences: list[list[int]]) -> dict[str, Any]:
        rows = zip(*(sentences[column::3] for column in range(3)), strict=True)
        names = [f"{column}_input_ids" for column in COLUMNS]
        batch = collator([{"row_number": n} | dict(zip(names, row, strict=True)) for n, row in enumerate(rows)])
        return on_device(batch, bench.device)

    def embed(**inputs):
        with bench.autocast():
            return model(**inputs)

    def loss_of(embeddings: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        ids = batch["text_ids"]
        embeddings = embeddings[batch["sentence_indices"]] if is_cached else embeddings
        texts = embeddings.view(*ids.shape, -1).unbind(1)
        columns = ids[:, 1:].T.flatten()
        return info_nce(*texts, temperature=TEMPERATURE, anchor_text_ids=ids[:, 0], column_text_ids=columns)

    def step(batch: dict[str, Any]) -> None:
        model.train()
        if is_cached:
            cache = GradientCache(embed, OneProcess, chunks_of(batch))
            cache.cache_gradient(loss_of(cache.represent(), batch))
            cache.backward()
        else:
            inputs = {name: value for name, value in model_inputs(batch).items() if torch.is_tensor(value)}
            loss_of(embed(**inputs).pooler_output, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return prepare, step


def on_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: on_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list) and batch and isinstance(batch[0], dict):
        return [on_device(value, device) for value in batch]
    return batch.to(device) if torch.is_tensor(batch) else batch


def save_plain_bert(bench: Bench, folder: str) -> Any:
    """Save a BERT with random weights and the tokenizer of the words w5, w6, ... Returns the tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(**bench.shapes.model, pad_token_id=0)
    words = [*SPECIAL_TOKENS, *(f"w{number}" for number in range(FIRST_WORD, config.vocab_size))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, **dict(zip(names, SPECIAL_TOKENS, strict=True))
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def as_texts(sentences: list[list[int]]) -> list[str]:
    return [" ".join(f"w{token}" for token in sentence[1:-1]) for sentence in sentences]


def open_theirs(bench: Bench, folder: str, attention: str):
    """sentence-transformers with mean pooling, unpadded if the attention allows it."""
    from sentence_transformers import SentenceTransformer

    options = {"attn_implementation": attention}
    return SentenceTransformer(folder, device=bench.device.type, model_kwargs=options)


def their_step(bench: Bench, model: Any, is_cached: bool):
    """`(prepare, step)` as in [`our_step`], with their loss and their batches of columns."""
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    # As many tokens at once as here, on average
    texts_at_once = max(1, bench.shapes.chunk_tokens // 20)
    loss = (
        CachedMultipleNegativesRankingLoss(model, mini_batch_size=texts_at_once)
        if is_cached
        else MultipleNegativesRankingLoss(model)
    )
    preprocess = getattr(model, "preprocess", None) or model.tokenize  # its name before release 5.4

    def prepare(sentences: list[list[int]]) -> list[dict[str, Any]]:
        return [on_device(dict(preprocess(as_texts(sentences[column::3]))), bench.device) for column in range(3)]

    def step(columns: list[dict[str, Any]]) -> None:
        model.train()
        with bench.autocast():
            value = loss([dict(column) for column in columns], None)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return prepare, step
