"""HIRE (Yang and Zhao, arXiv 1911.01940): two GRUs that read every token of all hidden states."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from transformers import initialization as init

from .modeling_layerpool_pooler_base import (
    ActivationOptions,
    Pooler,
    PoolerOptions,
    Sentences,
    activate,
    activation_by_name,
    check_positive,
)


@dataclass(kw_only=True)
class HireOptions(PoolerOptions):
    """Options of `hire` alone."""

    pooler_gru_size: int | None = field(
        default=None,
        metadata={
            "help": "Hidden size of the GRUs in hire, per direction. A new pooler uses the hidden size of the "
            "encoder.",
            "at_most": 65_536,
        },
    )
    pooler_gru_layers: int = field(
        default=2, metadata={"help": "Number of layers in each GRU of hire.", "at_most": 100}
    )

    def check_options(self) -> None:
        super().check_options()
        check_positive("pooler_gru_size", self.pooler_gru_size)
        check_positive("pooler_gru_layers", self.pooler_gru_layers, or_none=False)


class HirePooler(Pooler):
    """
    `hire`: a representation from all layers complementary to the last one's (Yang and Zhao, arXiv 1911.01940).

    With `R` the highest state read and `H_i (t, h)` hidden state i, which the first GRU reads token by token:
    `u_i` = its final states of all depths and directions, `a_i = f(w . u_i + b)` with one activation `f` (ReLU),
    `A = sum_i softmax(a)_i H_i`, `M = [R ; A ; R + A ; R * A]`, and the embedding is the second GRU's output over `M`
    at the first token. Both GRUs are bidirectional, `pooler_gru_size` wide in each direction, `pooler_gru_layers`
    deep, and skip padding: a sentence's embedding does not depend on its batch. With another width in
    `projection_dim` a linear map `projection (d, 2 * pooler_gru_size)` follows.

    The authors published no code. The structure is as recalled from the paper; that `f` is a ReLU and that all states
    are read by default are the least certain.

    All states stay in memory until the last one is computed. On an accelerator each call synchronizes once, for the
    lengths of the sentences, unless nothing is padded or the call brings `sequence_lengths`, as in training.
    `torch.compile` leaves this pooler as it is, outside the graph of the encoder, and so refuses it with
    `fullgraph=True`.
    """

    options = (ActivationOptions, HireOptions)
    weighting = "per_text"
    reads_tokens = True
    reads_means = False
    citation = """@article{yang2019deepening,
  title = {Deepening Hidden Representations from Pre-trained Language Models},
  author = {Yang, Junjie and Zhao, Hai},
  journal = {arXiv preprint arXiv:1911.01940},
  year = {2019}
}"""

    def __init__(self, config):
        super().__init__(config)
        width, size, depth = config.hidden_size, self.pooled_width(config) // 2, config.pooler_gru_layers
        self.extractor = nn.GRU(width, size, depth, bidirectional=True)
        self.importance = nn.Linear(2 * depth * size, 1)
        self.activation = activation_by_name(config.pooler_activation or "relu")
        self.fusion = nn.GRU(4 * width, size, depth, bidirectional=True)
        self.projection = self.projection_of(config)

    @classmethod
    def pooled_width(cls, config) -> int:
        return 2 * (config.pooler_gru_size or config.hidden_size)

    def init_weights(self, module: nn.Module) -> None:
        if module is self.importance:
            # The paper's ReLU starts open: if it were shut for all states, no gradient would ever open it.
            init.ones_(module.bias)
        elif isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5  # as torch initializes it
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)

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
        weights = activate(self.activation, self.importance(extracted).squeeze(-1)).softmax(dim=-1)  # (b, n), by rank
        last = states[:, -1]
        complement = (weights.to(states.dtype)[order.ranks].unsqueeze(1) @ states).squeeze(1)  # (tokens, h)
        fused = torch.cat([last, complement, last + complement, last * complement], dim=-1)
        output, _ = _read_both_ways(self.fusion, fused, order.batch_sizes)
        first = output[:count]  # the first tokens, by rank
        return self.projection(first[order.rank_of_sentence]), weights[order.rank_of_sentence]


def _read_both_ways(gru: nn.GRU, data: torch.Tensor, batch_sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A bidirectional GRU over packed sequences: its output on every token, and its final states.

    In training on a CPU the GRU is computed here, step by step: torch slices each step's rows out of the packed ones,
    and the gradient of each slice is as large as all of them, so that its backward pass grows with the square of the
    length. A whole training step is 1.5 times faster this way.
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
            inputs = functional.linear(data, weight_ih, bias_ih).split(counts)
            positions = range(len(counts))[:: -1 if suffix else 1]
            state = inputs[0].new_zeros(counts[positions[0]], width)
            outputs, ended = [], []
            for position in positions:
                change = counts[position] - len(state)
                if change > 0:  # backwards, the shorter sentences begin later
                    state = functional.pad(state, (0, 0, 0, change))
                elif change < 0:  # forwards, they end earlier
                    state, end = state.split([counts[position], -change])
                    ended.append(end)
                gates, new = inputs[position].split([2 * width, width], dim=1)
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
