"""
From all hidden states of an encoder to one vector for each sentence.

Notation: `b` sentences, `t` tokens, `n` hidden states read, `h` width, `d` width of the embedding. A pooler works in
two steps, so that no `(b, t, h)` state outlives its layer without need: `reduce` takes from a state what the pooler
needs of it as the state passes, `forward` makes the embedding of what was taken.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
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
        self.projection = _projection(config)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return sentences.first(state) if self.reads_first_token else sentences.mean(state)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = torch.stack(reduced, dim=1)  # (b, n, h)
        weights = pooled.new_full(pooled.shape[:2], 1 / pooled.shape[1])
        return self.projection(pooled.mean(dim=1)), weights


class WeightedLayersPooler(nn.Module):
    """
    One learned scalar for each hidden state: `scale * sum_j softmax(layer_weights)_j x_j` over token means `x_j`.

    `layer_weights (n,)` start at 0 and `scale` at 1, so that the start is the plain mean over the states. With
    another width in `projection_dim` a linear map `projection (d, h)` follows.

    With `pooler_residual` the embedding is the last state's token mean or [CLS] plus `sum_j layer_weights_j x_j`: any
    weights, without softmax and scale, which start at 0 and can be negative.
    """

    def __init__(self, config):
        super().__init__()
        self.states = config.pooled_states
        self.residual, self.normalizes_inputs = config.pooler_residual, config.pooler_normalize_inputs
        self.layer_weights = nn.Parameter(torch.zeros(len(self.states)))
        if self.residual is None:
            self.scale = nn.Parameter(torch.ones(1))
        self.projection = _projection(config)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        mean = sentences.mean(state)
        return torch.stack([sentences.first(state), mean], dim=1) if self.residual == "cls" else mean

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        last = reduced[-1]
        if self.residual == "cls":
            last = last[:, 0]
            reduced = [both[:, 1] for both in reduced]
        pooled = torch.stack(reduced, dim=1)  # (b, n, h)
        if self.normalizes_inputs:
            pooled = _normalize(pooled)
        if self.residual is None:
            weights = self.layer_weights.softmax(dim=0)
            embedding = self.projection(self.scale * torch.einsum("n,bnh->bh", weights, pooled))
        else:
            embedding = last + torch.einsum("n,bnh->bh", self.layer_weights, pooled)
            coefficients = torch.cat([self.layer_weights[:-1], self.layer_weights[-1:] + 1]).abs()
            weights = coefficients / coefficients.sum()
        return embedding, weights.expand(pooled.shape[0], -1)


class LayerAttentionPooler(nn.Module):
    """
    Layer-wise attention pooling (Oh et al., COLING 2022, arXiv 2209.05972).

    With `c_i` the [CLS] state and `a_j` the token mean of hidden states i and j, and one activation `f` (RReLU):
    `Q_i = f(W_q c_i)`, `K_j = f(W_k a_j)`, `V_j = f(W_v a_j)`, `alpha_ij = softmax_j(Q_i . K_j / n)`,
    `u = 1/n sum_i sum_j alpha_ij V_j`, and the embedding `tanh(W_p [c_last ; u] + b_p)`. The maps `query`, `key` and
    `value` are `(h, h)` without bias, shared by all states; `projection` is `(d, 2h)`.

    Not the paper's: with `pooler_residual` the embedding is `a_last` or `c_last` plus `W_p [c_last ; u] + b_p`,
    without the tanh, and `W_p` and `b_p` start at zero; with `pooler_normalize_inputs` all `c_i` and `a_j` that are
    read are brought to mean 0 and variance 1.
    """

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.states = config.pooled_states
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.projection = nn.Linear(2 * width, config.projection_dim or width)
        self.activation = _activation(config.pooler_activation or "rrelu")
        self.residual, self.normalizes_inputs = config.pooler_residual, config.pooler_normalize_inputs
        self.output_activation = ACT2FN[config.pooler_output_activation or ("linear" if self.residual else "tanh")]
        self.divisor = len(self.states) if config.pooler_scaling == "num_states" else math.sqrt(width)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
        return torch.stack([sentences.first(state), sentences.mean(state)], dim=1)  # (b, 2, h)

    def forward(self, reduced: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        first, mean = torch.stack(reduced, dim=2).unbind(dim=1)  # (b, n, h) each
        last = {None: None, "mean": mean[:, -1], "cls": first[:, -1]}[self.residual]
        if self.normalizes_inputs:
            first, mean = _normalize(first), _normalize(mean)
        query, key, value = self._activate(self.query(first), self.key(mean), self.value(mean))
        attention = torch.softmax(query @ key.transpose(1, 2) / self.divisor, dim=-1)  # (b, n, n)
        # The mean over the queries commutes with the sum over the values: one weight for each state is enough.
        weights = attention.mean(dim=1)  # (b, n)
        mixed = (weights.unsqueeze(1) @ value).squeeze(1)
        embedding = self.output_activation(self.projection(torch.cat([first[:, -1], mixed.to(first.dtype)], dim=-1)))
        return embedding if last is None else last + embedding, weights

    def _activate(self, *maps: torch.Tensor) -> list[torch.Tensor]:
        return [_activate(self.activation, x) for x in maps]


class HirePooler(nn.Module):
    """
    HIRE, a representation from all layers complementary to the last one's (Yang and Zhao, arXiv 1911.01940).

    With `R` the highest state read and `H_i (t, h)` hidden state i, which the first GRU reads token by token:
    `u_i` = its final states of all depths and directions, `a_i = f(w . u_i + b)` with one activation `f` (ReLU),
    `A = sum_i softmax(a)_i H_i`, `M = [R ; A ; R + A ; R * A]`, and the embedding is the second GRU's output over `M`
    at the first token. Both GRUs are bidirectional, `pooler_gru_size` wide in each direction, `pooler_gru_layers`
    deep, and skip padding: a sentence's embedding does not depend on its batch. With another width in
    `projection_dim` a linear map `projection (d, 2 * pooler_gru_size)` follows.

    No code of the paper's was published. The structure is as recalled from it; that `f` is a ReLU and that all states
    are read by default are the least certain.

    All states live until the last is there. On an accelerator each call synchronises once, for the lengths of the
    sentences, unless nothing is padded. `torch.compile` leaves this pooler as it is, outside the graph of the encoder,
    and so refuses it with `fullgraph=True`.
    """

    def __init__(self, config):
        super().__init__()
        width, size, depth = config.hidden_size, config.pooler_gru_size or config.hidden_size, config.pooler_gru_layers
        self.states = config.pooled_states
        self.extractor = nn.GRU(width, size, depth, bidirectional=True)
        self.importance = nn.Linear(2 * depth * size, 1)
        self.activation = _activation(config.pooler_activation or "relu")
        self.fusion = nn.GRU(4 * width, size, depth, bidirectional=True)
        self.projection = _projection(config)

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> tuple[torch.Tensor, Sentences]:
        return state, sentences  # every token is needed until all states are there

    @torch.compiler.disable
    def forward(self, reduced: list[tuple[torch.Tensor, Sentences]]) -> tuple[torch.Tensor, torch.Tensor]:
        order = reduced[0][1].reading_order(reduced[0][0])
        count, n = order.rank_of_sentence.shape[0], len(reduced)
        states = torch.stack([order.read(state) for state, _ in reduced], dim=1)  # (tokens, n, h)
        # A sentence's n states are n sequences side by side: one call of the shared GRU reads them all.
        _, final = _read_both_ways(self.extractor, states.flatten(0, 1), order.batch_sizes * n)
        extracted = final.permute(1, 0, 2).reshape(count, n, -1)  # (b, n, 2 * depth * size), by rank
        weights = _activate(self.activation, self.importance(extracted).squeeze(-1)).softmax(dim=-1)  # (b, n), by rank
        last = states[:, -1]
        complement = (weights.to(states.dtype)[order.ranks].unsqueeze(1) @ states).squeeze(1)  # (tokens, h)
        fused = torch.cat([last, complement, last + complement, last * complement], dim=-1)
        output, _ = _read_both_ways(self.fusion, fused, order.batch_sizes)
        first = output[:count]  # the first tokens, by rank
        return self.projection(first[order.rank_of_sentence]), weights[order.rank_of_sentence]


def _read_both_ways(gru: nn.GRU, data: torch.Tensor, batch_sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A bidirectional GRU over packed sequences: its output on every token, and its final states.

    Its own formula, step by step, in training on a CPU: there torch takes each step's rows out of the packed ones by a
    slice, whose gradient is as large as all of them, so that its backward pass grows with the square of the length.
    """
    if data.device.type != "cpu" or not torch.is_grad_enabled():
        output, final = gru(PackedSequence(data, batch_sizes))
        return output.data, final
    counts, width, finals = batch_sizes.tolist(), gru.hidden_size, []
    for layer in range(gru.num_layers):
        directions = []
        for suffix in ("", "_reverse"):
            weights = (f"{kind}_l{layer}{suffix}" for kind in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
            weight_ih, bias_ih, weight_hh, bias_hh = (getattr(gru, name) for name in weights)
            steps = functional.linear(data, weight_ih, bias_ih).split(counts)
            places = range(len(counts))[:: -1 if suffix else 1]
            state = steps[0].new_zeros(counts[places[0]], width)
            outputs, ended = [], []
            for place in places:
                change = counts[place] - len(state)
                if change > 0:  # backwards, the shorter sentences begin later
                    state = functional.pad(state, (0, 0, 0, change))
                elif change < 0:  # forwards, they end earlier
                    state, end = state.split([counts[place], -change])
                    ended.append(end)
                gates, new = steps[place].split([2 * width, width], dim=1)
                gates_of_state, new_of_state = functional.linear(state, weight_hh, bias_hh).split(
                    [2 * width, width], dim=1
                )
                reset, update = (gates + gates_of_state).sigmoid().chunk(2, dim=1)
                state = torch.lerp((new + reset * new_of_state).tanh(), state, update)
                outputs.append(state)
            finals.append(torch.cat([state, *reversed(ended)]))
            directions.append(torch.cat(outputs[:: -1 if suffix else 1]))
        data = torch.cat(directions, dim=-1)
    return data, torch.stack(finals)


def build_pooler(config) -> nn.Module:
    """The pooler that `config.pooler_type` names. Raises a `ValueError` if the configuration contradicts itself."""
    config.validate_architecture()  # fields may have been set after the configuration was built
    learned = {"layer_attention": LayerAttentionPooler, "weighted_layers": WeightedLayersPooler, "hire": HirePooler}
    return learned.get(config.pooler_type, FixedPooler)(config)


def _projection(config) -> nn.Module:
    """A linear map to `projection_dim`, or none where the pooled vector has that width already."""
    if config.projection_dim in (None, config.pooled_width):
        return nn.Identity()
    return nn.Linear(config.pooled_width, config.projection_dim)


def _normalize(pooled: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(pooled, pooled.shape[-1:])


class _RReLU(nn.RReLU):
    """
    torch's, whose defaults are those of Oh et al.: slopes uniform in (1/8, 1/3) in training, their mean 11/48
    otherwise, by an operator that exporters know.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.training else functional.leaky_relu(x, (self.lower + self.upper) / 2)


def _activation(name: str) -> nn.Module:
    return _RReLU() if name == "rrelu" else ACT2FN[name]


def _activate(activation: nn.Module, x: torch.Tensor) -> torch.Tensor:
    # At least float32, as torch has no float16 RReLU on a CPU.
    return activation(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)
