"""
Sentences laid side by side in rows of one length, so that hardly any padding is computed.

Notation: `rows` and `length` of the packed block, `s` sentences, `h` width. `sequence_ids (rows, length)` names the
sentence of every token, -1 for padding; `sequence_starts (s,)` is the flat place of each sentence's first token.
Positions restart with each sentence and attention stays inside it.
"""

from collections.abc import Sequence

import torch


class PaddedSentences:
    """One sentence a row: `attention_mask (b, t)`, 1 for tokens and 0 for padding, or None where nothing is padded."""

    def __init__(self, attention_mask: torch.Tensor | None):
        self.attention_mask = attention_mask

    def first(self, state: torch.Tensor) -> torch.Tensor:
        """The first token of every sentence: `(b, t, h) -> (b, h)`, a copy that does not keep `state` alive."""
        return state[:, 0].clone()

    def mean(self, state: torch.Tensor) -> torch.Tensor:
        """The mean over each sentence's tokens, summed in at least float32: `(b, t, h) -> (b, h)`, 0 for no tokens."""
        wide = state.to(torch.promote_types(state.dtype, torch.float32))
        if self.attention_mask is None:
            return wide.mean(dim=1).to(state.dtype)
        mask = self.attention_mask.to(wide.dtype).unsqueeze(1)  # (b, 1, t)
        total = torch.bmm(mask, wide).squeeze(1)
        return (total / mask.sum(dim=-1).clamp(min=1)).to(state.dtype)


class PackedSentences:
    """Several sentences a row, named by `sequence_ids (rows, length)` and `sequence_starts (s,)`."""

    def __init__(self, sequence_ids: torch.Tensor, sequence_starts: torch.Tensor):
        self.sequence_starts = sequence_starts
        count = sequence_starts.shape[0]
        # Padding is summed into one sentence too many, which is dropped.
        self.owner = torch.where(sequence_ids < 0, count, sequence_ids).flatten()
        ones = torch.ones_like(self.owner, dtype=torch.float32)
        self.tokens = ones.new_zeros(count + 1).scatter_add(0, self.owner, ones)[:count].unsqueeze(-1)

    def first(self, state: torch.Tensor) -> torch.Tensor:
        """The first token of every sentence: `(rows, length, h) -> (s, h)`."""
        return state.flatten(0, 1).index_select(0, self.sequence_starts)

    def mean(self, state: torch.Tensor) -> torch.Tensor:
        """The mean over each sentence's tokens, summed in at least float32: `(rows, length, h) -> (s, h)`."""
        flat = state.flatten(0, 1)
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
        # scatter_add rather than index_add: the same sum, and several times faster backwards on a CPU.
        owner = self.owner.unsqueeze(-1).expand_as(wide)
        total = wide.new_zeros(self.tokens.shape[0] + 1, wide.shape[-1]).scatter_add(0, owner, wide)
        return (total[:-1] / self.tokens.clamp(min=1)).to(state.dtype)


def find_sequence_starts(sequence_ids: torch.Tensor) -> torch.Tensor:
    """`sequence_starts (s,)` from `sequence_ids (rows, length)`: costs one synchronisation with the device."""
    before = torch.nn.functional.pad(sequence_ids[:, :-1], (1, 0), value=-1)
    starts = ((sequence_ids >= 0) & (sequence_ids != before)).flatten().nonzero().squeeze(-1)
    return starts[sequence_ids.flatten()[starts].argsort()]


def restarting_positions(sequence_ids: torch.Tensor, sequence_starts: torch.Tensor) -> torch.Tensor:
    """`position_ids (rows, length)` that count from 0 in every sentence, and are 0 on padding."""
    place = torch.arange(sequence_ids.numel(), device=sequence_ids.device).view_as(sequence_ids)
    start = sequence_starts[sequence_ids.clamp(min=0)]
    return torch.where(sequence_ids < 0, 0, place - start)


def sequences_from_lengths(cu_seq_lens: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`sequence_ids (1, tokens)` and `sequence_starts (s,)` of one flat row cut at `cu_seq_lens (s + 1,)`."""
    ends = cu_seq_lens[1:].contiguous().long()
    place = torch.arange(tokens, device=cu_seq_lens.device)
    sequence_ids = torch.bucketize(place, ends, right=True)
    sequence_ids = torch.where(sequence_ids < ends.shape[0], sequence_ids, -1)
    return sequence_ids.unsqueeze(0), cu_seq_lens[:-1].long()


def cumulative_lengths(sequence_ids: torch.Tensor, sequence_starts: torch.Tensor) -> torch.Tensor:
    """
    Borders for variable-length attention over the flattened rows, `(s + rows + 1,)` in int32.

    The padding behind each row becomes a sequence of its own (of length 0 in a full row), so that the number of
    borders is a matter of shapes and the device is never asked.
    """
    rows, length = sequence_ids.shape
    row_starts = torch.arange(rows, device=sequence_ids.device) * length
    padding_starts = row_starts + (sequence_ids >= 0).sum(dim=1)
    borders = torch.cat([sequence_starts, padding_starts]).sort().values
    return torch.nn.functional.pad(borders, (0, 1), value=rows * length).int()


def first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """
    Distribute sentences to rows, longest first, each to the first row with room for it.

    Args:
        lengths: tokens of each sentence, none above `row_length`.
        row_length: tokens that a row holds.

    Returns:
        For each row the numbers of its sentences.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    first_open = 0  # rows before this one have no room for even the shortest sentence
    shortest = min(lengths, default=0)
    for sentence in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        need = lengths[sentence]
        for row in range(first_open, len(rows)):
            if room[row] >= need:
                rows[row].append(sentence)
                room[row] -= need
                break
        else:
            rows.append([sentence])
            room.append(row_length - need)
        while first_open < len(rows) and room[first_open] < shortest:
            first_open += 1
    return rows


def best_rows(lengths: Sequence[int], candidates: Sequence[int] = (128, 256)) -> tuple[int, list[list[int]]]:
    """`(row_length, rows)` with the fewest tokens computed, of the longest sentence's length and `candidates`."""
    longest = -(-max(lengths) // 8) * 8
    packed = [(size, first_fit(lengths, size)) for size in (longest, *(c for c in candidates if c > longest))]
    return min(packed, key=lambda choice: choice[0] * len(choice[1]))


def pack_sentences(
    sentences: Sequence[Sequence[int]], pad_token_id: int, row_length: int | None = None
) -> dict[str, torch.Tensor]:
    """
    Pack tokenised sentences into rows, ready for the model.

    Args:
        sentences: token ids of each sentence, special tokens included, none of them empty.
        pad_token_id: what the free places are filled with.
        row_length: tokens in a row; by default the length that computes the fewest tokens.

    Returns:
        `input_ids`, `position_ids` and `sequence_ids`, each `(rows, length)`, and `sequence_starts (s,)`. Sentence `i`
        of the list is sentence `i` of the output.

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
        rows = first_fit(lengths, row_length)
    input_ids, position_ids, sequence_ids, starts = [], [], [], [0] * len(lengths)
    for row in rows:
        for sentence in row:
            starts[sentence] = len(input_ids)
            input_ids.extend(sentences[sentence])
            position_ids.extend(range(lengths[sentence]))
            sequence_ids.extend([sentence] * lengths[sentence])
        padding = -len(input_ids) % row_length
        input_ids.extend([pad_token_id] * padding)
        position_ids.extend([0] * padding)
        sequence_ids.extend([-1] * padding)
    return {
        "input_ids": torch.tensor(input_ids).view(-1, row_length),
        "position_ids": torch.tensor(position_ids).view(-1, row_length),
        "sequence_ids": torch.tensor(sequence_ids).view(-1, row_length),
        "sequence_starts": torch.tensor(starts),
    }
