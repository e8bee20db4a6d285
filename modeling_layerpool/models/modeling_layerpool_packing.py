"""
Sentences laid side by side in rows of one length, so that hardly any padding is computed.

Notation: `rows` and `length` of the packed block, `s` sentences, `h` width. `sequence_ids (rows, length)` names the
sentence of every token, -1 for padding; `sequence_starts (s,)` is the flat index of each sentence's first token.
Positions restart with each sentence and attention stays inside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from transformers.utils.generic import is_flash_attention_requested

from .modeling_layerpool_attention import VarlenMixin, has_windows, packed_attention_mask


@dataclass
class ReadingOrder:
    """
    The order in which a recurrent network reads sentences without padding: the first token of each, then the second
    ones, and so on, each time the longest sentence first. The rank of a sentence is its position in that order.

    Args:
        indices: `(tokens,)` flat indices of the tokens in the rows.
        ranks: the rank of the sentence that each token belongs to, `(tokens,)`.
        rank_of_sentence: `(s,)`.
        batch_sizes: the number of first tokens, of second tokens, and so on, on the CPU.
    """

    indices: torch.Tensor
    ranks: torch.Tensor
    rank_of_sentence: torch.Tensor
    batch_sizes: torch.Tensor

    @classmethod
    def of(cls, lengths: torch.Tensor, flat_indices: Callable, device: torch.device) -> "ReadingOrder":
        """
        Args:
            lengths: tokens of each sentence `(s,)`, at least 1. The network needs them on the CPU: copying them there
                from another device is a synchronization. The indices that follow from them are copied without one.
            flat_indices: gives the flat indices of tokens from their sentences and their positions inside these.
            device: device of the tokens.
        """
        lengths, by_rank = lengths.cpu().sort(descending=True, stable=True)
        present = lengths > torch.arange(int(lengths[0])).unsqueeze(1)  # (longest, s)
        inside, ranks = present.nonzero(as_tuple=True)
        sentences, inside, ranks, rank_of_sentence = (
            # CUDA copies from pinned memory without waiting for the work before.
            (index.pin_memory() if device.type == "cuda" else index).to(device, non_blocking=True)
            for index in (by_rank[ranks], inside, ranks, by_rank.argsort())
        )
        return cls(flat_indices(sentences, inside), ranks, rank_of_sentence, present.sum(dim=1))

    def read(self, state: torch.Tensor) -> torch.Tensor:
        """The tokens of a state in this order: `(rows, length, h) -> (tokens, h)`."""
        return state.flatten(0, 1).index_select(0, self.indices)


class PaddedSentences:
    """
    One sentence a row: `attention_mask (b, t)`, 0 for padding, on either side, and not 0 for tokens; or None where
    nothing is padded. The means leave out the first `prompt_lengths (b,)` tokens of the sentences.
    """

    def __init__(self, attention_mask: torch.Tensor | None, prompt_lengths: torch.Tensor | None = None):
        self.attention_mask, self.prompt_lengths = attention_mask, prompt_lengths

    def first(self, state: torch.Tensor) -> torch.Tensor:
        """
        The first token of every sentence: `(b, t, h) -> (b, h)`, a copy that does not keep `state` alive. It is the
        first position if a row is all padding.
        """
        if self.attention_mask is None:
            return state[:, 0].clone()
        # argmax takes the first of equal numbers, and does not synchronize with the device.
        first = (self.attention_mask != 0).int().argmax(dim=1).to(state.device)
        rows, length = state.shape[:2]
        indices = torch.arange(rows, device=state.device) * length + first
        return state.flatten(0, 1).index_select(0, indices)

    def mean(self, state: torch.Tensor) -> torch.Tensor:
        """The mean over each sentence's tokens, summed in at least float32: `(b, t, h) -> (b, h)`, 0 for no tokens."""
        wide = at_least_float32(state)
        mask = self.attention_mask
        if self.prompt_lengths is not None:
            mask = wide.new_ones(wide.shape[:2]) if mask is None else mask
            place = (mask != 0).cumsum(dim=1)  # of each token in its sentence, from 1
            mask = mask * (place > self.prompt_lengths.to(mask.device).unsqueeze(1))
        if mask is None:
            return wide.mean(dim=1).to(state.dtype)
        mask = mask.to(wide.device, wide.dtype).unsqueeze(1)  # (b, 1, t)
        total = torch.bmm(mask, wide).squeeze(1)
        return (total / mask.sum(dim=-1).clamp(min=1)).to(state.dtype)

    def reading_order(self, state: torch.Tensor) -> ReadingOrder:
        """How a recurrent network reads the tokens of a state `(b, t, h)`, wherever the padding is."""
        rows, length = state.shape[:2]
        if self.attention_mask is None:
            lengths = torch.full((rows,), length)
            return ReadingOrder.of(lengths, lambda sentence, inside: sentence * length + inside, state.device)
        padding = (self.attention_mask == 0).to(state.device)
        tokens_first = padding.byte().argsort(dim=1, stable=True)
        return ReadingOrder.of(
            (~padding).sum(dim=1).clamp(min=1),
            lambda sentence, inside: sentence * length + tokens_first[sentence, inside],
            state.device,
        )


class PackedSentences:
    """
    Several sentences a row, named by `sequence_ids (rows, length)` and `sequence_starts (s,)`. The means leave out the
    first `prompt_lengths (s,)` tokens of the sentences. `lengths` are the tokens of each sentence, if the CPU knows
    them.
    """

    def __init__(
        self,
        sequence_ids: torch.Tensor,
        sequence_starts: torch.Tensor,
        prompt_lengths: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ):
        self.sequence_starts, self.lengths = sequence_starts, lengths
        count = sequence_starts.shape[0]
        if prompt_lengths is not None:
            inside = restarting_positions(sequence_ids, sequence_starts)
            sequence_ids = torch.where(inside < prompt_lengths[sequence_ids.clamp(min=0)], -1, sequence_ids)
        # Padding is summed into one sentence too many, which is dropped.
        self.owner = torch.where(sequence_ids < 0, count, sequence_ids).flatten()
        ones = torch.ones_like(self.owner, dtype=torch.float32)
        self.tokens = ones.new_zeros(count + 1).scatter_add(0, self.owner, ones)[:count].unsqueeze(-1)

    def first(self, state: torch.Tensor) -> torch.Tensor:
        """The first token of every sentence: `(rows, length, h) -> (s, h)`."""
        return state.flatten(0, 1).index_select(0, self.sequence_starts.to(state.device))

    def mean(self, state: torch.Tensor) -> torch.Tensor:
        """The mean over each sentence's tokens, summed in at least float32: `(rows, length, h) -> (s, h)`."""
        wide = at_least_float32(state.flatten(0, 1))
        # scatter_add computes the same sum as index_add, and its backward pass on a CPU is several times faster.
        owner = self.owner.to(state.device).unsqueeze(-1).expand_as(wide)
        total = wide.new_zeros(self.tokens.shape[0] + 1, wide.shape[-1]).scatter_add(0, owner, wide)
        return (total[:-1] / self.tokens.to(state.device).clamp(min=1)).to(state.dtype)

    def reading_order(self, state: torch.Tensor) -> ReadingOrder:
        """How a recurrent network reads the tokens of a state `(rows, length, h)`."""
        starts = self.sequence_starts.to(state.device)
        lengths = self.tokens.squeeze(-1).long() if self.lengths is None else torch.tensor(self.lengths)
        return ReadingOrder.of(lengths, lambda sentence, inside: starts[sentence] + inside, state.device)


class ReducedSentences:
    """First token and token mean of each sentence, kept instead of its tokens: a hidden state is `(s, 2, h)`."""

    def first(self, state: torch.Tensor) -> torch.Tensor:
        return state[:, 0]

    def mean(self, state: torch.Tensor) -> torch.Tensor:
        return state[:, 1]


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def find_sequence_starts(sequence_ids: torch.Tensor) -> torch.Tensor:
    """`sequence_starts (s,)` from `sequence_ids (rows, length)`: costs one synchronization with the device."""
    before = torch.nn.functional.pad(sequence_ids[:, :-1], (1, 0), value=-1)
    starts = ((sequence_ids >= 0) & (sequence_ids != before)).flatten().nonzero().squeeze(-1)
    return starts[sequence_ids.flatten()[starts].argsort()]


def restarting_positions(sequence_ids: torch.Tensor, sequence_starts: torch.Tensor) -> torch.Tensor:
    """`position_ids (rows, length)` that count from 0 in every sentence, and are 0 on padding."""
    index = torch.arange(sequence_ids.numel(), device=sequence_ids.device).view_as(sequence_ids)
    start = sequence_starts[sequence_ids.clamp(min=0)]
    return torch.where(sequence_ids < 0, 0, index - start)


def sequences_from_lengths(cu_seq_lens: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`sequence_ids (1, tokens)` and `sequence_starts (s,)` of one flat row cut at `cu_seq_lens (s + 1,)`."""
    ends = cu_seq_lens[1:].contiguous().long()
    index = torch.arange(tokens, device=cu_seq_lens.device)
    sequence_ids = torch.bucketize(index, ends, right=True)
    sequence_ids = torch.where(sequence_ids < ends.shape[0], sequence_ids, -1)
    return sequence_ids.unsqueeze(0), cu_seq_lens[:-1].long()


def cumulative_lengths(sequence_ids: torch.Tensor, sequence_starts: torch.Tensor) -> torch.Tensor:
    """
    Borders for variable-length attention over the flattened rows, `(s + rows + 1,)` in int32.

    The padding after each row becomes a sequence of its own (of length 0 in a full row), so that the number of
    borders follows from shapes, without a synchronization with the device.
    """
    rows, length = sequence_ids.shape
    row_starts = torch.arange(rows, device=sequence_ids.device) * length
    padding_starts = row_starts + (sequence_ids >= 0).sum(dim=1)
    borders = torch.cat([sequence_starts, padding_starts]).sort().values
    return torch.nn.functional.pad(borders, (0, 1), value=rows * length).int()


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """
    Distribute sentences to rows, longest first, each to the fullest row with room for it, in linear time.

    Args:
        lengths: tokens of each sentence, none above `row_length`.
        row_length: tokens that a row holds.

    Returns:
        For each row the indices of its sentences.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    rooms = 0  # bit r is set where a row with room for r more tokens is open
    for sentence in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        need = lengths[sentence]
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1  # the lowest bit: the least sufficient room
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = row_length, len(rows)
            rows.append([])
        rows[row].append(sentence)
        by_room[room - need].append(row)
        rooms |= 1 << (room - need)
    return rows


# Row length at which attention over the row costs as much per token as the rest of a layer (measured in training).
_COSTLY_LENGTH = 256


def best_rows(lengths: Sequence[int]) -> tuple[int, list[list[int]]]:
    """
    `(row_length, rows)` of the least work. Rows may be as long as the longest sentence, 1.5 times, or twice as long.

    Longer rows hold less padding, but attention computes the whole square of each row: the cost of a token is
    proportional to `1 + row_length / 256`.
    """
    longest = max(lengths)
    sizes = {-(-size // 8) * 8 for size in (longest, longest * 3 // 2, longest * 2)}
    if longest > _COSTLY_LENGTH:
        sizes = {min(sizes)}
    packed = [(size, best_fit(lengths, size)) for size in sorted(sizes)]
    return min(packed, key=lambda choice: len(choice[1]) * choice[0] * (_COSTLY_LENGTH + choice[0]))


def pack_sentences(
    sentences: Sequence[Sequence[int]], pad_token_id: int, row_length: int | None = None
) -> dict[str, torch.Tensor]:
    """
    Pack tokenized sentences into rows, ready for the model.

    Args:
        sentences: token ids of each sentence, special tokens included, none of them empty.
        pad_token_id: token of the free positions.
        row_length: tokens in a row. Default: the length of the least work.

    Returns:
        `input_ids` and `sequence_ids`, both `(rows, length)`, and `sequence_starts (s,)`. Sentence `i` of the list is
        sentence `i` of the output. The model derives the positions from these.

    Raises:
        ValueError: a sentence is empty or longer than `row_length`, or there is none.
    """
    lengths = [len(sentence) for sentence in sentences]
    if not lengths or min(lengths) == 0:
        raise ValueError("Nothing to pack: every sentence needs at least one token, special tokens included.")
    if row_length is None:
        row_length, rows = best_rows(lengths)
    elif max(lengths) > row_length:
        raise ValueError(f"A sentence of {max(lengths)} tokens does not fit into rows of {row_length}.")
    else:
        rows = best_fit(lengths, row_length)
    starts = [0] * len(lengths)
    for number, row in enumerate(rows):
        index = number * row_length
        for sentence in row:
            starts[sentence] = index
            index += lengths[sentence]
    sequence_starts = torch.tensor(starts)
    owner = torch.repeat_interleave(torch.tensor(lengths))
    before = torch.tensor([0, *accumulate(lengths[:-1])])  # tokens of the sentences before each
    indices = torch.arange(len(owner)) + (sequence_starts - before)[owner]
    input_ids = torch.full((len(rows) * row_length,), pad_token_id)
    input_ids[indices] = torch.tensor(list(chain.from_iterable(sentences)))
    sequence_ids = torch.full_like(input_ids, -1)
    sequence_ids[indices] = owner
    return {
        "input_ids": input_ids.view(-1, row_length),
        "sequence_ids": sequence_ids.view(-1, row_length),
        "sequence_starts": sequence_starts,
    }


# Arguments that sentence-transformers sends with one flat row of tokens. The others follow from the first.
FLAT_ROW_INPUTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


class PackedInputMixin(VarlenMixin):
    """A model that computes packed input. Comes before the class of the encoder."""

    def packed_inputs(
        self, inputs: dict[str, torch.Tensor | None], sequence_ids: torch.Tensor, sequence_starts: torch.Tensor
    ) -> dict[str, Any]:
        """Inputs of the encoder with restarting positions, and attention that stays inside each sentence."""
        if inputs["position_ids"] is None:
            positions = self.packed_positions(inputs["input_ids"], sequence_ids, sequence_starts)
            inputs = inputs | {"position_ids": positions}
        if not is_flash_attention_requested(self.config) and self.needs_mask(sequence_ids.device):
            return inputs | {"attention_mask": self.packed_mask(sequence_ids)}
        borders, length = cumulative_lengths(sequence_ids, sequence_starts), sequence_ids.shape[1]
        flat = {name: value.flatten(0, 1).unsqueeze(0) for name, value in inputs.items() if value is not None}
        if has_windows(self.config):
            # Without these, transformers would make a mask of the windows in the flat row.
            flat["attention_mask"] = {"full_attention": None, "sliding_attention": None}
        return flat | {
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": length,
            "max_length_k": length,
        }

    def packed_mask(self, sequence_ids: torch.Tensor) -> Any:
        """The mask with which tokens of packed input attend to those of their own sentence only."""
        return packed_attention_mask(self.config, self.dtype, sequence_ids)

    def packed_positions(
        self, input_ids: torch.Tensor | None, sequence_ids: torch.Tensor, sequence_starts: torch.Tensor
    ) -> torch.Tensor:
        """Default `position_ids (rows, length)` of packed input: counted from 0 in each sentence."""
        return restarting_positions(sequence_ids, sequence_starts)

    @property
    def max_tokens(self) -> int:
        """Tokens in the longest sentence that the encoder has positions for, special tokens included."""
        return self.config.max_position_embeddings


class PositionsAfterPaddingMixin:
    """
    An encoder whose padding tokens share one position, and whose sentences count from the position after it. Comes
    before [`PackedInputMixin`].
    """

    @property
    def padding_position(self) -> int:
        return self.config.pad_token_id

    @property
    def max_tokens(self) -> int:
        """Tokens in the longest sentence that the encoder has positions for, special tokens included."""
        return self.config.max_position_embeddings - self.padding_position - 1

    def packed_positions(
        self, input_ids: torch.Tensor | None, sequence_ids: torch.Tensor, sequence_starts: torch.Tensor
    ) -> torch.Tensor:
        """Default `position_ids (rows, length)`: counted from the position after the padding position."""
        padding = self.padding_position
        if input_ids is None:
            return super().packed_positions(input_ids, sequence_ids, sequence_starts) + padding + 1
        # transformers does not count a padding token inside a sentence either.
        counted = (input_ids != padding) & (sequence_ids >= 0)
        count = counted.flatten().cumsum(dim=0)
        before = count[sequence_starts] - counted.flatten()[sequence_starts].long()
        inside = count.view_as(sequence_ids) - before[sequence_ids.clamp(min=0)]
        return torch.where(counted, inside, 0) + padding
