"""Trains tokenizers: WordPiece or byte-level byte pairs, independent of the order of the texts."""

import json
from collections import Counter
from collections.abc import Callable, Iterator

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import BertTokenizer, PreTrainedTokenizerBase, RobertaTokenizer

from ...common.errors import InputError


# Encoders for which a tokenizer can be trained, by the kind of tokenizer.
WORDPIECE_MODELS = ("bert", "distilbert", "electra")
BYTE_LEVEL_MODELS = ("modernbert", "roberta")
DEFAULT_VOCAB_SIZE = 30_000
# In the order of their IDs in the published tokenizers of these encoders.
WORDPIECE_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTE_LEVEL_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# The default of tokenizers. Rarer letters become the unknown token.
MOST_LETTERS = 1000
# A word or pair that occurs only once is noise.
MIN_FREQUENCY = 2


def train_tokenizer(
    texts: Callable[[], Iterator[str]], model_type: str, vocab_size: int, show_progress: bool = False
) -> PreTrainedTokenizerBase:
    """
    Train the tokenizer of an encoder: WordPiece in lower case (BERT, DistilBERT, ELECTRA), or byte-level byte pairs
    that keep the case (RoBERTa, ModernBERT). The same texts in any order give the same tokenizer.

    Args:
        texts: returns all texts each time it is called.
        model_type: the name of the encoder in transformers.
        vocab_size: number of tokens, special tokens included.
        show_progress: whether to show a progress bar.

    Raises:
        InputError: the encoder has another kind of tokenizer, or the texts cannot have a vocabulary of this size.
    """
    if model_type in WORDPIECE_MODELS:
        train = _train_wordpiece
    elif model_type in BYTE_LEVEL_MODELS:
        train = _train_byte_level
    else:
        known = ", ".join(sorted(WORDPIECE_MODELS + BYTE_LEVEL_MODELS))
        raise InputError(
            f"--model_type {model_type}: no tokenizer can be trained for it (only for {known}); give --tokenizer_name"
        )
    tokenizer = train(texts, vocab_size, show_progress)
    if len(tokenizer) < vocab_size:
        raise InputError(
            f"--vocab_size {vocab_size}: the texts give only {len(tokenizer)} tokens; use at most this number, or "
            "more text"
        )
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"--vocab_size {vocab_size}: the letters of the texts and the special tokens alone are {len(tokenizer)}; "
            "use at least this number"
        )
    return tokenizer


def _train_wordpiece(texts: Callable[[], Iterator[str]], vocab_size: int, show_progress: bool) -> BertTokenizer:
    backend = BertTokenizer().backend_tokenizer
    normalize, pre_tokenize = backend.normalizer.normalize_str, backend.pre_tokenizer.pre_tokenize_str
    words: Counter[str] = Counter()
    for text in texts():
        words.update(normalize(text).split())
    letters: Counter[str] = Counter()
    inside: set[str] = set()
    for word, times in words.items():
        for piece, _ in pre_tokenize(word):
            letters.update(dict.fromkeys(piece, times))
            inside.update(piece[1:])
    kept = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:MOST_LETTERS])
    # tokenizers numbers the letters inside words in an order that changes from run to run, and breaks ties between
    # equally frequent pairs by these numbers. Listing the letters as special tokens makes the vocabulary reproducible.
    prefix = "##"
    special = [*WORDPIECE_SPECIAL_TOKENS, *kept, *(prefix + letter for letter in kept if letter in inside)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=special,
        initial_alphabet=kept,
        limit_alphabet=len(kept),
        continuing_subword_prefix=prefix,
        show_progress=show_progress,
    )
    backend.train_from_iterator(texts(), trainer)
    return BertTokenizer(vocab=json.loads(backend.to_str())["model"]["vocab"])


def _train_byte_level(texts: Callable[[], Iterator[str]], vocab_size: int, show_progress: bool) -> RobertaTokenizer:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(BYTE_LEVEL_SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    backend.train_from_iterator(texts(), trainer)
    model = json.loads(backend.to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
