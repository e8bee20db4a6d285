"""Prompts in training: in the tokens of a batch, in the model that is kept, and in its evaluation."""

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import RobertaProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoModel, PreTrainedTokenizerFast

from modeling_layerpool.common.command_line import read_arguments
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import evaluate_retrieval, evaluate_sts, load_encoder
from modeling_layerpool.evaluation.development import development_evaluator
from modeling_layerpool.evaluation.retrieval import read_retrieval_folder
from modeling_layerpool.evaluation.sts import read_sts_file
from modeling_layerpool.training import ContrastiveTrainer, ContrastiveTrainingArguments
from modeling_layerpool.training.batching import chunks_of, model_inputs
from modeling_layerpool.training.contrastive.prompts import kept_prompts, parse_prompts, prompts_by_column
from tests.conftest import assert_close_to
from tests.evaluation.data import write_pairs, write_retrieval
from tests.training.conftest import triplets


PROMPTS = {"anchor": "find: ", "positive": "a long passage: "}
BY_COLUMN = PROMPTS | {"negative": PROMPTS["positive"]}


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


def rows_of(batch):
    return [triplets(14)[number] for number in batch["row_numbers"]]


def embeddings_of(trainer, batch):
    """`(b, c, h)`, as the step of the trainer computes them."""
    model = trainer.model.eval()
    embeddings = torch.cat([model(**model_inputs(chunk)).pooler_output for chunk in chunks_of(batch)])
    embeddings = embeddings[batch["sentence_indices"]] if "sentence_indices" in batch else embeddings
    return embeddings.view(*batch["text_ids"].shape, -1)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("gradient_cache", [None, 64])
@torch.no_grad()
def test_a_batch_is_embedded_as_encode_embeds_its_texts_with_their_prompts(
    make_trainer, tokenizer, include_prompt, gradient_cache
):
    options = {"prompts": PROMPTS, "include_prompt": include_prompt, "gradient_cache": gradient_cache}
    trainer = make_trainer(**options)
    batch = batch_of(trainer)
    assert ("chunks" in batch) == (gradient_cache is not None)
    embeddings = embeddings_of(trainer, batch)
    for index, (column, prompt) in enumerate(BY_COLUMN.items()):
        texts = [row[column] for row in rows_of(batch)]
        expected = trainer.model.encode(texts, tokenizer, prompt=prompt, convert_to_numpy=False)
        assert_close_to(embeddings[:, index], expected)
        if include_prompt:
            assert (
                trainer.train_dataset[batch["row_numbers"][0]][f"{column}_input_ids"]
                == (tokenizer(prompt + texts[0])["input_ids"])
            )


def test_prompts_count_in_the_length_of_a_text_but_not_in_its_identity(make_trainer, tokenizer):
    rows = [{"anchor": f"the cat {i}", "positive": f"the cat {(i + 1) % 4} " + "word " * 50} for i in range(4)]
    rows += [{"anchor": f"the dog {i}", "positive": f"the dog {i}"} for i in range(4)]
    trainer = make_trainer(
        train_dataset=Dataset.from_list(rows), prompts=PROMPTS, max_seq_length=16, per_device_train_batch_size=8
    )
    assert max(len(ids) for ids in trainer.train_dataset["positive_input_ids"]) == 16
    batch = batch_of(trainer)
    for number, (anchor, positive) in zip(batch["row_numbers"], batch["text_ids"].tolist(), strict=True):
        assert (anchor == positive) == (number >= 4)
    doubled = make_trainer(train_dataset=Dataset.from_list(rows[4:] * 2), prompts=PROMPTS, no_duplicates=True)
    for batch in doubled.get_train_dataloader():
        assert len(set(batch["text_ids"].flatten().tolist())) == len(batch["text_ids"])


def test_texts_of_one_word_differ_after_a_prompt_whose_space_belongs_to_the_word(tiny_model, tmp_path):
    """As in RoBERTa: "find: cat" begins with as many tokens as "find: " has, and "cat" is in the last of them."""
    words = Tokenizer(BPE(unk_token="<unk>"))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words.train_from_iterator(["find: cat dog tree river", "cat dog"] * 9, BpeTrainer(special_tokens=special))
    words.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **names)
    assert len(tokenizer("find: ")["input_ids"]) == len(tokenizer("find: cat")["input_ids"])

    rows = [{"anchor": word, "positive": word} for word in ("cat", "dog", "tree", "river")]
    arguments = ContrastiveTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, prompts=PROMPTS | {"positive": "a find: "}
    )
    trainer = ContrastiveTrainer(
        tiny_model(pooler_type="mean"), arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    text_ids = batch_of(trainer)["text_ids"]
    assert text_ids[:, 0].equal(text_ids[:, 1])
    assert len(text_ids.unique()) == len(rows)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_stored_states_of_a_frozen_encoder_give_the_same_loss(make_trainer, include_prompt):
    losses = []
    for cache in ("float32", "off"):
        torch.manual_seed(0)
        trainer = make_trainer(
            name=f"{cache}-{include_prompt}",
            prompts=PROMPTS,
            include_prompt=include_prompt,
            freeze_encoder=True,
            max_steps=2,
            **({"state_cache": "off"} if cache == "off" else {"state_cache": "float32"}),
        )
        # The states of a text do not know how many of its tokens to leave out.
        assert (trainer.frozen is not None) == (include_prompt and cache != "off")
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_neighbours_are_searched_among_texts_with_their_prompts(make_trainer, tokenizer):
    trainer = make_trainer(prompts=PROMPTS, include_prompt=False, shuffling="neighbours")
    texts = [row["anchor"] for row in triplets(14)]
    expected = trainer.model.encode(texts, tokenizer, prompt=PROMPTS["anchor"], convert_to_numpy=False)
    assert_close_to(trainer.embed(list(trainer.train_dataset["anchor_input_ids"])), expected)


# --- what the model keeps ---


@pytest.mark.parametrize(
    ("columns", "prompts", "kept", "default"),
    [
        (["anchor", "positive"], {"anchor": "q: ", "positive": "d: "}, {"query": "q: ", "document": "d: "}, None),
        (["anchor", "positive", "negative"], {"anchor": "q: "}, {"query": "q: ", "document": ""}, None),
        (["anchor", "positive"], {"anchor": "p: ", "positive": "p: "}, {"query": "p: ", "document": "p: "}, "query"),
        (["text", "text"], {"text": "p: "}, {"query": "p: ", "document": "p: "}, "query"),
        (["sentence1", "sentence2"], {"sentence2": "d: "}, {"query": "", "document": "d: "}, None),
        (["anchor", "positive"], {}, None, None),
    ],
)
def test_the_model_keeps_the_prompts_of_its_two_sides(columns, prompts, kept, default):
    assert kept_prompts(prompts_by_column(prompts, columns), columns) == (kept, default)


def test_a_negative_has_the_prompt_of_the_positives_unless_it_has_its_own():
    columns = ["anchor", "positive", "negative_1", "negative_2"]
    assert prompts_by_column({"positive": "d: "}, columns) == dict.fromkeys(columns[1:], "d: ")
    given = {"positive": "d: ", "negative": "n: ", "negative_2": "m: "}
    assert prompts_by_column(given, columns) == {"positive": "d: ", "negative_1": "n: ", "negative_2": "m: "}


def test_the_saved_model_and_a_next_training_have_the_prompts(make_trainer):
    trainer = make_trainer(prompts=PROMPTS)
    trainer.save_model()
    saved = AutoModel.from_pretrained(trainer.args.output_dir)
    assert saved.config.prompts == {"query": "find: ", "document": "a long passage: "}
    assert make_trainer(name="next", model=saved).prompts.by_column == BY_COLUMN
    pairs = [{"sentence1": "a cat", "sentence2": f"a dog {i}", "score": i} for i in range(4)]
    scored = make_trainer(name="scored", model=saved, train_dataset=Dataset.from_list(pairs), objective="pairwise")
    assert scored.prompts.by_column == {}  # as in an evaluation of such pairs
    dropped = make_trainer(name="none", model=saved, prompts=["none"])
    assert (dropped.prompts.by_column, saved.config.prompts) == ({}, None)


def test_development_data_are_evaluated_with_the_prompts_as_the_saved_model_is(make_trainer, tokenizer, tmp_path):
    folder, pairs = write_retrieval(tmp_path / "retrieval"), write_pairs(tmp_path / "dev.jsonl")
    texts = [{"text": row["anchor"]} for row in triplets(8)]
    for name, options in (
        ("anchor", {"prompts": PROMPTS}),
        ("left_out", {"prompts": PROMPTS, "include_prompt": False}),
        (
            "text",
            {"prompts": {"text": "the cat: "}, "train_dataset": Dataset.from_list(texts), "objective": "unsupervised"},
        ),
    ):
        trainer = make_trainer(name=name, **options)
        trainer.save_model()
        encoder = load_encoder(trainer.args.output_dir, device="cpu")
        expected = evaluate_retrieval(encoder, *read_retrieval_folder(folder))
        expected |= evaluate_sts(encoder, *read_sts_file(pairs))
        for frozen in (False, True):
            trainer.model.base_model.requires_grad_(not frozen)
            measured = {}
            for path in (folder, pairs):
                measured |= development_evaluator(path)[0](trainer.model, tokenizer)
            assert measured == pytest.approx(expected, abs=1e-3), (name, frozen)
        with_prompt = encoder.encode(["a cat"])
        plain = trainer.model.encode(["a cat"], tokenizer, prompt="")
        assert np.allclose(with_prompt, plain) == (name != "text")


# --- bad input ---


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["query: "], "'query: ' must be NAME=TEXT, such as anchor='query: '"),
        (["anchor="], "the prompt of 'anchor' must be a text, got ''; leave it out"),
        (["anchor=  "], "the prompt of 'anchor' must be a text"),
        (["anchor=a", "anchor=b"], "'anchor' is given twice"),
        (['{"anchor": 1}'], "the prompt of 'anchor' must be a text, got 1"),
        (["{anchor"], "prompts: not valid JSON"),
        ({"anchor": None}, "the prompt of 'anchor' must be a text, got None"),
    ],
)
def test_prompts_of_another_form_are_refused(prompts, words, tmp_path):
    with pytest.raises(InputError) as error:
        ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, prompts=prompts)
    assert words in str(error.value)


def test_prompts_come_as_flags_from_a_file_and_from_python(tmp_path, monkeypatch):
    path = tmp_path / "arguments.yaml"
    path.write_text(yaml.safe_dump({"output_dir": "run", "use_cpu": True, "prompts": PROMPTS}))
    flags = ["--output_dir=run", "--use_cpu", "--prompts", *(f"{name}={text}" for name, text in PROMPTS.items())]
    for words in ([str(path)], flags):
        monkeypatch.setattr("sys.argv", ["script", *words])
        (args,) = read_arguments(ContrastiveTrainingArguments, description="")
        assert args.prompts == PROMPTS
    assert parse_prompts(["anchor=a=b"]) == {"anchor": "a=b"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"prompts": {"query": "query: "}},
            "the column 'query' is not read; the columns here are anchor, positive, negative",
        ),
        (
            {"prompts": {"anchor": "word " * 40}, "max_seq_length": 16},
            "leaves none for the text itself; raise max_seq",
        ),
        ({"include_prompt": False}, "include_prompt does nothing without prompts"),
        ({"prompts": PROMPTS, "include_prompt": False, "cls": True}, "choose a pooler of means"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(make_trainer, tiny_model, options, words):
    if options.pop("cls", False):
        options["model"] = tiny_model(pooler_type="cls")
    with pytest.raises(InputError) as error:
        make_trainer(**options)
    assert words in str(error.value)


def test_prompts_without_rows_are_refused(tiny_model, tokenizer, tmp_path):
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, prompts=PROMPTS)
    with pytest.raises(InputError, match="prompts and include_prompt do nothing without rows to train or evaluate on"):
        ContrastiveTrainer(tiny_model(), args, processing_class=tokenizer, evaluator=lambda *given: {})
