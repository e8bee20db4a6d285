"""BERT's masking of tokens, with draws that depend on a key and not on a random state."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from ..common.errors import InputError


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str = "the tokenizer") -> None:
    """Raise an `InputError` that begins with `name` if a tokenizer has no mask token or no token for padding."""
    for kind in ("mask", "pad"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            raise InputError(f"{name}: has no {kind} token, and cannot be used for masked language modeling")


class TokenMasking:
    """
    Masks content tokens: of the chosen tokens 80 % become the mask token, 10 % a random token, and 10 % stay.

    Args:
        tokenizer: the tokenizer of the texts.
        mlm_probability: share of the content tokens that are chosen; at least one is.
        seed: seed of the masks, together with the key of a call.

    Raises:
        InputError: the tokenizer has no mask token or no token for padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float = 0.15, seed: int = 0):
        check_special_tokens(tokenizer)
        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)
        self.special_ids = torch.tensor(tokenizer.all_special_ids)
        self.mask_token_id = tokenizer.mask_token_id
        self.seed = seed

    def is_content(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Whether a token is not special; the unknown token and padding are special."""
        return ~torch.isin(input_ids, self.special_ids)

    def __call__(
        self, input_ids: torch.Tensor, content: torch.Tensor, key: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The masked tokens, and the labels: the original token, or -100 if it is not predicted.

        Args:
            input_ids (`torch.LongTensor` of any shape): the tokens.
            content (`torch.BoolTensor` of the same shape): whether a token may be masked.
            key: numbers of at least 0; the same key draws the same masks.
        """
        state = np.random.SeedSequence((self.seed, *key)).generate_state(1)
        generator = self.collator.generator = torch.Generator().manual_seed(int(state[0]))
        masked, labels = self.collator.torch_mask_tokens(input_ids.clone(), ~content)
        content_index = content.flatten().nonzero().squeeze(-1)
        if len(content_index) > 0 and bool((labels == -100).all()):
            # The mean loss over no token is not a number.
            index = content_index[torch.randint(len(content_index), (), generator=generator)]
            labels.view(-1)[index], masked.view(-1)[index] = input_ids.flatten()[index], self.mask_token_id
        return masked, labels


def predicted_index(labels: torch.Tensor) -> torch.Tensor:
    """The indices of labels other than -100 in the flattened batch. On a device this is a synchronization."""
    return (labels.flatten() != -100).nonzero().squeeze(1)
