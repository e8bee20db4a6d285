"""The base class of the poolers, and the parts that several of them share."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from .modeling_layerpool_packing import PackedSentences, PaddedSentences, ReducedSentences, at_least_float32


Sentences = PaddedSentences | PackedSentences | ReducedSentences


class PoolerOptions:
    """
    Base class of a pooler's options: a dataclass of configuration fields, of which each has a help text.

    `LayerPoolConfigMixin` inherits from the options of all poolers, and the scripts make a flag of every field. On the
    command line, a field with `at_most` in its metadata is a number from 1 to that one, and one with `below` a number
    from 0 up to that one, which is excluded.
    """

    def check_options(self) -> None:
        """Check the values of these fields. Raises a `ValueError`."""


@dataclass(kw_only=True)
class ActivationOptions(PoolerOptions):
    """Option of the poolers with an activation inside: `layer_attention` and `hire`."""

    pooler_activation: str | None = field(
        default=None,
        metadata={
            "help": "Activation of the queries, keys and values in layer_attention, or of the importance of each "
            "hidden state in hire: rrelu (slope drawn from (1/8, 1/3) in training, 11/48 at inference) or any name "
            "in transformers.activations.ACT2FN. A new pooler uses rrelu for layer_attention and relu for hire, as "
            "in the papers."
        },
    )

    def check_options(self) -> None:
        super().check_options()
        if self.pooler_activation not in (None, "rrelu") and self.pooler_activation not in ACT2FN:
            raise ValueError(
                f"pooler_activation={self.pooler_activation!r} is unknown; use 'rrelu' or one of {', '.join(ACT2FN)}."
            )


@dataclass(kw_only=True)
class ResidualOptions(PoolerOptions):
    """Options of the poolers that can add to a plain pooling: `layer_attention` and `weighted_layers`."""

    pooler_residual: str | None = field(
        default=None,
        metadata={
            "help": "Plain pooling of the highest hidden state read, to which layer_attention or weighted_layers adds "
            "its output: mean (token mean), cls (first token) or none. The added output is zero before training. Not "
            "in the papers."
        },
    )
    pooler_normalize_inputs: bool = field(
        default=False,
        metadata={
            "help": "Normalize the pooled vector of each state to mean 0 and variance 1 before layer_attention or "
            "weighted_layers, so that states with larger values do not dominate. Not in the papers."
        },
    )

    def check_options(self) -> None:
        super().check_options()
        if self.pooler_residual is not None:
            check_choice("pooler_residual", self.pooler_residual, ("mean", "cls"))
        if not isinstance(self.pooler_normalize_inputs, bool):
            raise ValueError(f"pooler_normalize_inputs={self.pooler_normalize_inputs!r} must be True or False.")


class Pooler(nn.Module):
    """
    From the hidden states of an encoder to one vector for each sentence.

    A pooler works in two steps, so that no `(b, t, h)` state outlives its layer without need: `reduce` takes from a
    state what the pooler needs as the state passes, and `forward` computes the embedding from the reduced states.

    Class attributes:
        options: the dataclasses of the configuration fields that this pooler reads.
        weighting: `"fixed"` if the weights of the hidden states are not learned, `"shared"` if all texts have the same
            weights, `"per_text"` if each text has its own.
        citation: BibTeX of the paper, empty if there is none.
        learning_rate: the recommended learning rate of the pooler. None: that of the encoder.
        reads_tokens: whether `reduce` needs every token of a state, and not only the first token and the token mean.
        reads_means: whether `reduce` reads the token mean of a state, which can leave out the tokens of a prompt.
    """

    options: ClassVar[tuple[type[PoolerOptions], ...]] = ()
    weighting: ClassVar[Literal["fixed", "shared", "per_text"]] = "fixed"
    citation: ClassVar[str] = ""
    learning_rate: ClassVar[float | None] = None
    reads_tokens: ClassVar[bool] = False
    reads_means: ClassVar[bool] = True

    def __init__(self, config):
        super().__init__()
        self.states = self.states_read(config)

    @classmethod
    def validate(cls, config) -> None:
        """Check the options of this pooler against the rest of the configuration. Raises a `ValueError`."""

    @classmethod
    def states_read(cls, config) -> list[int]:
        """The hidden states that this pooler reads, counted from 0, ascending."""
        return config.pooled_states

    @classmethod
    def pooled_width(cls, config) -> int:
        """Width of the pooled vector, and so of the embedding if `projection_dim` is None."""
        return config.hidden_size

    @classmethod
    def projection_of(cls, config) -> nn.Module:
        """A linear map to `projection_dim`, or none if the pooled vector has that width already."""
        width = cls.pooled_width(config)
        return nn.Identity() if config.projection_dim in (None, width) else nn.Linear(width, config.projection_dim)

    def init_weights(self, module: nn.Module) -> None:
        """
        Initialize the parameters of `module` that transformers does not initialize or initializes in another way.

        Called for this pooler and each of its submodules in turn. Use `transformers.initialization`, which leaves
        loaded weights alone.
        """

    def reduce(self, state: torch.Tensor, sentences: Sentences) -> Any:
        """The part of a hidden state `(b, t, h)` that this pooler needs."""
        return sentences.mean(state)

    def pool_states(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As [`forward`], from the first token and the token mean of each state read, `(b, n, 2, h)`."""
        return self([self.reduce(state, ReducedSentences()) for state in states.unbind(dim=1)])

    def forward(self, reduced: list) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            reduced: the reduced states, in the order of `states`.

        Returns:
            The embeddings `(b, d)`, and the weight of each hidden state `(b, n)`, of which each row sums to 1.
        """
        raise NotImplementedError


class ResidualPooler(Pooler):
    """Base of the poolers that can add to a plain pooling of the highest state, by `pooler_residual`."""

    options = (ResidualOptions,)

    def __init__(self, config):
        super().__init__(config)
        self.residual, self.normalizes_inputs = config.pooler_residual, config.pooler_normalize_inputs

    @classmethod
    def validate(cls, config) -> None:
        if config.pooler_residual is not None and config.projection_dim not in (None, config.hidden_size):
            raise ValueError(
                f"pooler_residual={config.pooler_residual!r} needs an embedding as wide as the encoder, "
                f"{config.hidden_size}, not projection_dim={config.projection_dim}."
            )


class RReLU(nn.RReLU):
    """
    torch's RReLU with an operator outside training that exporters know. Its defaults are those of Oh et al.: slopes
    uniform in (1/8, 1/3) in training, and their mean 11/48 otherwise.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if self.training else functional.leaky_relu(x, (self.lower + self.upper) / 2)


def activation_by_name(name: str) -> nn.Module:
    return RReLU() if name == "rrelu" else ACT2FN[name]


def activate(activation: nn.Module, x: torch.Tensor) -> torch.Tensor:
    # torch has no float16 RReLU on a CPU.
    return activation(at_least_float32(x)).to(x.dtype)


def first_and_mean(state: torch.Tensor, sentences: Sentences) -> torch.Tensor:
    """The first token and the token mean of each sentence: `(b, t, h) -> (b, 2, h)`."""
    return torch.stack([sentences.first(state), sentences.mean(state)], dim=1)


def normalize(pooled: torch.Tensor) -> torch.Tensor:
    """Normalize each vector to mean 0 and variance 1."""
    return functional.layer_norm(pooled, pooled.shape[-1:])


def check_choice(field: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r} is unknown; use one of {', '.join(choices)}.")


def check_positive(field: str, value: Any, or_none: bool = True) -> None:
    if not ((or_none and value is None) or (is_int(value) and value > 0)):
        raise ValueError(f"{field}={value!r} must be a positive integer{', or None' if or_none else ''}.")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
