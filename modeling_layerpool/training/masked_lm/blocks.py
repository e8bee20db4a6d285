"""
Texts packed into blocks of one length and masked: the batches of a masked language model.

Notation: `rows` blocks of `length` tokens in a batch. A sequence is a text between its special tokens, or the part of
one that lies in a block. Sequences of a batch have different numbers; -1 is the padding.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ...common.errors import InputError
from ...models.modeling_layerpool_packing import best_fit, find_sequence_starts, restarting_positions
from ..batching import GlobalBatchSampler, StreamedBatches, local_rows
from ..masking import TokenMasking


BLOCK_PACKINGS = ("pack", "concatenate")
# Batches of a stream that are packed together. More of them leave less padding.
POOLED_BATCHES = 8


class Span(NamedTuple):
    """Tokens `begin` to `end` of one tokenized text."""

    text: int
    begin: int
    end: int


class Block(NamedTuple):
    """The texts of a block, and the numbers that decide its masks."""

    key: tuple[int, ...]
    spans: list[Span]


def pack_texts(lengths: Sequence[int], length: int) -> list[list[Span]]:
    """
    Pack whole texts into blocks of `length` tokens, the longest first, each into the fullest block with room for it.

    Inside a block they keep their order. The number of blocks depends on the lengths, not on their order.
    """
    return [[Span(text, 0, lengths[text]) for text in sorted(row)] for row in best_fit(lengths, length)]


def concatenate_texts(lengths: Sequence[int], length: int) -> list[list[Span]]:
    """Concatenate texts, and cut wherever a block of `length` tokens is full."""
    blocks: list[list[Span]] = []
    room = 0
    for text, tokens in enumerate(lengths):
        begin = 0
        while begin < tokens:
            if room == 0:
                blocks.append([])
                room = length
            end = min(tokens, begin + room)
            blocks[-1].append(Span(text, begin, end))
            room -= end - begin
            begin = end
    return blocks


PACKERS = {"pack": pack_texts, "concatenate": concatenate_texts}


class BlockSampler(GlobalBatchSampler):
    """
    Global batches of blocks, from each of which this process yields its blocks.

    Each epoch packs the texts in a new order into the same number of blocks, every text once. The smaller last batch
    is divided as evenly as possible, and left out only if it has fewer blocks than processes.

    Args:
        lengths: number of tokens of each text.
        block_length: number of tokens in a block.
        packing: `"pack"` or `"concatenate"`.
        batch_size: number of blocks in a global batch.

    Other arguments are those of [`GlobalBatchSampler`].
    """

    def __init__(self, lengths: Sequence[int], block_length: int, packing: str, batch_size: int, **kwargs: Any):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.block_length = block_length
        self.packing = packing
        if packing == "pack":
            blocks = len(best_fit(self.lengths.tolist(), block_length))
        else:
            blocks = -(-int(self.lengths.sum()) // block_length)
        super().__init__(blocks, batch_size, **kwargs)

    @property
    def smallest(self) -> int:
        return self.batch_size if self.drop_last else self.world_size

    def blocks(self, epoch: int) -> list[Block]:
        """The blocks of an epoch."""
        texts = np.arange(len(self.lengths))
        if self.shuffle:
            texts = np.random.default_rng((self.seed, epoch)).permutation(texts)
        blocks = PACKERS[self.packing](self.lengths[texts].tolist(), self.block_length)
        return [
            Block((epoch, number), [span._replace(text=int(texts[span.text])) for span in spans])
            for number, spans in enumerate(blocks)
        ]

    def global_batches(self) -> list[list[Block]]:
        blocks = self.blocks(self.epoch)
        return [[blocks[number] for number in batch] for batch in super().global_batches()]


class BlockReader(torch.utils.data.Dataset):
    """The tokens of `blocks` blocks, from the rows of [`tokenize_texts`], for a [`BlockCollator`]."""

    def __init__(self, dataset: Dataset, blocks: int):
        self.dataset = dataset
        self.blocks = blocks

    def __len__(self) -> int:
        return self.blocks

    def __getitems__(self, blocks: list[Block]) -> list[dict[str, Any]]:
        # One query for the whole batch, because many small queries take longer than the rest of the work.
        rows = iter(self.dataset[[span.text for block in blocks for span in block.spans]]["input_ids"])
        return [
            {"key": block.key, "sequences": [next(rows)[span.begin : span.end] for span in block.spans]}
            for block in blocks
        ]


class StreamedBlocks(StreamedBatches):
    """
    Global batches of blocks from a stream of texts: every process reads the whole stream and yields its blocks.

    Texts are packed a few batches at a time; texts that do not fill a block wait for the next ones. The stream starts
    again when it ends. With several data workers, each makes batches from its own shards, which are the same on every
    process.

    Args:
        dataset: the rows of [`tokenize_texts`].
        batch_size: number of blocks in a global batch.

    Other arguments are those of [`BlockSampler`] and [`StreamedBatches`].
    """

    def __init__(
        self,
        dataset: IterableDataset,
        block_length: int,
        packing: str,
        batch_size: int,
        *args: int,
        seed: int = 0,
        **kwargs: int,
    ):
        super().__init__(dataset, batch_size, *args, **kwargs)
        self.block_length = block_length
        self.packing = packing
        self.seed = seed

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        worker_id = 0 if worker is None else worker.id
        waiting: list[list[int]] = []
        tokens = made = 0
        for epoch in count():
            self.dataset.set_epoch(epoch)
            read = 0
            for row in self.dataset:
                read += 1
                waiting.append(row["input_ids"])
                tokens += len(waiting[-1])
                if tokens < POOLED_BATCHES * self.batch_size * self.block_length:
                    continue
                blocks, waiting = self._pack(waiting, np.random.default_rng((self.seed, worker_id, made)))
                tokens = sum(map(len, waiting))
                for begin in range(0, len(blocks), self.batch_size):
                    batch = [
                        {"key": (worker_id, made + index), "sequences": sequences}
                        for index, sequences in enumerate(blocks[begin : begin + self.batch_size])
                    ]
                    made += len(batch)
                    yield list(local_rows(batch, self.rank, self.world_size))
            if read == 0:
                raise InputError("the stream (or one of its shards) has no text")

    def _pack(
        self, texts: list[list[int]], generator: np.random.Generator
    ) -> tuple[list[list[list[int]]], list[list[int]]]:
        """Full batches of blocks, shuffled, and the texts that are left over."""
        blocks = [
            [texts[span.text][span.begin : span.end] for span in spans]
            for spans in PACKERS[self.packing]([len(text) for text in texts], self.block_length)
        ]
        if self.packing == "pack":
            blocks.sort(key=lambda block: -sum(map(len, block)))  # the emptiest blocks wait for more texts
        kept = (len(blocks) - 1) // self.batch_size * self.batch_size
        left_over = [sequence for block in blocks[kept:] for sequence in block]
        return [blocks[index] for index in generator.permutation(kept)], left_over


class BlockCollator:
    """
    Masks the tokens of blocks and makes a batch of them.

    Args:
        tokenizer: the tokenizer of the texts.
        block_length: number of tokens in a block.
        mlm_probability: share of the content tokens that are masked; at least one token of each block is.
        attend_within_documents: return positions that restart from 0 with each sequence instead of an attention mask.
        seed: seed of the masks, together with the key of a block; the batch and the process do not matter.

    The batch holds, all of shape `(rows, length)`: `input_ids`; `labels`, the original token of masked tokens and -100
    for the others; `sequence_ids`, the sequence that a token belongs to, numbered over the whole batch, -1 for
    padding; `content`, whether a token is neither special (the unknown token is) nor padding; and `attention_mask`, 0
    for padding, or `position_ids`.

    Raises:
        InputError: the tokenizer has no mask token or no token for padding.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        block_length: int,
        mlm_probability: float = 0.15,
        *,
        attend_within_documents: bool = False,
        seed: int = 0,
    ):
        self.masking = TokenMasking(tokenizer, mlm_probability, seed)
        self.pad_token_id = tokenizer.pad_token_id
        self.block_length = block_length
        self.attend_within_documents = attend_within_documents

    def __call__(self, blocks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids = torch.full((len(blocks), self.block_length), self.pad_token_id)
        sequence_ids = torch.full_like(input_ids, -1)
        number = 0
        for row, block in enumerate(blocks):
            begin = 0
            for sequence in block["sequences"]:
                end = begin + len(sequence)
                input_ids[row, begin:end] = torch.as_tensor(sequence)
                sequence_ids[row, begin:end] = number
                number, begin = number + 1, end
        is_token = sequence_ids >= 0
        content = is_token & self.masking.is_content(input_ids)
        masked = [
            self.masking(ids, is_content, block["key"])
            for ids, is_content, block in zip(input_ids, content, blocks, strict=True)
        ]
        batch = {
            "input_ids": torch.stack([ids for ids, _ in masked]),
            "labels": torch.stack([labels for _, labels in masked]),
            "sequence_ids": sequence_ids,
            "content": content,
        }
        if self.attend_within_documents:
            return batch | {"position_ids": restarting_positions(sequence_ids, find_sequence_starts(sequence_ids))}
        return batch | {"attention_mask": is_token.long()}


class ValidationSampler(BlockSampler):
    """All blocks, padded with empty ones so that every process has the same number of batches and blocks."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rows += -self.rows % self.world_size

    def blocks(self, epoch: int) -> list[Block]:
        blocks = super().blocks(epoch)
        return blocks + [Block((epoch, number), []) for number in range(len(blocks), self.rows)]
