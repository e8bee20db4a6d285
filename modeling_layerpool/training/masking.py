"""Which tokens are masked, and by what: BERT's rule, with draws that follow from a key and no random state."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from ..common.errors import InputError


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str = "the tokenizer") -> None:
    """Raise an `InputError` that begins with `name` if a tokenizer lacks a token that is needed here."""
    for kind in ("mask", "pad"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            raise InputError(f"{name}: has no {kind} token, and cannot be used for masked language modelling")


class TokenMasking:
    """
    Masks content tokens: 80 % of the chosen ones become the mask token, 10 % a random one, and 10 % stay.

    Args:
        tokenizer: the one that made the tokens.
        mlm_probability: share of the content tokens that are chosen, at least one.
        seed: with the key of a call it decides the masks.

    Raises:
        InputError: the tokenizer has no mask token, or none for padding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float = 0.15, seed: int = 0):
        check_special_tokens(tokenizer)
        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)
        self.special_ids = torch.tensor(tokenizer.all_special_ids)
        self.mask_token_id = tokenizer.mask_token_id
        self.seed = seed

    def is_content(self, input_ids: torch.Tensor) -> torch.Tensor:
        """True for what is no special token, as the unknown token and padding are."""
        return ~torch.isin(input_ids, self.special_ids)

    def __call__(
        self, input_ids: torch.Tensor, content: torch.Tensor, key: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The masked tokens, and the labels: the token that was there, -100 for what is not to be predicted.

        Args:
            input_ids (`torch.LongTensor` of any shape): the tokens.
            content (`torch.BoolTensor` of the same shape): those that may be masked.
            key: not negative; the same key draws the same masks.
        """
        state = np.random.SeedSequence((self.seed, *key)).generate_state(1)
        generator = self.collator.generator = torch.Generator().manual_seed(int(state[0]))
        masked, labels = self.collator.torch_mask_tokens(input_ids.clone(), ~content)
        places = content.flatten().nonzero().squeeze(-1)
        if len(places) > 0 and bool((labels == -100).all()):
            # The mean over no token at all is not a number.
            place = places[torch.randint(len(places), (), generator=generator)]
            labels.view(-1)[place], masked.view(-1)[place] = input_ids.flatten()[place], self.mask_token_id
        return masked, labels


def predicted_index(labels: torch.Tensor) -> torch.Tensor:
    """The indices of labels other than -100 in the flattened batch. On a device this is a synchronization."""
    return (labels.flatten() != -100).nonzero().squeeze(1)
