"""Pieces of texts, as another view of them, with draws that depend on a key and not on a random state."""

from collections.abc import Sequence

import numpy as np


class Cropping:
    """
    Keeps one piece of each text, at a random place, between the special tokens at its ends.

    Args:
        share: length of the piece, as a share of the text's own tokens; at least one token.
        special_ids: the special tokens.
        seed: seed of the places, together with the key of a call.
    """

    def __init__(self, share: float, special_ids: Sequence[int], seed: int = 0):
        self.share, self.special_ids, self.seed = share, frozenset(special_ids), seed

    def __call__(self, texts: Sequence[Sequence[int]], key: Sequence[int], leading: int = 0) -> list[list[int]]:
        """
        The pieces of tokenized texts.

        Args:
            texts: the tokens of each text, special ones included.
            key: numbers of at least 0; the same key draws the same places.
            leading: tokens at the beginning that every piece keeps, those of a prompt.
        """
        draw = np.random.default_rng((self.seed, *key))
        pieces = []
        for ids in texts:
            begin, end = leading, len(ids)
            while begin < end and ids[begin] in self.special_ids:
                begin += 1
            while end > begin and ids[end - 1] in self.special_ids:
                end -= 1
            length = max(1, round(self.share * (end - begin)))
            first = begin + draw.integers(max(1, end - begin - length + 1))
            pieces.append([*ids[:begin], *ids[first : min(first + length, end)], *ids[end:]])
        return pieces
