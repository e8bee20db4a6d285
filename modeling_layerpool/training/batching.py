"""Batches of rows for all processes, and the packing of their sentences."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from ..common.errors import InputError
from ..models.modeling_layerpool_packing import pack_sentences
from .cropping import Cropping
from .masking import TokenMasking, predicted_index


if TYPE_CHECKING:  # benchmarks/gpu.py packs batches where datasets is not installed
    from datasets import IterableDataset

# Fields of a packed input with a number for each sentence, and batch fields that are not input of the model.
OF_SENTENCES = ("sequence_starts", "prompt_lengths")
NOT_MODEL_INPUTS = (
    *("text_ids", "row_numbers", "values", "teacher_embeddings", "guide_embeddings"),
    *("mlm_input_ids", "mlm_indices", "mlm_labels"),
)


def text_id(token_ids: Sequence[int]) -> int:
    """The identity of a text: Python's hash of its tokens, which does not depend on the process."""
    return hash(tuple(token_ids))


def local_rows(rows: Sequence[Any], rank: int, world_size: int) -> Sequence[Any]:
    """The rows of one process in a global batch: consecutive, and at most one row more or less than another's."""
    return rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]


class GlobalBatchSampler(BatchSampler):
    """
    Global batches, from each of which this process yields its rows.

    Every process gets the same number of batches and no row twice. The smaller last batch is divided as evenly as
    possible. It is left out if it has only one row, and thus no negatives, or fewer rows than processes.

    Args:
        rows: number of rows in the dataset.
        batch_size: number of rows in a global batch.
        rank, world_size: index of this process, and number of processes.
        shuffle: a new order in each epoch, the same on all processes.
        seed: seed of the orders.
        drop_last: always leave out a smaller last batch.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ):
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def smallest(self) -> int:
        """The number of rows that a batch must have: all of them, or one for each process and a negative."""
        return self.batch_size if self.drop_last else max(2, self.world_size)

    def order(self, epoch: int) -> list[int]:
        """The indices of the rows in the order of an epoch."""
        if not self.shuffle:
            return list(range(self.rows))
        # Resuming relies on an order that depends on the seed and the epoch alone.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.rows, generator=generator).tolist()

    def global_batches(self) -> list[list[int]]:
        """The batches of this epoch, each with the rows of all processes."""
        order = self.order(self.epoch)
        return [order[begin : begin + self.batch_size] for begin in range(0, self.rows, self.batch_size)][: len(self)]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            yield list(local_rows(batch, self.rank, self.world_size))

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + (rest >= self.smallest)


class NoDuplicatesBatchSampler(GlobalBatchSampler):
    """
    Batches in which no text occurs twice, so that no text is its own negative.

    Each row, in the order of the epoch, goes to the first batch with room after the last one that holds one of its
    texts. This takes linear time, and without repeated texts gives the batches of [`GlobalBatchSampler`]. A row
    without such a batch, because a text has more copies than there are batches, is left out of the epoch; the next
    epoch leaves out others.

    Args:
        texts: the identities of each row's texts.

    Every epoch has as many batches as the first. If it has fewer, its largest batches are halved; if that is not
    enough, the batches of the first epoch are used again.

    Raises:
        InputError: the texts repeat so much that no batch has two different rows.
    """

    def __init__(self, texts: Sequence[Sequence[int]], *args: Any, **kwargs: Any):
        super().__init__(len(texts), *args, **kwargs)
        self.texts = texts
        self.length = len(self._distribute_rows(epoch=0))
        if self.length == 0:
            raise InputError("the texts repeat so much that no batch of different texts can be made")

    def __len__(self) -> int:
        return self.length

    def _distribute_rows(self, epoch: int) -> list[list[int]]:
        count = -(-self.rows // self.batch_size)
        batches: list[list[int]] = [[] for _ in range(count)]
        with_room = list(range(count + 1))  # from each batch to the next one with room, with the paths compressed
        first_allowed: dict[int, int] = {}  # the batch after the last one that holds a text
        for row in self.order(epoch):
            index = max((first_allowed.get(text, 0) for text in self.texts[row]), default=0)
            while with_room[index] != index:
                with_room[index] = with_room[with_room[index]]
                index = with_room[index]
            if index == count:
                continue
            batches[index].append(row)
            if len(batches[index]) == self.batch_size:
                with_room[index] = index + 1
            first_allowed.update(dict.fromkeys(self.texts[row], index + 1))
        return [batch for batch in batches if len(batch) >= self.smallest]

    def global_batches(self) -> list[list[int]]:
        batches = self._distribute_rows(self.epoch)[: self.length]
        while len(batches) < self.length:
            largest = max(batches, key=len, default=[])
            half = len(largest) // 2
            if half < self.smallest:
                # No batch can be halved: nearly all rows are the same.
                return self._distribute_rows(epoch=0)
            batches.remove(largest)
            batches += [largest[:half], largest[half:]]
        return batches


class MixedBatchSampler(GlobalBatchSampler):
    """
    Batches of several datasets whose rows follow one another. Each batch comes from one of them.

    An epoch has every batch of every dataset, in a random order. With weights, it has as many batches, but the
    datasets divide them by weight: a dataset with too few batches is read again, in a new order; one with too many
    shows other rows in the next epoch.

    Args:
        samplers: makes the batches of each dataset; all with the same options.
        weights: the weight of each dataset.
    """

    def __init__(self, samplers: Sequence[GlobalBatchSampler], weights: Sequence[float] | None = None):
        first, rows = samplers[0], sum(sampler.rows for sampler in samplers)
        options = (first.batch_size, first.rank, first.world_size, first.shuffle, first.seed, first.drop_last)
        super().__init__(rows, *options)
        self.samplers = samplers
        self.batches_of = [len(sampler) for sampler in samplers]
        if weights is not None:
            self.batches_of = divide(sum(self.batches_of), weights)

    def __len__(self) -> int:
        return sum(self.batches_of)

    def global_batches(self) -> list[list[int]]:
        batches: list[list[int]] = []
        first_row = 0
        for sampler, share in zip(self.samplers, self.batches_of, strict=True):
            rounds = -(-share // len(sampler))
            own: list[list[int]] = []
            for number in range(rounds):
                sampler.set_epoch(self.epoch * rounds + number)
                own += sampler.global_batches()
            batches += [[first_row + row for row in batch] for batch in own[:share]]
            first_row += sampler.rows
        if not self.shuffle:
            return batches
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def divide(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights, each at least 1, with the sum `total` where that allows it."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [max(1, math.floor(share)) for share in exact]
    by_rest = sorted(range(len(weights)), key=lambda index: counts[index] - exact[index])
    for index in by_rest[: max(0, total - sum(counts))]:
        counts[index] += 1
    return counts


class EpochDataLoader(DataLoader):
    """A data loader that passes the epoch on to its batch sampler, as data loaders prepared by accelerate do."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class StreamedBatches(torch.utils.data.IterableDataset):
    """
    Batches of a dataset without length: every process reads the whole stream and yields its rows of each batch.

    The stream starts again when it ends, so that no process ever lacks a batch. A smaller last batch is left out. With
    several data workers, each makes batches from its own shards of the stream, which are the same on every process.
    """

    def __init__(self, dataset: "IterableDataset", batch_size: int, rank: int = 0, world_size: int = 1):
        self.dataset = dataset
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for epoch in count():
            self.dataset.set_epoch(epoch)
            rows = iter(self.dataset)
            made = 0
            while len(batch := list(islice(rows, self.batch_size))) == self.batch_size:
                yield list(local_rows(batch, self.rank, self.world_size))
                made += 1
            if made == 0:
                raise InputError(
                    f"the stream (or one of its shards) is shorter than a batch of {self.batch_size} rows"
                )


def split_into_chunks(
    packed: dict[str, torch.Tensor], max_tokens: int
) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
    """
    Split a packed batch into chunks of rows of at most `max_tokens` tokens, each a packed input of its own. Other
    tensors of the batch, which have the shape of `input_ids`, are split with it.

    Returns:
        The chunks, and `sentence_indices (s,)`: the index of each sentence of the batch among those of all chunks.
    """
    sequence_ids = packed["sequence_ids"]
    of_sentences = [name for name in OF_SENTENCES if name in packed]
    count, length = len(packed["sequence_starts"]), sequence_ids.shape[1]
    rows = max(1, max_tokens // length)
    chunks = []
    indices = torch.empty(count, dtype=torch.long)
    before = 0
    for begin in range(0, len(sequence_ids), rows):
        part = sequence_ids[begin : begin + rows]
        members = part[part >= 0].unique()
        numbers = torch.full((count + 1,), -1)  # the last entry belongs to padding, -1
        numbers[members] = torch.arange(len(members))
        chunks.append(
            {
                **{name: packed[name][begin : begin + rows] for name in packed if name not in of_sentences},
                **{name: packed[name][members] for name in of_sentences},
                "sequence_ids": numbers[part],
                "sequence_starts": packed["sequence_starts"][members] - begin * length,
            }
        )
        indices[members] = torch.arange(before, before + len(members))
        before += len(members)
    return chunks, indices


def chunks_of(batch: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The packed inputs of a batch: its chunks, or the batch itself if it was not split."""
    return batch.get("chunks") or [batch]


def model_inputs(packed: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The fields of a packed input that the model takes."""
    return {name: value for name, value in packed.items() if name not in NOT_MODEL_INPUTS}


class PackingCollator:
    """
    Packs all sentences of a batch into rows of one length.

    Args:
        columns: the text columns of each row, as [`Objective.select_columns`] orders them. One that is named twice is
            packed twice, and one that the first row lacks is left out.
        pad_token_id: the token that fills the rest of a row.
        row_length: tokens in a packed row. Default: for each batch, the length that needs the least computation.
        chunk_tokens: split the batch into chunks of rows of at most this many tokens.
        masking: also masks the tokens; the rows of the batch decide which.
        cropping: crops a column where it is named for the second time.
        leading: by column, tokens before the text itself, which do not count for its identity.
        left_out: by column, tokens at the beginning that the means of the pooler leave out.
        with_lengths: each packed input also has `sequence_lengths`, a list, which therefore stays on the CPU.

    The batch holds the packed input of the model, `text_ids (b, c)`, equal for equal texts (after truncation),
    `row_numbers`, the lines or indices of the rows in their source, and `values (b,)` if the rows have one. Sentence
    `i * c + j` is column j of row i. With `chunk_tokens` it holds `chunks` and `sentence_indices` (see
    [`split_into_chunks`]) instead of one packed input. With `masking` each packed input also has `mlm_input_ids`, and
    the tokens that were masked: `mlm_indices (m,)`, in the flattened input, and `mlm_labels (m,)`.
    """

    def __init__(
        self,
        columns: Sequence[str],
        pad_token_id: int,
        row_length: int | None = None,
        chunk_tokens: int | None = None,
        masking: TokenMasking | None = None,
        leading: Mapping[str, int] | None = None,
        left_out: Mapping[str, int] | None = None,
        with_lengths: bool = False,
        cropping: Cropping | None = None,
    ):
        self.columns = list(columns)
        self.cropping = cropping
        self.leading, self.left_out = leading or {}, left_out or {}
        self.masking = masking
        self.pad_token_id = pad_token_id
        self.row_length = row_length
        self.chunk_tokens = chunk_tokens
        self.with_lengths = with_lengths

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        # Datasets may differ in their columns, but a batch is of one dataset.
        columns = [column for column in self.columns if features[0].get(f"{column}_input_ids") is not None]
        sentences = [feature[f"{column}_input_ids"] for feature in features for column in columns]
        leading = [self.leading.get(column, 0) for column in columns] * len(features)
        text_ids = torch.tensor([text_id(ids[tokens:]) for ids, tokens in zip(sentences, leading, strict=True)])
        rows = [feature["row_number"] for feature in features]
        if self.cropping is not None:
            for index, column in enumerate(columns):
                if column in columns[:index]:
                    views = slice(index, None, len(columns))
                    sentences[views] = self.cropping(sentences[views], rows, self.leading.get(column, 0))
        inputs: dict[str, Any] = pack_sentences(sentences, self.pad_token_id, self.row_length)
        if self.left_out:
            lengths = [self.left_out.get(column, 0) for column in columns] * len(features)
            inputs["prompt_lengths"] = torch.tensor(lengths)
        if self.masking is not None:
            content = (inputs["sequence_ids"] >= 0) & self.masking.is_content(inputs["input_ids"])
            inputs["mlm_input_ids"], inputs["mlm_labels"] = self.masking(inputs["input_ids"], content, key=rows)
        if self.chunk_tokens is not None:
            chunks, indices = split_into_chunks(inputs, self.chunk_tokens)
            inputs = {"chunks": chunks, "sentence_indices": indices}
        if self.with_lengths:
            for packed in chunks_of(inputs):
                owner = packed["sequence_ids"]
                packed["sequence_lengths"] = owner[owner >= 0].bincount().tolist()
        if self.masking is not None:
            for packed in chunks_of(inputs):
                packed["mlm_indices"] = predicted_index(packed["mlm_labels"])
                packed["mlm_labels"] = packed["mlm_labels"].flatten()[packed["mlm_indices"]]
        if "value" in features[0]:
            inputs["values"] = torch.tensor([feature["value"] for feature in features])
        return {
            **inputs,
            "text_ids": text_ids.view(len(features), len(columns)),
            "row_numbers": rows,
        }
