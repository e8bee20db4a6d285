"""
From all hidden states of an encoder to one vector for each sentence.

Notation: `b` sentences, `t` tokens, `n` hidden states read, `h` width, `d` width of the embedding. A pooler works in
two steps, so that no `(b, t, h)` state outlives its layer: `reduce` takes from a state what the pooler needs of it as
the state passes, `forward` makes the embedding of what was taken.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from .modeling_layerpool_packing import PackedSentences, PaddedSentences


Sentences = PaddedSentences | PackedSentences


class FixedPooler(nn.Module):
    """
    Poolers without a learned choice of layers: the mean of token means (or [CLS] states) over fixed hidden states.

    `cls` reads the first token of the last state; `mean`, `mean_last_two` and `mean_first_last` (as SimCSE has it, the
    first being the embedding output) read token means. "Last" is the highest state of `pooler_layers`. With
    another width in `projection_dim` a linear map `projection (d, h)` follows.
    """

    def __init__(self, config):
        super().__init__()
        last = config.pooled_states[-1]
        self.states = {
            "cls": [last],
            "mean": [last],
            "mean_first_last": sorted({0, last}),
            "mean_last_two": [last - 1, last],
        }[config.pooler_type]
        self.reads_first_token = config.pooler_type == "cls"
        if config.projection_dim not in (None, config.hidden_size):
            self.projection = nn.Linear(config.hidden_size, config.projection_dim)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return sentences.first(state) if self.reads_first_token else sentences.mean(state)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.stack(reduced, dim=1)  # (b, n, h)
        weights = pooled.new_full(pooled.shape[:2], 1 / pooled.shape[1])
        return _project(self, pooled.mean(dim=1)), weights


class WeightedLayersPooler(nn.Module):
    """
    One learned scalar for each hidden state: `scale * sum_j softmax(layer_weights)_j x_j` over token means `x_j`.

    `layer_weights (n,)` start at 0 and `scale` at 1, so that the start is the plain mean over the states. With
    another width in `projection_dim` a linear map `projection (d, h)` follows.
    """

    def __init__(self, config):
        super().__init__()
        self.states = config.pooled_states
        self.layer_weights = nn.Parameter(torch.zeros(len(self.states)))
        self.scale = nn.Parameter(torch.ones(1))
        if config.projection_dim not in (None, config.hidden_size):
            self.projection = nn.Linear(config.hidden_size, config.projection_dim)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return sentences.mean(state)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.stack(reduced, dim=1)  # (b, n, h)
        weights = self.layer_weights.softmax(dim=0)
        mixed = self.scale * torch.einsum("n,bnh->bh", weights, pooled)
        return _project(self, mixed), weights.expand(pooled.shape[0], -1)


class LayerAttentionPooler(nn.Module):
    """
    Layer-wise attention pooling (Oh et al., COLING 2022, arXiv 2209.05972).

    With `c_i` the [CLS] state and `a_j` the token mean of hidden states i and j, and one activation `f` (RReLU):
    `Q_i = f(W_q c_i)`, `K_j = f(W_k a_j)`, `V_j = f(W_v a_j)`, `alpha_ij = softmax_j(Q_i . K_j / n)`,
    `u = 1/n sum_i sum_j alpha_ij V_j`, and the embedding `tanh(W_p [c_last ; u] + b_p)`. The maps `query`, `key` and
    `value` are `(h, h)` without bias, shared by all states; `projection` is `(d, 2h)`.
    """

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.states = config.pooled_states
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.projection = nn.Linear(2 * width, config.projection_dim or width)
        # torch's defaults are the paper's slopes: uniform in (1/8, 1/3) in training, their mean 11/48 otherwise.
        self.activation = nn.RReLU() if config.pooler_activation == "rrelu" else ACT2FN[config.pooler_activation]
        self.divisor = len(self.states) if config.pooler_scaling == "num_states" else math.sqrt(width)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return torch.stack([sentences.first(state), sentences.mean(state)], dim=1)  # (b, 2, h)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        first, mean = torch.stack(reduced, dim=2).unbind(dim=1)  # (b, n, h) each
        query, key, value = self._activate(self.query(first), self.key(mean), self.value(mean))
        attention = torch.softmax(query @ key.transpose(1, 2) / self.divisor, dim=-1)  # (b, n, n)
        # The mean over the queries commutes with the sum over the values: one weight for each state is enough.
        weights = attention.mean(dim=1)  # (b, n)
        mixed = (weights.unsqueeze(1) @ value).squeeze(1)
        embedding = torch.tanh(self.projection(torch.cat([first[:, -1], mixed.to(first.dtype)], dim=-1)))
        return embedding, weights

    def _activate(self, *maps: torch.Tensor) -> list[torch.Tensor]:
        # At least float32, as torch has no float16 RReLU on a CPU.
        return [self.activation(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype) for x in maps]


def build_pooler(config) -> nn.Module:
    """The pooler that `config.pooler_type` names. Raises a `ValueError` if the configuration contradicts itself."""
    config.validate_architecture()  # fields may have been set after the configuration was built
    learned = {"layer_attention": LayerAttentionPooler, "weighted_layers": WeightedLayersPooler}
    return learned.get(config.pooler_type, FixedPooler)(config)


def _project(pooler: nn.Module, embedding: torch.Tensor) -> torch.Tensor:
    return pooler.projection(embedding) if hasattr(pooler, "projection") else embedding
