"""
TACO (Fu et al., ACL 2022, arXiv 2204.04163): masked language modeling plus token-level contrast, for any encoder.

The global semantics of a token, `g = H_l - H_0`, are what its context adds to it. The contrast makes them similar
among neighbors in a sequence and different from those of other sequences. Notation: `rows` and `length` of a batch, `s
= rows * length` its tokens in flattened order, `k` negatives, `h` width. A sequence is a document or a sentence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...models.modeling_layerpool_packing import at_least_float32
from ..losses import token_contrast
from .arguments import TokenContrastArguments


CITATION = """@inproceedings{fu2022contextual,
  title = {Contextual Representation Learning beyond Masked Language Modeling},
  author = {Fu, Zhiyi and Zhou, Wangchunshu and Xu, Jingjing and Zhou, Hao and Li, Lei},
  booktitle = {ACL},
  year = {2022}
}"""


# --- positives and negatives ---


@dataclass
class _ContentTokens:
    """
    Where the content tokens of each sequence are, as tensors whose shapes do not depend on the data, so that the
    device is never synchronized.
    """

    sequence: torch.Tensor  # (s,), the sequence of each token, numbered from 0; padding counts to any of them
    rank: torch.Tensor  # (s,), the number of content tokens before each token
    first: torch.Tensor  # (s,), the rank of the first content token of each token's sequence
    count: torch.Tensor  # (s,), the number of content tokens of each token's sequence
    index: torch.Tensor  # (s,), the index of the content token of each rank; 0 after the last rank
    total: torch.Tensor  # scalar, the number of content tokens of the batch

    @classmethod
    def of(cls, sequence_ids: torch.Tensor, content: torch.Tensor) -> "_ContentTokens":
        starts = torch.ones_like(content)
        starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
        sequence = starts.flatten().cumsum(dim=0) - 1
        flat = content.flatten()
        is_content = flat.long()
        rank = is_content.cumsum(dim=0) - is_content
        counts = torch.zeros_like(rank).scatter_add_(0, sequence, is_content)
        before = counts.cumsum(dim=0) - counts
        tokens = torch.arange(len(rank), device=rank.device)
        # A token without content is written to one index after the last rank, which is cut off.
        index = rank.new_zeros(len(rank) + 1).scatter_(0, torch.where(flat, rank, len(rank)), tokens)[:-1]
        return cls(sequence, rank, before[sequence], counts[sequence], index, is_content.sum())


def sample_token_pairs(
    sequence_ids: torch.Tensor,
    content: torch.Tensor,
    anchors: torch.Tensor | None = None,
    *,
    window: int = 5,
    negatives: int = 50,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Draw a positive and negatives for every token of a batch, as TACO does, on the device of the batch.

    The positive is the token at an offset drawn uniformly from `{-(window // 2), .., -1, 1, .., window // 2}`. If that
    is outside the sequence, or no content, it is a uniformly drawn other content token of the sequence. The negatives
    are drawn uniformly, with replacement, from the content tokens of the other sequences of the batch, including those
    in the same row. A token is no anchor if it is no content, if it is the only content of its sequence, or if no
    other sequence has content: a batch of one sequence has no anchors.

    Nothing waits for the device, and the same generator draws the same pairs. The number of draws depends on shapes
    alone.

    Args:
        sequence_ids (`torch.LongTensor` of shape `(rows, length)`):
            The sequence that each token belongs to, -1 for padding. Each one lies in one piece, within a row.
        content (`torch.BoolTensor` of shape `(rows, length)`):
            The tokens that are neither special nor padding.
        anchors (`torch.BoolTensor` of shape `(rows, length)`, *optional*):
            The only tokens that may be anchors. Positives and negatives are drawn from all content.
        window (`int`, *optional*, defaults to 5): width of the window that positives are drawn from; at least 2.
        negatives (`int`, *optional*, defaults to 50): number of negatives of each anchor.
        generator (`torch.Generator`, *optional*): a generator on the device of the batch; defaults to torch's own.

    Returns:
        `positive_index (s,)`, -1 for tokens that are no anchor, and `negative_index (s, k)`: indices into the
        flattened batch, as [`~modeling_layerpool.training.losses.token_contrast`] takes them.
    """
    content = content & (sequence_ids >= 0)
    known = _ContentTokens.of(sequence_ids, content)
    length, size = content.shape[1], content.numel()
    flat = content.flatten()
    tokens = torch.arange(size, device=flat.device)

    def draw(below: torch.Tensor | int, *shape: int) -> torch.Tensor:
        # The range is so much larger than `below` that the remainder is uniform to 1 in 2^30 or better.
        numbers = torch.randint(2**62, shape, device=flat.device, generator=generator)
        return numbers % (below.clamp(min=1) if isinstance(below, torch.Tensor) else below)

    half = window // 2
    offset = draw(2 * half, size) - half
    offset += offset >= 0  # 0 is left out
    near = tokens + offset
    in_row = tokens % length + offset
    is_inside = (in_row >= 0) & (in_row < length)
    near = near.clamp(0, size - 1)
    is_inside &= (known.sequence[near] == known.sequence) & flat[near]
    other = known.first + draw(known.count - 1, size)
    other += other >= known.rank  # the token itself is left out
    positive = torch.where(is_inside, near, known.index[other.clamp(max=size - 1)])

    foreign = known.total - known.count
    drawn = draw(foreign.unsqueeze(1), size, negatives)
    drawn += (drawn >= known.first.unsqueeze(1)) * known.count.unsqueeze(1)  # its own sequence is left out
    negative = known.index[drawn.clamp(max=size - 1)]

    is_anchor = flat & (known.count > 1) & (foreign > 0)
    if anchors is not None:
        is_anchor &= anchors.flatten()
    return torch.where(is_anchor, positive, -1), negative


# --- the loss ---


def contrast_tokens(
    states: torch.Tensor,
    labels: torch.Tensor,
    sequence_ids: torch.Tensor,
    content: torch.Tensor,
    args: TokenContrastArguments,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The mean token contrast over the anchors of a batch, of states `(rows, length, h)`, and the number of anchors.
    """
    is_predicted = labels != -100
    anchors = {"all": None, "masked": is_predicted, "unmasked": ~is_predicted}[args.token_anchors]
    positive_index, negative_index = sample_token_pairs(
        sequence_ids,
        content,
        anchors,
        window=args.token_window,
        negatives=args.token_negatives,
        generator=generator,
    )
    flat = states.flatten(0, 1)
    loss = token_contrast(flat, positive_index, negative_index, temperature=args.token_temperature)
    return loss, (positive_index >= 0).sum()


# --- the analysis of the paper ---


def semantic_similarity(
    states: torch.Tensor, sequence_ids: torch.Tensor, content: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The similarity of the global semantics of tokens, with which section 3 of the paper motivates TACO.

    Args:
        states (`torch.Tensor` of shape `(rows, length, h)`): `g = H_l - H_0` of every token.
        sequence_ids (`torch.LongTensor` of shape `(rows, length)`): the sequence of each token, -1 for padding.
        content (`torch.BoolTensor` of shape `(rows, length)`): the tokens that count.

    Returns:
        Two scalars: the mean cosine over all pairs of different tokens of one sequence, and over all pairs of tokens
        of different sequences. Exact, in linear time. NaN if there is no such pair.
    """
    sums, pairs = similarity_sums(states, sequence_ids, content).view(2, 2).unbind(dim=1)
    within, between = torch.where(pairs > 0, sums / pairs, torch.nan)
    return within, between


def similarity_sums(states: torch.Tensor, sequence_ids: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """Sum of cosines and number of pairs within sequences, and the same between them, `(4,)`."""
    content = content & (sequence_ids >= 0)
    known = _ContentTokens.of(sequence_ids, content)
    units = F.normalize(at_least_float32(states).flatten(0, 1), dim=-1)
    # The cosines of all pairs sum up to the square of the sum of the unit vectors.
    units = units * content.flatten().unsqueeze(1)
    sums = torch.zeros_like(units).index_add_(0, known.sequence, units)
    sums = sums.to(widest_float(sums.device))  # large numbers are subtracted from each other
    of_sequences = sums.square().sum()
    everything = sums.sum(dim=0).square().sum()
    own = units.to(sums.dtype).square().sum()
    pairs_of_sequences = (known.count * content.flatten()).sum()
    within = of_sequences - own, pairs_of_sequences - known.total
    between = everything - of_sequences, known.total.square() - pairs_of_sequences
    return torch.stack([number.to(sums.dtype) for number in (*within, *between)])


def widest_float(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
