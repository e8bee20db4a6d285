"""
The parts of a layer-pooled model that are the same for every encoder.

`LayerPoolMixin` reads the hidden states as the encoder computes them and pools them, from padded or packed input.
`LayerPoolEmbeddingMixin` returns the pooled vector as the sentence embedding. An encoder adds the lines that build it.

Notation: `b` sentences in padded input, `s` sentences in packed input, `t` tokens, `n` hidden states read, `h` width,
`d` width of the embedding.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import __version__
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .modeling_layerpool_encode import EncodeMixin, EncodeStatesMixin
from .modeling_layerpool_packing import (
    FLAT_ROW_INPUTS,
    PackedInputMixin,
    PackedSentences,
    PaddedSentences,
    find_sequence_starts,
    sequences_from_lengths,
)
from .modeling_layerpool_pooler_base import Sentences, first_and_mean
from .modeling_layerpool_poolers import build_pooler
from .modeling_layerpool_saving import SavingMixin, SentenceTransformersFilesMixin


@dataclass
class LayerPoolModelOutput(ModelOutput):
    r"""
    Output of the layer-pooled encoders.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(b, t, h)`):
            The highest hidden state that the pooler reads, in the shape of the input. None for `encoder_states`.
        pooler_output (`torch.Tensor` of shape `(b, d)`, packed `(s, d)`):
            The sentence embeddings.
        hidden_states, attentions (`tuple(torch.Tensor)`, *optional*):
            Returned with `output_hidden_states=True` and `output_attentions=True`, as by the encoder itself.
        layer_attentions (`torch.Tensor` of shape `(b, n)`, *optional*):
            Returned with `output_layer_attentions=True`: the weight of each hidden state read, in ascending order,
            averaged over the queries. A row sums to 1.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    layer_attentions: torch.Tensor | None = None


# The hooks call the reader of their thread, so that one model can serve several threads. They hold no reference to a
# model, so that models can be copied and pickled.
_active = threading.local()


def _pass_to_reader(index: int, module: nn.Module, args: Any, output: Any) -> None:
    reader = getattr(_active, "reader", None)
    if reader is not None:
        reader(index, output[0] if isinstance(output, tuple) else output)


@contextlib.contextmanager
def _reading_states(reader) -> Iterator[None]:
    outer = getattr(_active, "reader", None)
    _active.reader = reader
    try:
        yield
    finally:
        _active.reader = outer


class LayerPoolMixin(EncodeStatesMixin, PackedInputMixin, SavingMixin):
    """
    The base of all layer-pooled models. Comes before the class of transformers. An encoder's class builds the encoder
    and then calls [`add_pooler`].
    """

    # Whether the encoder has embeddings that tell the two texts of a pair apart. Others do not know `token_type_ids`.
    has_token_types: ClassVar[bool] = True
    # transformers reports unexpected weights unless they are named here, and has no public name for this list. It
    # holds the heads of plain checkpoints, our classifier, and parts that some releases saved or that are not built.
    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"^(\w+\.)?pooler\.dense\.",
        r"^(cls|head|decoder|lm_head|generator_lm_head)\.",
        r"^(lm|mask|discriminator|generator)_predictions\.",
        r"^vocab_(transform|layer_norm|projector)\.",
        r"^(pre_)?classifier\.",
        r"position_ids$",
        r"position_embeddings",
        r"final_norm\.",
    ]

    def add_pooler(
        self, embeddings: nn.Module, layers: nn.ModuleList, final_norm: nn.Module | None = None
    ) -> nn.ModuleList:
        """
        Build `self.pooler`, and pass each hidden state to it as it is computed. Returns the layers that it needs, the
        lowest ones.

        Args:
            embeddings: module whose output is hidden state 0.
            layers: modules whose outputs are the other hidden states.
            final_norm: module that the output of the last layer goes through to become the last hidden state, if any.
        """
        self.pooler = build_pooler(self.config)
        depth = self.pooler.states[-1]
        states = [embeddings, *layers[:depth]]
        if final_norm is not None and depth == len(layers):
            states[-1] = final_norm
        for index in self.pooler.states:
            states[index].register_forward_hook(partial(_pass_to_reader, index))
        if depth < len(layers):
            # Checkpoints may hold layers above these; unused upper layers are not reported.
            above = "|".join(str(index) for index in range(depth, len(layers)))
            self._keys_to_ignore_on_load_unexpected = [
                *self._keys_to_ignore_on_load_unexpected,
                rf"(^|\.)layers?\.({above})\.",
            ]
        return layers[:depth]

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers. Raises a `ValueError` for its releases whose checkpoints enclose our hooks."""
        if "__call__" in vars(GradientCheckpointingLayer):
            # A hidden state would be read inside the checkpoint, and the gradient through it be lost or doubled.
            raise ValueError(
                f"Gradient checkpointing of {type(self).__name__} needs a newer transformers than {__version__}: 5.23 "
                "works."
            )
        super().gradient_checkpointing_enable(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers documents this method as the one to override.
        super()._init_weights(module)
        self.pooler.init_weights(module)

    def pool(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        sequence_starts: torch.LongTensor | None = None,
        output_layer_attentions: bool = False,
        encoder_states: torch.Tensor | None = None,
        prompt_lengths: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LayerPoolModelOutput:
        r"""
        Run the encoder, and pool the hidden states as they pass.

        Args:
            input_ids (`torch.LongTensor` of shape `(b, t)`):
                Token ids: one sentence a row, or packed rows if `sequence_ids` is given.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                1 for tokens, 0 for padding. Not allowed with `sequence_ids`.
            token_type_ids, position_ids, inputs_embeds (*optional*):
                As for the encoder. In packed rows positions restart with each sentence; by default they are derived.
            sequence_ids (`torch.LongTensor` of shape `(rows, length)`, *optional*):
                Packed input: the index of the sentence that each token belongs to, -1 for padding. The tokens of a
                sentence are contiguous.
            sequence_starts (`torch.LongTensor` of shape `(s,)`, *optional*):
                The flat index of each sentence's first token. Derived from `sequence_ids` if not given, which costs
                one synchronization with the device.
            output_layer_attentions (`bool`, *optional*, defaults to `False`):
                Whether to return the weight of each hidden state.
            encoder_states (`torch.Tensor` of shape `(b, n, 2, h)`, *optional*):
                The output of [`encode_states`], instead of tokens. The encoder does not run.
            prompt_lengths (`torch.LongTensor` of shape `(b,)` or `(s,)`, *optional*):
                The number of tokens at the beginning of each sentence that the token means leave out.
            sequence_lengths (`list[int]`, *optional*):
                The number of tokens in each sentence of packed input. `hire` alone reads them; without them it waits
                once for the device.

        One flat row with `cu_seq_lens_q`, as sentence-transformers sends it, is packed input too.

        Raises:
            ValueError: the input is both padded and packed, `attention_mask` has another shape than `(b, t)`,
                `encoder_states` has another shape than `(b, n, 2, h)` or is for a pooler that reads every token, or
                `prompt_lengths` is for a pooler without token means.
        """
        if encoder_states is not None:
            self._check_states(encoder_states)
            outputs = BaseModelOutput()
            embedding, layer_attentions = self.pooler.pool_states(encoder_states.to(self.dtype))
        else:
            if prompt_lengths is not None and not self.pooler.reads_means:
                raise ValueError(f"pooler_type={self.config.pooler_type!r} has no token means for prompt_lengths.")
            outputs, reduced = self._read(
                self.pooler.reduce,
                input_ids,
                attention_mask,
                token_type_ids,
                position_ids,
                inputs_embeds,
                sequence_ids,
                sequence_starts,
                prompt_lengths,
                **kwargs,
            )
            embedding, layer_attentions = self.pooler(reduced)
        return LayerPoolModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=embedding,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            layer_attentions=layer_attentions if output_layer_attentions else None,
        )

    def read_states(self, input_ids: torch.LongTensor, **inputs: torch.Tensor) -> torch.Tensor:
        """
        The first token and the token mean of each hidden state that the pooler reads, `(b, n, 2, h)`. The arguments
        are those of [`pool`].
        """
        _, states = self._read(first_and_mean, input_ids, **inputs)
        return torch.stack(states, dim=1)

    def _check_states(self, states: torch.Tensor) -> None:
        if self.pooler.reads_tokens:
            raise ValueError(f"pooler_type={self.config.pooler_type!r} reads every token: encoder_states lack them.")
        n, h = len(self.pooler.states), self.config.hidden_size
        if tuple(states.shape[1:]) != (n, 2, h):
            raise ValueError(
                f"encoder_states has shape {tuple(states.shape)}, but this model reads (b, {n}, 2, {h}): first token "
                f"and token mean of the hidden states {self.pooler.states}."
            )

    def _read(
        self,
        reduce: Callable[[torch.Tensor, Sentences], Any],
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        sequence_starts: torch.LongTensor | None = None,
        prompt_lengths: torch.LongTensor | None = None,
        sequence_lengths: Sequence[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[BaseModelOutput, list]:
        """The output of the encoder, and what `reduce` takes from each hidden state that the pooler reads."""
        shape = (input_ids if input_ids is not None else inputs_embeds).shape[:2]
        flat = {name: kwargs.pop(name) for name in FLAT_ROW_INPUTS if name in kwargs}
        if sequence_ids is None and flat.get("cu_seq_lens_q") is not None:
            sequence_ids, sequence_starts = sequences_from_lengths(flat["cu_seq_lens_q"], shape[1])
        inputs = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids if self.has_token_types else None,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if sequence_ids is None:
            if attention_mask is not None and attention_mask.dim() != 2:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, but pooling needs to know the tokens of "
                    "each sentence: pass (batch, tokens), or packed rows with sequence_ids."
                )
            sentences = PaddedSentences(attention_mask, prompt_lengths)
            inputs["attention_mask"] = attention_mask
        else:
            if attention_mask is not None:
                raise ValueError("Pass either attention_mask or sequence_ids: sequence_ids marks padding with -1.")
            if sequence_starts is None:
                sequence_starts = find_sequence_starts(sequence_ids)
            sentences = PackedSentences(sequence_ids, sequence_starts, prompt_lengths, sequence_lengths)
            inputs |= self.packed_inputs(inputs, sequence_ids, sequence_starts)
        reduced = {}

        def read(index: int, state: torch.Tensor) -> None:
            reduced[index] = reduce(state, sentences)

        inputs = {name: value for name, value in inputs.items() if value is not None}
        with _reading_states(read):
            outputs = self.base_model(**inputs, return_dict=True, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state.view(*shape, -1)
        return outputs, [reduced[index] for index in self.pooler.states]

    @property
    def embedding_dim(self) -> int:
        """Width of the sentence embedding."""
        return self.config.projection_dim or self.config.pooled_width


class LayerPoolEmbeddingMixin(EncodeMixin, SentenceTransformersFilesMixin):
    """
    A model whose output is the sentence embedding. Comes before the encoder's class.

    From a checkpoint without a pooler of the same type, the encoder is kept whole and the pooler is new.
    """

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        sequence_starts: torch.LongTensor | None = None,
        output_layer_attentions: bool = False,
        encoder_states: torch.Tensor | None = None,
        prompt_lengths: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LayerPoolModelOutput:
        """The sentence embeddings. The arguments are those of [`~LayerPoolMixin.pool`]."""
        return self.pool(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            sequence_starts,
            output_layer_attentions,
            encoder_states,
            prompt_lengths,
            **kwargs,
        )


__all__ = ["LayerPoolEmbeddingMixin", "LayerPoolMixin", "LayerPoolModelOutput"]
