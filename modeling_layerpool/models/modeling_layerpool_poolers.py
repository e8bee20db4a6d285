"""
The poolers: from all hidden states of an encoder to one vector for each sentence.

Notation: `b` sentences, `t` tokens, `n` hidden states read, `h` width, `d` width of the embedding; `c_j` the first
token and `x_j` the token mean of hidden state `j`.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .modeling_layerpool_hire import HirePooler
from .modeling_layerpool_pooler_base import (
    ActivationOptions,
    Pooler,
    PoolerOptions,
    ResidualOptions,
    ResidualPooler,
    Sentences,
    activate,
    activation_by_name,
    check_choice,
    first_and_mean,
    is_int,
    normalize,
)


class FixedPooler(Pooler):
    """
    Base of the poolers without a learned choice of layers: the mean of `x_j` over fixed hidden states.

    "Last" is the highest state of `pooler_layers`. With another width in `projection_dim` a linear map
    `projection (d, h)` follows.
    """

    def __init__(self, config):
        super().__init__(config)
        self.projection = self.projection_of(config)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.stack(reduced, dim=1)  # (b, n, h)
        weights = pooled.new_full(pooled.shape[:2], 1 / pooled.shape[1])
        return self.projection(pooled.mean(dim=1)), weights


class MeanPooler(FixedPooler):
    """`mean`: the token mean of the last state."""

    @classmethod
    def states_read(cls, config) -> list[int]:
        return config.pooled_states[-1:]


class ClsPooler(MeanPooler):
    """`cls`: the first token of the last state."""

    reads_means = False

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return sentences.first(state)


class MeanFirstLastPooler(FixedPooler):
    """`mean_first_last`: the token means of the embedding output and of the last state, as in SimCSE."""

    @classmethod
    def states_read(cls, config) -> list[int]:
        return sorted({0, config.pooled_states[-1]})


class MeanLastTwoPooler(FixedPooler):
    """`mean_last_two`: the token means of the last state and of the one below it."""

    @classmethod
    def validate(cls, config) -> None:
        if config.pooled_states[-1] == 0:
            raise ValueError(
                "pooler_type='mean_last_two' needs a layer: pooler_layers names the embedding output only."
            )

    @classmethod
    def states_read(cls, config) -> list[int]:
        last = config.pooled_states[-1]
        return [last - 1, last]


class ConcatLayersPooler(FixedPooler):
    """
    `concat_layers`: `x_j` of all states read side by side, each normalized to mean 0 and variance 1.

    The embedding is `n * h` wide, or a linear map `projection (d, n * h)` to `projection_dim` follows.
    """

    @classmethod
    def pooled_width(cls, config) -> int:
        return len(config.pooled_states) * config.hidden_size

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = normalize(torch.stack(reduced, dim=1))  # (b, n, h)
        weights = pooled.new_full(pooled.shape[:2], 1 / pooled.shape[1])
        return self.projection(pooled.flatten(1)), weights


class WeightedLayersPooler(ResidualPooler):
    """
    `weighted_layers`: one learned scalar for each hidden state, `scale * sum_j softmax(layer_weights)_j x_j`.

    `layer_weights (n,)` start at 0 and `scale` at 1: a new pooler is the plain mean over the states. With another
    width in `projection_dim` a linear map `projection (d, h)` follows.

    With `pooler_residual` the embedding is `x_last` or `c_last` plus `sum_j layer_weights_j x_j`: any weights, without
    softmax and scale, which start at 0 and can be negative.
    """

    weighting = "shared"
    learning_rate = 1e-2

    def __init__(self, config):
        super().__init__(config)
        self.layer_weights = nn.Parameter(torch.zeros(len(self.states)))
        if self.residual is None:
            self.scale = nn.Parameter(torch.ones(1))
        self.projection = self.projection_of(config)

    def init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.zeros_(self.layer_weights)
            if self.residual is None:
                init.ones_(self.scale)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return first_and_mean(state, sentences) if self.residual == "cls" else sentences.mean(state)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        last = reduced[-1]
        if self.residual == "cls":
            last = last[:, 0]
            reduced = [both[:, 1] for both in reduced]
        pooled = torch.stack(reduced, dim=1)  # (b, n, h)
        if self.normalizes_inputs:
            pooled = normalize(pooled)
        if self.residual is None:
            weights = self.layer_weights.softmax(dim=0)
            embedding = self.projection(self.scale * torch.einsum("n,bnh->bh", weights, pooled))
        else:
            embedding = last + torch.einsum("n,bnh->bh", self.layer_weights, pooled)
            coefficients = torch.cat([self.layer_weights[:-1], self.layer_weights[-1:] + 1]).abs()
            weights = coefficients / coefficients.sum()
        return embedding, weights.expand(pooled.shape[0], -1)


@dataclass(kw_only=True)
class LayerAttentionOptions(PoolerOptions):
    """Options of `layer_attention` alone."""

    pooler_scaling: str = field(
        default="num_states",
        metadata={
            "help": "Divisor of the attention scores in layer_attention: num_states (the number of hidden states "
            "read, as in the paper) or sqrt_hidden_size (as in scaled dot-product attention)."
        },
    )
    pooler_output_activation: str | None = field(
        default=None,
        metadata={
            "help": "Output activation of layer_attention: any name in transformers.activations.ACT2FN. A new pooler "
            "uses tanh, as in the paper, or linear if pooler_residual is set."
        },
    )

    def check_options(self) -> None:
        super().check_options()
        check_choice("pooler_scaling", self.pooler_scaling, ("num_states", "sqrt_hidden_size"))
        if self.pooler_output_activation is not None:
            check_choice("pooler_output_activation", self.pooler_output_activation, tuple(ACT2FN))


class LayerAttentionPooler(ResidualPooler):
    """
    `layer_attention`: layer-wise attention pooling (Oh et al., COLING 2022, arXiv 2209.05972).

    With one activation `f` (RReLU): `Q_i = f(W_q c_i)`, `K_j = f(W_k x_j)`, `V_j = f(W_v x_j)`,
    `alpha_ij = softmax_j(Q_i . K_j / n)`, `u = 1/n sum_i sum_j alpha_ij V_j`, and the embedding
    `tanh(W_p [c_last ; u] + b_p)`. The maps `query`, `key` and `value` are `(h, h)` without bias, shared by all
    states; `projection` is `(d, 2h)`.

    Not in the paper: with `pooler_residual` the embedding is `x_last` or `c_last` plus `W_p [c_last ; u] + b_p`,
    without the tanh, and `W_p` and `b_p` start at zero; with `pooler_normalize_inputs` all `c_i` and `x_j` that are
    read are normalized to mean 0 and variance 1.
    """

    options = (ActivationOptions, LayerAttentionOptions, ResidualOptions)
    weighting = "per_text"
    citation = """@inproceedings{oh2022layerpool,
  title = {Don't Judge a Language Model by Its Last Layer: Contrastive Learning with Layer-Wise Attention Pooling},
  author = {Oh, Dongsuk and Kim, Yejin and Lee, Hodong and Huang, H. Howie and Lim, Heuiseok},
  booktitle = {Proceedings of the 29th International Conference on Computational Linguistics},
  pages = {4585--4592},
  year = {2022},
  url = {https://aclanthology.org/2022.coling-1.405}
}"""

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.projection = nn.Linear(2 * width, config.projection_dim or width)
        self.activation = activation_by_name(config.pooler_activation or "rrelu")
        self.output_activation = ACT2FN[config.pooler_output_activation or ("linear" if self.residual else "tanh")]
        self.divisor = len(self.states) if config.pooler_scaling == "num_states" else math.sqrt(width)

    def init_weights(self, module: nn.Module) -> None:
        if module is self.projection and self.residual is not None:
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return first_and_mean(state, sentences)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        first, mean = torch.stack(reduced, dim=2).unbind(dim=1)  # (b, n, h) each
        last = {None: None, "mean": mean[:, -1], "cls": first[:, -1]}[self.residual]
        if self.normalizes_inputs:
            first, mean = normalize(first), normalize(mean)
        query = activate(self.activation, self.query(first))
        key = activate(self.activation, self.key(mean))
        value = activate(self.activation, self.value(mean))
        attention = torch.softmax(query @ key.transpose(1, 2) / self.divisor, dim=-1)  # (b, n, n)
        # The mean over the queries commutes with the sum over the values: one weight for each state is enough.
        weights = attention.mean(dim=1)  # (b, n)
        mixed = (weights.unsqueeze(1) @ value).squeeze(1)
        embedding = self.output_activation(self.projection(torch.cat([first[:, -1], mixed.to(first.dtype)], dim=-1)))
        return embedding if last is None else last + embedding, weights


@dataclass(kw_only=True)
class AttentiveLayersOptions(PoolerOptions):
    """Options of `attentive_layers` alone."""

    pooler_queries: int = field(
        default=4,
        metadata={
            "help": "Number of learned queries in attentive_layers, 1 to 4. The pooled vector has the width of the "
            "encoder times this number.",
            "at_most": 4,
        },
    )
    pooler_layer_dropout: float = field(
        default=0.2,
        metadata={
            "help": "Probability that attentive_layers leaves a hidden state out in training, drawn for each text and "
            "state; at least 0 and below 1.",
            "below": 1,
        },
    )

    def check_options(self) -> None:
        super().check_options()
        if not (is_int(self.pooler_queries) and 1 <= self.pooler_queries <= 4):
            raise ValueError(f"pooler_queries={self.pooler_queries!r} must be an integer from 1 to 4.")
        rate = self.pooler_layer_dropout
        if not (isinstance(rate, float) or is_int(rate)) or not 0 <= rate < 1:
            raise ValueError(f"pooler_layer_dropout={rate!r} must be a number that is at least 0 and below 1.")


class AttentiveLayersPooler(Pooler):
    """
    `attentive_layers`: learned queries attend to the first token and the token mean of each state read.

    With the 2n vectors `c_j` and `x_j`, each normalized to mean 0 and variance 1, as `v_m`, a learned embedding `e_m`
    of the state and kind of each, and q learned queries `r_i`: `alpha_im = softmax_m(r_i . (v_m + e_m) / sqrt(h))`,
    and the pooled vector `[sum_m alpha_1m v_m ; ... ; sum_m alpha_qm v_m]` is `q * h` wide. With another width in
    `projection_dim` a linear map `projection (d, q * h)` follows. In training whole states are left out at random, by
    `pooler_layer_dropout`; a text that would lose all of them keeps them.

    The learned queries without key and value maps follow efficient probing (Psomas et al., ICLR 2026, arXiv
    2506.10178), which attends to the patches of a frozen image encoder's last state, and has a value map. The learned
    embedding of each state, and queries that attend to the states of all layers, are of Tang and Yang's Multi-Layers
    Trainable Pooling (arXiv 2409.02727), which has 768 queries, key and value maps and a feed-forward network.
    """

    options = (AttentiveLayersOptions,)
    weighting = "per_text"
    learning_rate = 2e-3
    citation = """@article{tang2024pooling,
  title = {Pooling and Attention: What are Effective Designs for {LLM}-Based Embedding Models?},
  author = {Tang, Yixuan and Yang, Yi},
  journal = {arXiv preprint arXiv:2409.02727},
  year = {2024}
}"""

    def __init__(self, config):
        super().__init__(config)
        n, width = len(self.states), config.hidden_size
        self.queries = nn.Parameter(torch.empty(config.pooler_queries, width))
        self.state_embeddings = nn.Parameter(torch.empty(n, 2, width))
        self.layer_dropout = nn.Dropout(config.pooler_layer_dropout)
        self.projection = self.projection_of(config)

    @classmethod
    def pooled_width(cls, config) -> int:
        return config.pooler_queries * config.hidden_size

    def init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.normal_(self.queries)
            init.normal_(self.state_embeddings, std=0.02)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return first_and_mean(state, sentences)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        values = normalize(torch.stack(reduced, dim=1))  # (b, n, 2, h)
        keys = values + self.state_embeddings
        scores = torch.einsum("qh,bnkh->bqnk", self.queries / math.sqrt(keys.shape[-1]), keys)
        if self.training:
            dropped = self.layer_dropout(torch.ones_like(scores[:, 0, :, :1])) == 0  # (b, n, 1)
            dropped &= ~dropped.all(dim=1, keepdim=True)  # a text that would lose every state keeps them
            scores = scores.masked_fill(dropped.unsqueeze(1), -math.inf)
        attention = scores.flatten(2).softmax(dim=-1)  # (b, q, 2n)
        pooled = attention @ values.flatten(1, 2)  # (b, q, h)
        weights = attention.mean(dim=1).unflatten(-1, (-1, 2)).sum(dim=-1)
        return self.projection(pooled.flatten(1)), weights


# A new pooler is a class and a line here.
POOLERS: dict[str, type[Pooler]] = {
    "layer_attention": LayerAttentionPooler,
    "hire": HirePooler,
    "weighted_layers": WeightedLayersPooler,
    "concat_layers": ConcatLayersPooler,
    "attentive_layers": AttentiveLayersPooler,
    "cls": ClsPooler,
    "mean": MeanPooler,
    "mean_first_last": MeanFirstLastPooler,
    "mean_last_two": MeanLastTwoPooler,
}


def build_pooler(config) -> Pooler:
    """The pooler that `config.pooler_type` names. Raises a `ValueError` if the configuration contradicts itself."""
    config.validate_architecture()  # fields may have been set after the configuration was built
    return POOLERS[config.pooler_type](config)
