"""What the loss of a contrastive run is of: the embeddings, and intermediate hidden states if they are negatives."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel

from ...common.errors import InputError


class Representation:
    """
    Embeds sentences. With `layer_negatives`, it also takes what the pooler reads of these hidden states from the same
    forward pass.

    Args:
        model: its pooler reads these states.
        layer_negatives: numbers of hidden states, counted from 0, below the highest one that is read.

    Raises:
        InputError: a state is not read below the highest one, or its vector is not of the width of the embeddings.
    """

    def __init__(self, model: PreTrainedModel, layer_negatives: Sequence[int] | None = None):
        self.width, states = model.embedding_dim, list(layer_negatives or ())
        pooler_type, read_states = model.config.pooler_type, model.pooler.states
        below = read_states[:-1]
        if not set(states) <= set(below) or len(set(states)) < len(states):
            read = ", ".join(map(str, below)) or "none"
            raise InputError(
                f"layer_negatives {' '.join(map(str, states))}: must be different hidden states that "
                f"pooler_type={pooler_type} reads below the highest one ({read})"
            )
        if states and (model.pooler.reads_tokens or self.width != model.config.hidden_size):
            raise InputError(
                f"layer_negatives compares hidden states of {model.config.hidden_size} numbers with embeddings, which "
                f"are others with pooler_type={pooler_type}; use residual_layers, for instance"
            )
        self.places = [read_states.index(state) for state in states]

    def embed(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """The embeddings of s sentences, `(s, h)`, or with k states next to each other, `(s, (1 + k) h)`."""
        if not self.places:
            return model(**inputs).pooler_output
        taken: list[list[torch.Tensor]] = []
        # A hook of this call alone: the model can be copied, and may be a copy, or an adapter that was merged.
        pooler = extract_model_from_parallel(model).pooler
        hook = pooler.register_forward_pre_hook(lambda pooler, args: taken.append(args[0]))
        try:
            embeddings = model(**inputs).pooler_output
        finally:
            hook.remove()
        [reduced] = taken
        # Some poolers read the first token and the token mean, of which the mean is taken.
        states = [reduced[place] if reduced[place].dim() == 2 else reduced[place][:, 1] for place in self.places]
        return torch.cat([embeddings, *(state.to(embeddings.dtype) for state in states)], dim=1)

    def split(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The embeddings `(..., h)` and the states `(..., k, h)`, if any, of the result of [`embed`]."""
        if not self.places:
            return embedded, None
        parts = embedded.unflatten(-1, (-1, self.width))
        return parts[..., 0, :], parts[..., 1:, :]
