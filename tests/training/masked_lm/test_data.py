"""Texts in blocks, masks, tokenizers: what every batch of masked language modelling must hold."""

from collections import Counter
from itertools import chain

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
)

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training.masked_lm.blocks import (
    BLOCK_PACKINGS,
    PACKERS,
    BlockCollator,
    BlockReader,
    BlockSampler,
    StreamedBlocks,
)
from modeling_layerpool.training.masked_lm.models import new_config
from modeling_layerpool.training.masked_lm.texts import load_texts, tokenize_texts
from modeling_layerpool.training.masked_lm.tokenizer import train_tokenizer
from modeling_layerpool.training.masked_lm.trainer import MaskedLanguageArguments, MaskedLanguageTrainer
from tests.conftest import assert_close_to
from tests.training.conftest import WORDS


LENGTH = 16
SENTENCES = [" ".join(WORDS[(row + place) % len(WORDS)] for place in range(row % 7 + 1)) for row in range(60)]


def texts_of(sentences):
    return Dataset.from_dict({"text": sentences})


@pytest.fixture(scope="module")
def word_tokenizer():
    """A small WordPiece tokenizer that knows the words of the tests."""
    return train_tokenizer(lambda: iter(SENTENCES), "bert", 80)


lengths_and_packing = {
    "lengths": st.lists(st.integers(1, LENGTH), min_size=1, max_size=60),
    "packing": st.sampled_from(BLOCK_PACKINGS),
}


# --- blocks ---


@given(**lengths_and_packing)
def test_every_token_is_laid_once_and_no_block_is_too_full(lengths, packing):
    blocks = PACKERS[packing](lengths, LENGTH)
    assert all(0 < sum(span.end - span.begin for span in spans) <= LENGTH for spans in blocks)
    laid = Counter((span.text, place) for spans in blocks for span in spans for place in range(span.begin, span.end))
    assert laid == Counter((text, place) for text, tokens in enumerate(lengths) for place in range(tokens))
    if packing == "pack":
        assert all(span == (span.text, 0, lengths[span.text]) for spans in blocks for span in spans)
    else:
        assert all(sum(span.end - span.begin for span in spans) == LENGTH for spans in blocks[:-1])


@given(**lengths_and_packing, per_process=st.integers(1, 4), world_size=st.integers(1, 3), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_text_once_over_all_processes(lengths, packing, per_process, world_size, epoch):
    samplers = [
        BlockSampler(lengths, LENGTH, packing, per_process * world_size, rank=rank, world_size=world_size, seed=3)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in samplers]
    assert {len(own) for own in batches} == {len(samplers[0])}
    blocks = [block for own in batches for batch in own for block in batch]
    assert len({block.key for block in blocks}) == len(blocks)
    assert all(batch for own in batches for batch in own)
    left_out = samplers[0].rows - len(blocks)
    assert left_out < world_size
    laid = Counter((span.text, place) for block in blocks for span in block.spans for place in range(*span[1:]))
    assert set(laid.values()) <= {1}
    if left_out == 0:
        assert len(laid) == sum(lengths)


def test_each_epoch_lays_the_texts_anew_and_the_same_epoch_the_same_way():
    def batches(epoch, seed=1):
        sampler = BlockSampler([5, 7, 3, 9, 11, 4, 8, 6], LENGTH, "pack", 2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1) == batches(1)
    assert batches(0) != batches(1)
    assert batches(0) != batches(0, seed=2)


# --- tokens ---


@given(
    sentences=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=40), min_size=1, max_size=8),
    length=st.integers(3, 20),
)
def test_long_texts_are_cut_into_pieces_of_which_none_is_lost(word_tokenizer, sentences, length):
    tokenizer = word_tokenizer
    sentences = [" ".join(words) for words in sentences]
    rows = tokenize_texts(texts_of(sentences), tokenizer, length, "texts")
    assert max(rows["length"]) <= length
    assert rows["length"][:] == [len(ids) for ids in rows["input_ids"]]
    for ids in rows["input_ids"]:
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    inside = [token for ids in rows["input_ids"] for token in ids[1:-1]]
    whole = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    assert inside == list(chain.from_iterable(whole))


def test_texts_without_any_token_are_left_out(word_tokenizer):
    rows = tokenize_texts(texts_of(["red", "", None, "  ", "\u200b", "dog"]), word_tokenizer, None, "texts")
    assert len(rows) == 2


# --- batches ---


def blocks_of(tokenizer, sentences, length=LENGTH, packing="pack", **options):
    rows = tokenize_texts(texts_of(sentences), tokenizer, length if packing == "pack" else None, "texts")
    sampler = BlockSampler(rows["length"][:], length, packing, 1000, **options)
    (batch,) = sampler
    return rows, batch, BlockReader(rows, len(batch)).__getitems__(batch)


@given(
    sentences=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), min_size=1, max_size=12),
    packing=st.sampled_from(BLOCK_PACKINGS),
    within=st.booleans(),
)
def test_a_batch_knows_its_texts_and_masks_nothing_but_content(word_tokenizer, sentences, packing, within):
    tokenizer = word_tokenizer
    rows, blocks, features = blocks_of(tokenizer, [" ".join(words) for words in sentences], packing=packing)
    batch = BlockCollator(tokenizer, LENGTH, 0.5, attend_within_documents=within)(features)
    ids, labels, sequences, content = (batch[name] for name in ("input_ids", "labels", "sequence_ids", "content"))
    assert {value.shape for value in batch.values()} == {(len(blocks), LENGTH)}
    original = torch.where(labels == -100, ids, labels)
    special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
    assert content.equal((sequences >= 0) & ~special)
    assert not (labels != -100)[~content].any()
    assert (labels != -100).any(dim=1).equal(content.any(dim=1))
    assert (original[sequences < 0] == tokenizer.pad_token_id).all()
    # Each sequence is one span of one text, in one piece, and its number occurs nowhere else.
    number = 0
    for row, block in enumerate(blocks):
        place = 0
        for span in block.spans:
            end = place + span.end - span.begin
            assert original[row, place:end].tolist() == rows[span.text]["input_ids"][span.begin : span.end]
            assert (sequences[row, place:end] == number).all()
            if within:
                assert batch["position_ids"][row, place:end].tolist() == list(range(end - place))
            number, place = number + 1, end
        assert (sequences[row, place:] == -1).all()
    assert ("attention_mask" in batch) != within
    if not within:
        assert batch["attention_mask"].equal((sequences >= 0).long())


def test_of_the_masked_tokens_four_fifths_are_the_mask_one_tenth_random_one_tenth_the_same(word_tokenizer):
    tokenizer = word_tokenizer
    *_, features = blocks_of(tokenizer, [" ".join(WORDS * 7)] * 300, length=128)
    *_, originals = blocks_of(tokenizer, [" ".join(WORDS * 7)] * 300, length=128)
    batch = BlockCollator(tokenizer, 128)(features)
    ids, labels, content = batch["input_ids"], batch["labels"], batch["content"]
    masked = labels != -100
    count = masked.sum().item()
    assert count > 4000
    assert count / content.sum().item() == pytest.approx(0.15, abs=0.01)
    is_mask = (ids == tokenizer.mask_token_id)[masked].float().mean().item()
    is_same = (ids == labels)[masked].float().mean().item()
    random_hits = 0.1 / len(tokenizer)  # a random token may be the mask, or the token itself
    assert is_mask == pytest.approx(0.8 + random_hits, abs=0.02)
    assert is_same == pytest.approx(0.1 + random_hits, abs=0.02)
    assert 1 - is_mask - is_same == pytest.approx(0.1, abs=0.02)
    assert [block["sequences"] for block in features] == [block["sequences"] for block in originals]  # left alone


def test_masks_follow_from_seed_and_block_not_from_batch_or_random_state(word_tokenizer):
    *_, features = blocks_of(word_tokenizer, SENTENCES)
    collator = BlockCollator(word_tokenizer, LENGTH, seed=1)
    whole = collator(features)
    torch.manual_seed(9)
    halves = [collator(features[:3]), collator(features[3:])]
    assert whole["labels"].equal(torch.cat([half["labels"] for half in halves]))
    assert whole["input_ids"].equal(torch.cat([half["input_ids"] for half in halves]))
    other = BlockCollator(word_tokenizer, LENGTH, seed=2)(features)
    assert not whole["labels"].equal(other["labels"])
    next_epoch = [block | {"key": (1, block["key"][1])} for block in features]
    assert not whole["labels"].equal(collator(next_epoch)["labels"])


def test_data_workers_change_nothing(word_tokenizer):
    rows = tokenize_texts(texts_of(SENTENCES), word_tokenizer, LENGTH, "texts")

    def batches(workers):
        sampler = BlockSampler(rows["length"][:], LENGTH, "pack", 4, seed=1)
        collator = BlockCollator(word_tokenizer, LENGTH)
        return list(DataLoader(BlockReader(rows, 0), batch_sampler=sampler, collate_fn=collator, num_workers=workers))

    for own, other in zip(batches(0), batches(2), strict=True):
        assert all(own[name].equal(other[name]) for name in own)


# --- streams ---


@pytest.mark.parametrize("packing", BLOCK_PACKINGS)
def test_a_stream_is_shared_by_the_processes_and_loses_nothing(word_tokenizer, packing):
    stream = IterableDataset.from_generator(lambda: iter([{"text": text} for text in SENTENCES]))
    rows = tokenize_texts(stream, word_tokenizer, LENGTH if packing == "pack" else None, "texts")

    def read(batches, rank=0, world_size=1):
        iterator = iter(StreamedBlocks(rows, LENGTH, packing, 2, rank, world_size, seed=1))
        return [next(iterator) for _ in range(batches)]

    alone = read(40)
    assert all(len(batch) == 2 for batch in alone)
    shares = [read(40, rank, 2) for rank in range(2)]
    assert alone == [first + second for first, second in zip(*shares, strict=True)]
    assert len({block["key"] for batch in alone for block in batch}) == 80
    tokens = Counter(token for batch in alone for block in batch for text in block["sequences"] for token in text)
    once = Counter(chain.from_iterable(row["input_ids"] for row in rows))
    epochs = tokens.total() / once.total()
    assert epochs > 2
    # What waits for a full block is a few batches; all else was read as often as the stream was.
    assert all(abs(tokens[token] - epochs * times) <= 0.5 * times + 20 for token, times in once.items())
    used = [sum(map(len, block["sequences"])) for batch in alone for block in batch]
    assert max(used) <= LENGTH
    assert sum(used) / len(used) > 0.9 * LENGTH


def test_a_stream_without_texts_ends_with_an_error(word_tokenizer):
    stream = IterableDataset.from_generator(lambda: iter([{"text": ""}]))
    rows = tokenize_texts(stream, word_tokenizer, LENGTH, "texts")
    with pytest.raises(InputError, match="no text"):
        next(iter(StreamedBlocks(rows, LENGTH, "pack", 2)))


def test_several_files_are_one_corpus(tmp_path):
    (tmp_path / "a.txt").write_text("red\n\nblue\n")
    (tmp_path / "b.jsonl").write_text('{"text": "green", "other": 1}\n')
    paths = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    assert load_texts(paths)["text"][:] == ["red", "blue", "green"]
    assert [row["text"] for row in load_texts(paths, streaming=True)] == ["red", "blue", "green"]


# --- tokenizers ---


@pytest.mark.parametrize(
    ("model_type", "specials"),
    [
        ("bert", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        ("electra", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        ("roberta", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        ("modernbert", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    ],
)
def test_a_trained_tokenizer_is_saved_and_opened_whole(model_type, specials, tmp_path):
    size = 80 if "[PAD]" in specials else 300
    tokenizer = train_tokenizer(lambda: iter(SENTENCES), model_type, size)
    assert len(tokenizer) == size
    assert tokenizer.convert_ids_to_tokens(range(5)) == specials
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert set(opened.all_special_tokens) == set(specials)
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(opened, f"{name}_token") == getattr(tokenizer, f"{name}_token") != None  # noqa: E711
    text = "red dogs, and a cat: ζ"
    assert opened(text)["input_ids"] == tokenizer(text)["input_ids"]
    ids = opened("red dog")["input_ids"]
    assert (ids[0], ids[-1]) == (opened.cls_token_id, opened.sep_token_id)
    assert opened.decode(ids, skip_special_tokens=True) == "red dog"
    assert opened("red", "dog")["input_ids"][0] == opened.cls_token_id


@pytest.mark.parametrize(("model_type", "size"), [("bert", 80), ("roberta", 300)])
def test_the_same_texts_make_the_same_tokenizer(model_type, size):
    tokenizers = [
        train_tokenizer(lambda texts=texts: iter(texts), model_type, size)
        for texts in (SENTENCES, SENTENCES, SENTENCES[::-1])
    ]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab() == tokenizers[2].get_vocab()


@pytest.mark.parametrize(
    ("model_type", "size", "message"),
    [
        ("bert", 5000, "the texts give only"),
        ("bert", 10, "the letters of the texts and the special tokens alone are"),
        ("roberta", 5000, "the texts give only"),
        ("albert", 80, "no tokenizer can be trained for it"),
    ],
)
def test_a_vocabulary_that_the_texts_cannot_have_is_refused(model_type, size, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(lambda: iter(SENTENCES), model_type, size)


# --- models ---


def test_overrides_change_the_configuration():
    config = new_config("bert", "hidden_size=32,hidden_act=relu,hidden_dropout_prob=0.2,is_decoder=false")
    assert (config.hidden_size, config.hidden_act, config.hidden_dropout_prob) == (32, "relu", 0.2)
    assert new_config("distilbert", "hidden_size=32").dim == 32


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_with_attention_inside_documents_other_texts_of_the_block_do_not_matter(kind, word_tokenizer, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    small |= {"vocab_size": len(word_tokenizer), "pad_token_id": 0}
    classes = {
        "bert": (BertConfig, BertForMaskedLM),
        "roberta": (RobertaConfig, RobertaForMaskedLM, RoFormerConfig, RoFormerForMaskedLM),
    }[kind]
    torch.manual_seed(0)
    model = classes[1](classes[0](**small)).eval()
    arguments = MaskedLanguageArguments(
        output_dir=str(tmp_path), max_seq_length=LENGTH, attend_within_documents=True, use_cpu=True, objective="mlm"
    )
    trainer = MaskedLanguageTrainer(model, arguments, processing_class=word_tokenizer)

    def logits(sentences):
        # In one block, in this order, and nothing masked.
        ids = word_tokenizer(sentences)["input_ids"]
        batch = trainer.data_collator([{"key": (0,), "sequences": ids}])
        batch["input_ids"] = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        return trainer.compute_loss(model, batch, return_outputs=True)[1]["logits"][0]

    with torch.no_grad():
        one, other = logits(["red dog", "big cat"]), logits(["green house", "big cat"])
        alone = logits(["big cat"])
    first = len(word_tokenizer("red dog")["input_ids"])
    assert len(word_tokenizer("green house")["input_ids"]) == first
    second = slice(first, first + len(word_tokenizer("big cat")["input_ids"]))
    assert_close_to(one[second], other[second])
    assert_close_to(one[second], alone[: second.stop - first])
    assert not torch.allclose(one[:first], other[:first], atol=1e-3)


def test_a_model_without_positions_does_not_attend_within_documents(word_tokenizer, tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 37}
    model = RoFormerForMaskedLM(RoFormerConfig(**small, vocab_size=len(word_tokenizer)))
    options = {"output_dir": str(tmp_path), "max_seq_length": LENGTH, "use_cpu": True}
    MaskedLanguageTrainer(model, MaskedLanguageArguments(**options), processing_class=word_tokenizer)
    arguments = MaskedLanguageArguments(**options, attend_within_documents=True)
    with pytest.raises(InputError, match="takes no positions"):
        MaskedLanguageTrainer(model, arguments, processing_class=word_tokenizer)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(word_tokenizer, tmp_path):
    model = BertForMaskedLM(BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
    arguments = MaskedLanguageArguments(str(tmp_path), max_seq_length=LENGTH, use_cpu=True)
    with pytest.raises(InputError, match="the tokenizer has 80 tokens, but the model only 50"):
        MaskedLanguageTrainer(model, arguments, processing_class=word_tokenizer)
