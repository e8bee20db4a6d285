"""
From sentences to embeddings, and to the states that they are pooled from, in packed batches.

Notation: `n` hidden states read, `h` width, `d` width of the embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .modeling_layerpool_packing import pack_sentences
from .modeling_layerpool_texts import TextMixin


ENCODE_WINDOW = 16384  # sentences that are tokenized and sorted at once
STATES_AT_ONCE = 1024  # sentences whose states are pooled at once


class EncodeStatesMixin(TextMixin):
    """The `encode_states` methods of a model with a pooler over its hidden states."""

    def encode_states(
        self,
        sentences: str | Sequence[str] | Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_tokens_per_batch: int | None = None,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = True,
    ):
        r"""
        The first token and the token mean of each hidden state that the pooler reads, in evaluation mode and without
        gradient: features for other models, or `encoder_states` of this one.

        Args:
            sentences (`str`, or sequence of `str` or of `tuple[str, str]`):
                The texts, or pairs of texts that the encoder reads together.
            tokenizer, prompt, prompt_name, max_tokens_per_batch, show_progress_bar, convert_to_numpy:
                As in [`encode`]. Pairs have no prompts.

        Returns:
            `(len(sentences), n, 2, h)` in the order of `sentences`, or `(n, 2, h)` for a single `str`: the states in
            ascending order, of each first the first token, then the mean.

        Raises:
            ValueError: as in [`encode`].
        """
        is_single = isinstance(sentences, str)
        if is_single:
            sentences = [sentences]
        _check_sentences(sentences, may_be_pairs=True)
        tokenizer = self.own_tokenizer() if tokenizer is None else tokenizer
        if len(sentences) and not isinstance(sentences[0], str):
            if prompt or prompt_name:
                raise ValueError("Pairs have no prompts: pass single texts, or no prompt.")
            prompt = ""
        prompt = self.find_prompt(prompt, prompt_name)
        inputs = self.tokenize(sentences, tokenizer, prompt)
        states = self.encode_states_of_token_ids(
            **inputs,
            prompt_lengths=self._lengths_left_out(prompt, tokenizer, len(sentences)),
            max_tokens_per_batch=max_tokens_per_batch,
            show_progress_bar=show_progress_bar,
        )
        if convert_to_numpy:
            states = states.cpu().numpy()
        return states[0] if is_single else states

    def encode_states_of_token_ids(
        self,
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None = None,
        *,
        prompt_lengths: Sequence[int] | None = None,
        max_tokens_per_batch: int | None = None,
        show_progress_bar: bool = False,
    ) -> torch.Tensor:
        """
        Like [`encode_states`], for texts that are already tokenized, special tokens included. The means leave out the
        first `prompt_lengths` tokens of the texts.

        Returns:
            `torch.Tensor`: `(len(input_ids), n, 2, h)` in float32, on the model's device.
        """
        shape = (len(self.pooler.states), 2, self.config.hidden_size)
        with logging.tqdm(total=len(input_ids), desc="Encoding", disable=not show_progress_bar) as progress:
            return self._compute(
                self.read_states, shape, input_ids, token_type_ids, prompt_lengths, max_tokens_per_batch, progress
            )

    def _compute(
        self,
        function: Callable[..., torch.Tensor],
        shape: tuple[int, ...],
        input_ids: Sequence[Sequence[int]],
        token_type_ids: Sequence[Sequence[int]] | None,
        prompt_lengths: Sequence[int] | None,
        max_tokens_per_batch: int | None,
        progress: Any,
    ) -> torch.Tensor:
        """Results of a function of packed input, `(len(input_ids), *shape)` in float32."""
        device = self.input_device
        if max_tokens_per_batch is None:
            # As many bytes on a CPU in each precision.
            max_tokens_per_batch = 2048 * 4 // self.dtype.itemsize if device.type == "cpu" else 16384
        if max_tokens_per_batch <= 0:
            raise ValueError(f"max_tokens_per_batch={max_tokens_per_batch} must be positive.")
        self.choose_attention(device)
        results = torch.zeros(len(input_ids), *shape, device=device)
        with _inference(self):
            for batch in _batches_by_length(input_ids, max_tokens_per_batch):
                packed = pack_sentences([input_ids[index] for index in batch], self.config.pad_token_id or 0)
                if token_type_ids is not None:
                    row_length = packed["input_ids"].shape[1]
                    types = pack_sentences([token_type_ids[index] for index in batch], 0, row_length)
                    packed["token_type_ids"] = types["input_ids"]  # the rows depend on the lengths only
                if prompt_lengths is not None:
                    packed["prompt_lengths"] = torch.tensor([prompt_lengths[index] for index in batch])
                result = function(**{name: value.to(device) for name, value in packed.items()})
                results[torch.tensor(batch, device=device)] = result.float().to(device)
                progress.update(len(batch))
        return results

    @property
    def input_device(self) -> torch.device:
        """The device of the computation. Weights that accelerate has offloaded are elsewhere."""
        if self.device.type == "meta":
            for module in self.base_model.modules():
                # accelerate has no public name for the hook that it attaches to a module.
                device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
                if device is not None:
                    return torch.device(device)
        return self.device


class EncodeMixin:
    """The `encode` methods of a model whose output is the sentence embedding."""

    def encode(
        self,
        sentences: str | Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_tokens_per_batch: int | None = None,
        normalize: bool = False,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = True,
    ):
        r"""
        Embed sentences, in evaluation mode and without gradient.

        The sentences are sorted by length and packed, so that hardly any padding is computed. A text is truncated to
        the tokenizer's `model_max_length` and to the number of positions that the encoder has.

        Args:
            sentences (`str` or sequence of `str`):
                The texts. An empty text is embedded by its special tokens.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                The tokenizer of this checkpoint. Defaults to the one that the model came with.
            prompt (`str`, *optional*):
                A text to put before each sentence, such as `"query: "`. Defaults to the prompt that
                `config.default_prompt_name` names, or to none.
            prompt_name (`str`, *optional*):
                The name of a prompt in `config.prompts`, such as `"query"`, instead of its text.
            max_tokens_per_batch (`int`, *optional*):
                Tokens computed at once, which bounds the memory. A longer text is a batch of its own. Defaults to 2048
                on a CPU (4096 in half precision), where a small batch stays in the cache, and to 16384 on an
                accelerator.
            normalize (`bool`, *optional*, defaults to `False`):
                Whether to scale each embedding to length 1.
            show_progress_bar (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.
            convert_to_numpy (`bool`, *optional*, defaults to `True`):
                Whether to return a float32 numpy array, or a tensor on the model's device.

        Returns:
            `(len(sentences), d)` in the order of `sentences`, or `(d,)` for a single `str`.

        Raises:
            ValueError: `max_tokens_per_batch` is not positive, an item is not a string, the model came without a
                tokenizer and none is given, or it has no prompt of this name.
        """
        is_single = isinstance(sentences, str)
        if is_single:
            sentences = [sentences]
        _check_sentences(sentences)
        tokenizer = self.own_tokenizer() if tokenizer is None else tokenizer
        prompt = self.find_prompt(prompt, prompt_name)
        lengths = self._lengths_left_out(prompt, tokenizer, min(len(sentences), ENCODE_WINDOW))
        embeddings = torch.zeros(len(sentences), self.embedding_dim, device=self.input_device)
        with logging.tqdm(
            total=len(sentences), desc="Encoding", leave=False, disable=not show_progress_bar
        ) as progress:
            # A window bounds the memory for token ids, and is long enough for sorting by length to save time.
            for begin in range(0, len(sentences), ENCODE_WINDOW):
                window = sentences[begin : begin + ENCODE_WINDOW]
                token_ids = self.tokenize(window, tokenizer, prompt)["input_ids"]
                embedded = self._embed(token_ids, lengths, max_tokens_per_batch, progress)
                embeddings[begin : begin + len(window)] = embedded
        if normalize:
            embeddings = nn.functional.normalize(embeddings, dim=-1)
        if convert_to_numpy:
            embeddings = embeddings.cpu().numpy()
        return embeddings[0] if is_single else embeddings

    def encode_token_ids(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        prompt_lengths: Sequence[int] | None = None,
        max_tokens_per_batch: int | None = None,
        show_progress_bar: bool = False,
    ) -> torch.Tensor:
        """
        Like [`encode`], for sentences that are already tokenized, special tokens included. The means of the pooler
        leave out the first `prompt_lengths` tokens of the sentences.

        Returns:
            `torch.Tensor`: `(len(token_ids), d)` in float32, on the model's device.
        """
        with logging.tqdm(total=len(token_ids), desc="Encoding", disable=not show_progress_bar) as progress:
            return self._embed(token_ids, prompt_lengths, max_tokens_per_batch, progress)

    def pool_states(self, states: torch.Tensor) -> torch.Tensor:
        """
        Like [`encode`], from the states `(s, n, 2, h)` that [`encode_states`] returned.

        Returns:
            `torch.Tensor`: `(s, d)` in float32, on the model's device.
        """
        with _inference(self):
            parts = [part.to(self.input_device) for part in states.split(STATES_AT_ONCE)]
            return torch.cat([self(encoder_states=part).pooler_output.float() for part in parts])

    def _embed(
        self,
        token_ids: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int] | None,
        max_tokens_per_batch: int | None,
        progress: Any,
    ) -> torch.Tensor:
        def embed(**packed: torch.Tensor) -> torch.Tensor:
            return self(**packed).pooler_output

        shape = (self.embedding_dim,)
        return self._compute(embed, shape, token_ids, None, prompt_lengths, max_tokens_per_batch, progress)


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradient. Afterwards each module is in the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _check_sentences(sentences: Sequence[Any], may_be_pairs: bool = False) -> None:
    are_pairs = may_be_pairs and len(sentences) > 0 and isinstance(sentences[0], (tuple, list))
    for index, sentence in enumerate(sentences):
        if are_pairs and not (
            isinstance(sentence, (tuple, list))
            and len(sentence) == 2
            and all(isinstance(text, str) for text in sentence)
        ):
            raise ValueError(f"Sentence {index} must be a pair of str like the first one, got {sentence!r}")
        if not are_pairs and not isinstance(sentence, str):
            raise ValueError(f"Sentence {index} must be a str, got {type(sentence).__name__}: {sentence!r}")


def _batches_by_length(token_ids: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Batches of at most `max_tokens` tokens, longest sentences first so that memory runs out at once if at all."""
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
