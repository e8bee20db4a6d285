"""
Sentence encoders that read all of their layers: what is not particular to an encoder.

`LayerPoolMixin` reads the hidden states as they pass and pools them, from padded or packed input. The two others make
a model of it: `LayerPoolEmbeddingMixin` one that returns the embedding, `LayerPoolClassificationMixin` one with a
classifier on it. An encoder adds the lines that build it.

Notation: `b` sentences in padded input, `s` sentences in packed input, `t` tokens, `n` hidden states read, `h` width,
`d` width of the embedding, `c` labels.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, __version__
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .modeling_layerpool_packing import (
    PackedSentences,
    PaddedSentences,
    cumulative_lengths,
    find_sequence_starts,
    pack_sentences,
    restarting_positions,
    sequences_from_lengths,
)
from .modeling_layerpool_poolers import HirePooler, LayerAttentionPooler, WeightedLayersPooler


@dataclass
class LayerPoolModelOutput(ModelOutput):
    r"""
    Output of the layer-pooled encoders.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(b, t, h)`):
            The highest hidden state that the pooler reads, in the shape of the input.
        pooler_output (`torch.Tensor` of shape `(b, d)`, packed `(s, d)`):
            The sentence embeddings.
        hidden_states, attentions (`tuple(torch.Tensor)`, *optional*):
            Returned on `output_hidden_states=True` and `output_attentions=True`, as by the encoder itself.
        layer_attentions (`torch.Tensor` of shape `(b, n)`, *optional*):
            Returned on `output_layer_attentions=True`: the weight of each hidden state read, ascending, averaged over
            the queries. A row sums to 1.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    layer_attentions: torch.Tensor | None = None


# What the hooks below hand the hidden states to. Of the thread and not of the model, so that one model can serve
# several threads; the hooks know no model, so that models can be copied and pickled.
_reading = threading.local()


def _read_state(index: int, module: nn.Module, args: Any, output: Any) -> None:
    reader = getattr(_reading, "reader", None)
    if reader is not None:
        reader(index, output[0] if isinstance(output, tuple) else output)


@contextlib.contextmanager
def _read_with(reader) -> Iterator[None]:
    outer = getattr(_reading, "reader", None)
    _reading.reader = reader
    try:
        yield
    finally:
        _reading.reader = outer


class LayerPoolMixin:
    """
    All that layer-pooled models share. An encoder's class sets up `self.pooler` and the encoder, and calls
    [`read_layers`] on it.
    """

    # Whether the encoder tells the two texts of a pair apart by embeddings. Others do not know `token_type_ids`.
    has_token_types: ClassVar[bool] = True

    def read_layers(
        self, embeddings: nn.Module, layers: nn.ModuleList, final_norm: nn.Module | None = None
    ) -> nn.ModuleList:
        """
        Let the pooler see each hidden state as it passes. Returns the layers that it needs, the lowest ones.

        Args:
            embeddings: what makes hidden state 0.
            layers: what makes the others.
            final_norm: what the last layer's output goes through before it is the last hidden state, if anything.
        """
        depth = self.pooler.states[-1]
        states = [embeddings, *layers[:depth]]
        if final_norm is not None and depth == len(layers):
            states[-1] = final_norm
        for index in self.pooler.states:
            states[index].register_forward_hook(partial(_read_state, index))
        if depth < len(layers):
            # Checkpoints may hold layers above these; unused upper layers are not reported.
            above = "|".join(str(index) for index in range(depth, len(layers)))
            self._keys_to_ignore_on_load_unexpected = [
                *(self._keys_to_ignore_on_load_unexpected or []),
                rf"(^|\.)layers?\.({above})\.",
            ]
        return layers[:depth]

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers. Raises a `ValueError` on its releases whose checkpoints enclose our hooks."""
        if "__call__" in vars(GradientCheckpointingLayer):
            # There a hidden state would be read inside the checkpoint, and the gradient through it be lost or doubled.
            raise ValueError(
                f"Gradient checkpointing of {type(self).__name__} needs a newer transformers than {__version__}: 5.23 "
                "works."
            )
        super().gradient_checkpointing_enable(*args, **kwargs)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # In code that is not its own transformers passes over modules that have no parameters but their children's,
        # such as poolers, lest loaded weights be overwritten. What is below leaves those alone by itself.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WeightedLayersPooler):
            init.zeros_(module.layer_weights)
            if module.residual is None:
                init.ones_(module.scale)
        elif isinstance(module, LayerAttentionPooler) and module.residual is not None:
            init.zeros_(module.projection.weight)
            init.zeros_(module.projection.bias)
        elif isinstance(module, HirePooler):
            # The paper's ReLU starts open: if it were shut for all states, no gradient would ever open it.
            init.ones_(module.importance.bias)
        elif isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5  # torch's own start
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> LayerPoolModelOutput:
        r"""
        Run the encoder, and pool the hidden states as they pass.

        Args:
            input_ids (`torch.LongTensor` of shape `(b, t)`):
                Token ids: one sentence a row, or packed rows if `sequence_ids` is given.
            attention_mask (`torch.Tensor` of shape `(b, t)`, *optional*):
                1 for tokens, 0 for padding. Not with `sequence_ids`, which says the same.
            token_type_ids, position_ids, inputs_embeds (*optional*):
                As for the encoder. In packed rows positions restart with each sentence; by default they are derived.
            sequence_ids (`torch.LongTensor` of shape `(rows, length)`, *optional*):
                Packed input: the number of the sentence that each token belongs to, -1 for padding. A sentence lies in
                one piece.
            sequence_starts (`torch.LongTensor` of shape `(s,)`, *optional*):
                The flat place of each sentence's first token. Derived from `sequence_ids` if not given, at the price
                of one synchronisation with the device.
            output_layer_attentions (`bool`, *optional*, defaults to `False`):
                Whether to return the weight of each hidden state.

        One flat row with `cu_seq_lens_q`, as sentence-transformers sends it, is packed input too.

        Raises:
            ValueError: the input is both padded and packed, or `attention_mask` has another shape than `(b, t)`.
        """
        shape = (input_ids if input_ids is not None else inputs_embeds).shape[:2]
        flat = {name: kwargs.pop(name) for name in _FLAT_ROW_INPUTS if name in kwargs}
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
            sentences = PaddedSentences(attention_mask)
            inputs["attention_mask"] = attention_mask
        else:
            if attention_mask is not None:
                raise ValueError("Pass either attention_mask or sequence_ids: sequence_ids marks padding with -1.")
            if sequence_starts is None:
                sequence_starts = find_sequence_starts(sequence_ids)
            sentences = PackedSentences(sequence_ids, sequence_starts)
            inputs |= self._packed_inputs(inputs, sequence_ids, sequence_starts)
        reduced = {}

        def read(index: int, state: torch.Tensor) -> None:
            reduced[index] = self.pooler.reduce(state, sentences)

        inputs = {name: value for name, value in inputs.items() if value is not None}
        with _read_with(read):
            outputs = self.base_model(**inputs, return_dict=True, **kwargs)
        embedding, layer_attentions = self.pooler([reduced[index] for index in self.pooler.states])
        return LayerPoolModelOutput(
            last_hidden_state=outputs.last_hidden_state.view(*shape, -1),
            pooler_output=embedding,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            layer_attentions=layer_attentions if output_layer_attentions else None,
        )

    def _packed_inputs(
        self, inputs: dict[str, torch.Tensor | None], sequence_ids: torch.Tensor, sequence_starts: torch.Tensor
    ) -> dict[str, Any]:
        """Restarting positions, and attention that stays inside each sentence, for the attention that is set."""
        if inputs["position_ids"] is None:
            positions = self.packed_positions(inputs["input_ids"], sequence_ids, sequence_starts)
            inputs = inputs | {"position_ids": positions}
        if "flash" in self.config._attn_implementation:
            borders = cumulative_lengths(sequence_ids, sequence_starts)
            flat = {name: value.flatten(0, 1).unsqueeze(0) for name, value in inputs.items() if value is not None}
            length = sequence_ids.shape[1]
            return flat | {
                "cu_seq_lens_q": borders,
                "cu_seq_lens_k": borders,
                "max_length_q": length,
                "max_length_k": length,
            }
        return inputs | {"attention_mask": self.packed_mask(sequence_ids, create_bidirectional_mask)}

    def packed_mask(self, sequence_ids: torch.Tensor, create_mask: Callable[..., Any]) -> Any:
        """
        The mask by which tokens of packed input see those of their own sentence only. It is made by a function of the
        library, as each attention implementation wants its own kind.
        """
        return create_mask(
            config=self.config,
            # Only shape, dtype and device of the embeddings are looked at.
            inputs_embeds=torch.empty((), dtype=self.dtype, device=sequence_ids.device).expand(*sequence_ids.shape, 1),
            attention_mask=None,
            and_mask_function=lambda row, head, query, key: sequence_ids[row, query] == sequence_ids[row, key],
        )

    def packed_positions(
        self, input_ids: torch.Tensor | None, sequence_ids: torch.Tensor, sequence_starts: torch.Tensor
    ) -> torch.Tensor:
        """`position_ids (rows, length)` of packed input for which none are given. By default counted from 0."""
        return restarting_positions(sequence_ids, sequence_starts)

    @property
    def embedding_dim(self) -> int:
        """Width of the sentence embedding."""
        return self.config.projection_dim or self.config.pooled_width

    @property
    def max_tokens(self) -> int:
        """Tokens in the longest sentence that the encoder has positions for, special tokens included."""
        return self.config.max_position_embeddings

    @property
    def input_device(self) -> torch.device:
        """Where the encoder computes, which is not where weights are that accelerate has offloaded."""
        if self.device.type == "meta":
            for module in self.base_model.modules():
                device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
                if device is not None:
                    return torch.device(device)
        return self.device

    @property
    def auto_map(self) -> dict[str, str]:
        """What the auto classes open a saved folder with: every save names all models of the encoder."""
        stem = self.config_class.__name__.removesuffix("Config")
        module = self.config_class.__module__.rpartition(".")[2]
        models = module.replace("configuration", "modeling", 1)
        return {
            "AutoConfig": f"{module}.{stem}Config",
            "AutoModel": f"{models}.{stem}Model",
            "AutoModelForSequenceClassification": f"{models}.{stem}ForSequenceClassification",
        }

    @property
    def classifier_dropout(self) -> float:
        """Of the embedding, before a classifier: by the name that the encoder's own classifier has for it."""
        names = ("classifier_dropout", "cls_dropout", "seq_classif_dropout", "hidden_dropout_prob")
        return next(rate for name in names if (rate := getattr(self.config, name, None)) is not None)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as usual, with the code, and with all that the auto classes need to open it as any of our models."""
        self.config.projection_dim = self.embedding_dim  # where sentence-transformers looks for the width
        self.config.auto_map = self.auto_map
        super().save_pretrained(save_directory, *args, **kwargs)


class PositionsBehindPaddingMixin:
    """
    Of an encoder that counts positions from behind a padding position, which is that of every padding token. Stands
    before [`LayerPoolMixin`].
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
        """Counted from behind the padding position."""
        padding = self.padding_position
        if input_ids is None:
            return super().packed_positions(input_ids, sequence_ids, sequence_starts) + padding + 1
        # A padding token that stands in a text is not counted: so transformers has it in padded input.
        counted = (input_ids != padding) & (sequence_ids >= 0)
        count = counted.flatten().cumsum(dim=0)
        before = count[sequence_starts] - counted.flatten()[sequence_starts].long()
        inside = count.view_as(sequence_ids) - before[sequence_ids.clamp(min=0)]
        return torch.where(counted, inside, 0) + padding


class LayerPoolEmbeddingMixin:
    """A model whose output is the sentence embedding. Stands before the encoder's class."""

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> LayerPoolModelOutput:
        """The embeddings. Arguments as those of [`~LayerPoolMixin.pool`]."""
        return self.pool(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            sequence_starts,
            output_layer_attentions,
            **kwargs,
        )

    def encode(
        self,
        sentences: str | Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens_per_batch: int | None = None,
        normalize: bool = False,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = True,
    ):
        r"""
        Embed sentences, in evaluation mode and without gradient.

        The sentences are sorted by length and packed, so that hardly any padding is computed. A text is cut at the
        tokenizer's `model_max_length`, and at the number of positions that the encoder has.

        Args:
            sentences (`str` or sequence of `str`):
                The texts. An empty one is fine: its special tokens are embedded.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                The tokenizer of this checkpoint.
            max_tokens_per_batch (`int`, *optional*):
                Tokens computed at once, the bound on memory. A longer text makes a batch of its own. Defaults to 2048
                on a CPU, where a small batch stays in the cache, and to 16384 on an accelerator.
            normalize (`bool`, *optional*, defaults to `False`):
                Whether to scale each embedding to length 1.
            show_progress_bar (`bool`, *optional*, defaults to `False`):
                Whether to show the sentences embedded so far.
            convert_to_numpy (`bool`, *optional*, defaults to `True`):
                Return a float32 numpy array, else a tensor on the model's device.

        Returns:
            `(len(sentences), d)` in the order of `sentences`, or `(d,)` for a single `str`.

        Raises:
            ValueError: `max_tokens_per_batch` is not positive, or an item is no text.
        """
        if isinstance(sentences, str):
            return self.encode(
                [sentences],
                tokenizer,
                max_tokens_per_batch=max_tokens_per_batch,
                normalize=normalize,
                show_progress_bar=show_progress_bar,
                convert_to_numpy=convert_to_numpy,
            )[0]
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise ValueError(f"Sentence {index} is no text but {type(sentence).__name__}: {sentence!r}")
        embeddings = torch.zeros(len(sentences), self.embedding_dim, device=self.input_device)
        with logging.tqdm(total=len(sentences), desc="Encoding", disable=not show_progress_bar) as progress:
            # Windows bound the memory for token ids, and are wide enough for sorting by length to pay.
            for begin in range(0, len(sentences), _ENCODE_WINDOW):
                window = sentences[begin : begin + _ENCODE_WINDOW]
                token_ids = self._tokenize(window, tokenizer)
                embeddings[begin : begin + len(window)] = self._embed(token_ids, max_tokens_per_batch, progress)
        if normalize:
            embeddings = nn.functional.normalize(embeddings, dim=-1)
        return embeddings.cpu().numpy() if convert_to_numpy else embeddings

    def encode_token_ids(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        max_tokens_per_batch: int | None = None,
        show_progress_bar: bool = False,
    ) -> torch.Tensor:
        """
        As [`encode`], of sentences that are tokenised already, special tokens included.

        Returns:
            `torch.Tensor`: `(len(token_ids), d)` in float32, on the model's device.
        """
        with logging.tqdm(total=len(token_ids), desc="Encoding", disable=not show_progress_bar) as progress:
            return self._embed(token_ids, max_tokens_per_batch, progress)

    def _embed(
        self, token_ids: Sequence[Sequence[int]], max_tokens_per_batch: int | None, progress: Any
    ) -> torch.Tensor:
        device = self.input_device
        if max_tokens_per_batch is None:
            max_tokens_per_batch = 2048 if device.type == "cpu" else 16384
        if max_tokens_per_batch <= 0:
            raise ValueError(f"max_tokens_per_batch={max_tokens_per_batch} must be positive.")
        embeddings = torch.zeros(len(token_ids), self.embedding_dim, device=device)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for batch in _batches_by_length(token_ids, max_tokens_per_batch):
                    packed = pack_sentences([token_ids[index] for index in batch], self.config.pad_token_id or 0)
                    output = self(**{name: value.to(device) for name, value in packed.items()})
                    embeddings[torch.tensor(batch, device=device)] = output.pooler_output.float().to(device)
                    progress.update(len(batch))
        finally:
            self.train(was_training)
        return embeddings

    def _tokenize(self, sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        limit = min(tokenizer.model_max_length, self.max_tokens)
        return tokenizer(
            list(sentences),
            truncation=True,
            max_length=limit,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as usual, and add the two small files with which sentence-transformers opens the folder."""
        # transformers would upload before they are there; `push_to_hub` comes back here, and uploads what is saved.
        names = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
        hub = {name: kwargs.pop(name) for name in names if push_to_hub and name in kwargs}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return
        for name, content in _SENTENCE_TRANSFORMERS_FILES.items():
            with open(os.path.join(save_directory, name), "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
                file.write("\n")
        if push_to_hub:
            hub.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(**hub, token=kwargs.get("token"))


class LayerPoolClassificationMixin:
    """A model with a linear classifier on the sentence embedding. Stands before the encoder's class."""

    # The loss is a mean over the batch, so that a trainer divides it by the batches that it accumulates.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.dropout = nn.Dropout(self.classifier_dropout)
        self.classifier = nn.Linear(self.embedding_dim, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        sequence_starts: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        The logits `(b, c)`, packed `(s, c)`, and with `labels` the loss. Arguments as those of
        [`~LayerPoolMixin.pool`], and:

        Args:
            labels (`torch.Tensor` of shape `(b,)` or `(b, c)`, packed `(s,)` or `(s, c)`, *optional*):
                One label for each sentence. What they mean says `config.problem_type`, as in transformers:
                `"regression"` (numbers, squared error), `"single_label_classification"` (a class index, cross-entropy)
                or `"multi_label_classification"` (a 0 or 1 for each class, binary cross-entropy). By default the first
                for a single label, the second for integers, else the third.
        """
        outputs = self.pool(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            sequence_ids,
            sequence_starts,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


_ENCODE_WINDOW = 16384

# Arguments that sentence-transformers sends with one flat row of tokens; only the first of them says anything new.
_FLAT_ROW_INPUTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")

_SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
        "unpad_inputs": False,
    },
}


def _batches_by_length(token_ids: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Cut sentences into batches of at most `max_tokens` tokens, the longest first so that memory runs out at once."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(token_ids)), key=lambda index: -len(token_ids[index])):
        if batch and tokens + len(token_ids[index]) > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += len(token_ids[index])
    if batch:
        yield batch


__all__ = [
    "LayerPoolClassificationMixin",
    "LayerPoolEmbeddingMixin",
    "LayerPoolMixin",
    "LayerPoolModelOutput",
    "PositionsBehindPaddingMixin",
]
