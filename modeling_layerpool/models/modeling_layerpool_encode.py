"""`encode`: from sentences to embeddings, in packed batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .modeling_layerpool_packing import pack_sentences


ENCODE_WINDOW = 16384  # sentences that are tokenized and sorted at once


class EncodeMixin:
    """The `encode` methods of a model whose output is the sentence embedding."""

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

        The sentences are sorted by length and packed, so that hardly any padding is computed. A text is truncated to
        the tokenizer's `model_max_length` and to the number of positions that the encoder has.

        Args:
            sentences (`str` or sequence of `str`):
                The texts. An empty text is embedded by its special tokens.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                The tokenizer of this checkpoint.
            max_tokens_per_batch (`int`, *optional*):
                Tokens computed at once, which bounds the memory. A longer text is a batch of its own. Defaults to 2048
                on a CPU, where a small batch stays in the cache, and to 16384 on an accelerator.
            normalize (`bool`, *optional*, defaults to `False`):
                Whether to scale each embedding to length 1.
            show_progress_bar (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.
            convert_to_numpy (`bool`, *optional*, defaults to `True`):
                Whether to return a float32 numpy array, or a tensor on the model's device.

        Returns:
            `(len(sentences), d)` in the order of `sentences`, or `(d,)` for a single `str`.

        Raises:
            ValueError: `max_tokens_per_batch` is not positive, or an item is not a string.
        """
        is_single = isinstance(sentences, str)
        if is_single:
            sentences = [sentences]
        for index, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise ValueError(f"Sentence {index} must be a str, got {type(sentence).__name__}: {sentence!r}")
        embeddings = torch.zeros(len(sentences), self.embedding_dim, device=self.input_device)
        with logging.tqdm(total=len(sentences), desc="Encoding", disable=not show_progress_bar) as progress:
            # A window bounds the memory for token ids, and is long enough for sorting by length to save time.
            for begin in range(0, len(sentences), ENCODE_WINDOW):
                window = sentences[begin : begin + ENCODE_WINDOW]
                token_ids = self._tokenize(window, tokenizer)
                embeddings[begin : begin + len(window)] = self._embed(token_ids, max_tokens_per_batch, progress)
        if normalize:
            embeddings = nn.functional.normalize(embeddings, dim=-1)
        if convert_to_numpy:
            embeddings = embeddings.cpu().numpy()
        return embeddings[0] if is_single else embeddings

    def encode_token_ids(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        max_tokens_per_batch: int | None = None,
        show_progress_bar: bool = False,
    ) -> torch.Tensor:
        """
        Like [`encode`], for sentences that are already tokenized, special tokens included.

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
