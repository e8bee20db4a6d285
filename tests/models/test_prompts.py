"""`encode` with prompts and without a tokenizer argument, and what of it is saved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification

from modeling_layerpool import LayerPoolBertModel, load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.models import modeling_layerpool_texts
from tests.conftest import POOLER_TYPES, SENTENCES, assert_close_to


PROMPTS = {"query": "query: ", "document": "a long passage: "}
FILE = "config_sentence_transformers.json"
TEXTS = [*SENTENCES, "", "word " * 30]
# Of the poolers, those that read the means of tokens.
POOLERS_OF_MEANS = [name for name in POOLER_TYPES if name not in ("cls", "hire")]


@pytest.fixture
def folder():
    """A folder of sentence-transformers with prompts, whose mean leaves the prompt out."""

    def make(minilm, tmp_path, include_prompt=True, **settings):
        path = Path(shutil.copytree(minilm, tmp_path / "theirs"))
        (path / FILE).write_text(json.dumps({"prompts": PROMPTS} | settings))
        pooling = path / "1_Pooling" / "config.json"
        pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": include_prompt}))
        (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
        return str(path)

    return make


# --- prompts ---


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_folder_of_sentence_transformers_keeps_its_prompts(folder, minilm, tmp_path, include_prompt):
    path = folder(minilm, tmp_path, include_prompt, default_prompt_name="query")
    theirs = SentenceTransformer(path, device="cpu")
    model, tokenizer = load_layerpool(path, pooler_type="mean")
    assert model.config.include_prompt is include_prompt
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    saved = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    again = AutoModel.from_pretrained(tmp_path / "ours")
    unit = {"normalize": True}
    for own in (model, again):
        for embeddings, other in (
            (own.encode(TEXTS, prompt_name="query", **unit), theirs.encode_query(TEXTS)),
            (own.encode(TEXTS, prompt_name="document", **unit), theirs.encode_document(TEXTS)),
            (own.encode(TEXTS, **unit), theirs.encode(TEXTS)),  # the default prompt
            (own.encode(TEXTS, prompt="", **unit), theirs.encode(TEXTS, prompt="")),
            (own.encode(TEXTS, tokenizer, prompt="Other. ", **unit), theirs.encode(TEXTS, prompt="Other. ")),
            (saved.encode_query(TEXTS, normalize_embeddings=True), theirs.encode_query(TEXTS)),
            (saved.encode_document(TEXTS, normalize_embeddings=True), theirs.encode_document(TEXTS)),
        ):
            assert_close_to(embeddings, other, 1e-6)
    assert abs(model.encode("Layers!", prompt_name="query") - model.encode("Layers!", prompt="")).max() > 1e-2


@pytest.mark.parametrize("pooler_type", POOLERS_OF_MEANS)
@torch.no_grad()
def test_the_means_leave_out_the_tokens_of_the_prompt(tiny_model, tokenizer, pooler_type):
    model = tiny_model(pooler_type=pooler_type, prompts=PROMPTS, include_prompt=False).double()
    texts, prompt = ["the cat", "a dog sees the tree and the cat", "x"], PROMPTS["document"]
    left_out = len(tokenizer(prompt)["input_ids"]) - 1
    states = []
    for text in texts:
        ids = torch.tensor([tokenizer(prompt + text)["input_ids"]])
        hidden = model.bert(ids, output_hidden_states=True).hidden_states
        both = [torch.stack([hidden[i][0, 0], hidden[i][0, left_out:].mean(dim=0)]) for i in model.pooler.states]
        states.append(torch.stack(both))
    expected = model.pool_states(torch.stack(states))
    encoded = model.encode(texts, tokenizer, prompt=prompt, convert_to_numpy=False)
    assert_close_to(encoded, expected)
    assert_close_to(
        model.encode_states(texts, tokenizer, prompt=prompt, convert_to_numpy=False), torch.stack(states).float()
    )
    for side in ("left", "right"):
        inputs = tokenizer([prompt + text for text in texts], padding=True, padding_side=side, return_tensors="pt")
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        padded = model(**inputs, prompt_lengths=torch.full((len(texts),), left_out)).pooler_output
        assert_close_to(padded.float(), expected)
    one = torch.tensor([tokenizer(prompt + texts[0])["input_ids"]])
    assert_close_to(model(one, prompt_lengths=torch.tensor([left_out])).pooler_output.float(), expected[:1])


def test_a_text_of_which_all_tokens_are_left_out_is_zero_as_in_sentence_transformers(tiny_model):
    output = tiny_model(pooler_type="mean")(torch.tensor([[1, 2, 3]]), prompt_lengths=torch.tensor([9]))
    assert output.pooler_output.abs().max() == 0


def test_an_unknown_prompt_names_the_known_ones(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="prompt_name='passage' is unknown: those of this model are query, document"):
        tiny_model(prompts=PROMPTS).encode(["a"], tokenizer, prompt_name="passage")
    with pytest.raises(ValueError, match="prompt_name='query' is unknown: this model has no prompts"):
        tiny_model().encode(["a"], tokenizer, prompt_name="query")
    with pytest.raises(ValueError, match="not both"):
        tiny_model(prompts=PROMPTS).encode(["a"], tokenizer, prompt_name="query", prompt="query: ")


def test_pairs_have_no_prompts(tiny_model, tokenizer):
    model, pairs = tiny_model(prompts=PROMPTS, default_prompt_name="query"), [("a cat", "a dog")]
    plain = tiny_model().encode_states(pairs, tokenizer)
    np.testing.assert_array_equal(model.encode_states(pairs, tokenizer), plain)
    with pytest.raises(ValueError, match="Pairs have no prompts"):
        model.encode_states(pairs, tokenizer, prompt_name="query")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": "query: "}, "must be a dict of texts by name"),
        ({"prompts": {"query": None}}, "must be a dict of texts by name"),
        ({"default_prompt_name": "query"}, r"default_prompt_name='query' is none of the prompts \(none\)"),
        ({"prompts": PROMPTS, "default_prompt_name": "a"}, r"is none of the prompts \(query, document\)"),
        ({"include_prompt": "no"}, "include_prompt='no'"),
        ({"include_prompt": False, "pooler_type": "cls"}, "choose a pooler of means, or include_prompt=True"),
        ({"include_prompt": False, "pooler_type": "hire"}, "choose a pooler of means, or include_prompt=True"),
        (
            {"include_prompt": False, "pooler_type": "weighted_layers", "pooler_residual": "cls"},
            "choose a pooler of means",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_model, options, words):
    with pytest.raises(Exception, match=words):
        tiny_model(**options)


def test_left_out_tokens_need_means(tiny_model):
    with pytest.raises(ValueError, match="pooler_type='cls' has no token means for prompt_lengths"):
        tiny_model(pooler_type="cls")(torch.tensor([[1, 2]]), prompt_lengths=torch.tensor([1]))


# --- what is saved ---


def test_prompts_are_saved_where_sentence_transformers_reads_them_and_only_if_there_are_any(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()
    tiny_model(prompts=PROMPTS, default_prompt_name="query").save_pretrained(tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == {"prompts": PROMPTS, "default_prompt_name": "query"}
    (tmp_path / FILE).write_text(json.dumps({"prompts": PROMPTS, "truncate_dim": 8}))
    tiny_model().save_pretrained(tmp_path)  # an overwritten run leaves no prompts of the old one
    assert json.loads((tmp_path / FILE).read_text()) == {"truncate_dim": 8}
    (tmp_path / FILE).write_text(json.dumps({"prompts": PROMPTS}))
    tiny_model().save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()


def test_prompts_that_sentence_transformers_changes_and_saves_stay(tiny_model, tokenizer, tmp_path):
    tiny_model(prompts=PROMPTS).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    other = {"query": "ask: ", "document": "tell: "}
    SentenceTransformer(str(tmp_path / "ours"), prompts=other, device="cpu").save(str(tmp_path / "theirs"))
    assert SentenceTransformer(str(tmp_path / "theirs"), device="cpu").prompts == other
    assert load_layerpool(str(tmp_path / "theirs"))[0].config.prompts == other


def test_a_pooler_that_sentence_transformers_cannot_tell_the_prompt_is_saved_with_a_warning(
    tiny_model, tmp_path, caplog
):
    tiny_model(pooler_type="concat_layers", include_prompt=False).save_pretrained(tmp_path)
    assert "in spite of include_prompt=False" in caplog.text
    assert len(json.loads((tmp_path / "modules.json").read_text())) == 1


def test_a_classifier_reads_texts_without_prompts(folder, minilm, tmp_path):
    path = folder(minilm, tmp_path, include_prompt=False, default_prompt_name="query")
    config = load_layerpool(path, task="sequence-classification", pooler_type="cls")[0].config
    assert (config.prompts, config.default_prompt_name, config.include_prompt) == (None, None, True)


def test_an_include_prompt_that_the_pooler_cannot_honour_is_one_sentence(folder, minilm, tmp_path):
    path = folder(minilm, tmp_path, include_prompt=False)
    with pytest.raises(InputError, match=r"include_prompt=False .* choose a pooler of means, or include_prompt=True"):
        load_layerpool(path, pooler_type="cls")
    assert load_layerpool(path, pooler_type="cls", include_prompt=True)[0].config.include_prompt


# --- no tokenizer argument ---


def test_encode_needs_no_tokenizer_if_the_model_came_with_one(tiny_folder, tokenizer):
    opened, loaded = LayerPoolBertModel.from_pretrained(tiny_folder), load_layerpool(tiny_folder)[0]
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_folder)
    expected = opened.encode(TEXTS, tokenizer)
    for model in (opened, AutoModel.from_pretrained(tiny_folder), loaded):
        np.testing.assert_array_equal(model.encode(TEXTS), expected)
        np.testing.assert_array_equal(model.encode_states(TEXTS), opened.encode_states(TEXTS, tokenizer))
    np.testing.assert_array_equal(classifier.encode_states(TEXTS), opened.encode_states(TEXTS))


def test_the_models_tokenizer_is_the_one_that_load_layerpool_returned(tiny_folder):
    model, tokenizer = load_layerpool(tiny_folder)
    tokenizer.model_max_length = 8  # as a training sets it
    np.testing.assert_array_equal(model.encode("word " * 600), model.encode("word " * 6))


def test_the_tokenizer_changes_no_saved_file(tiny_folder, tmp_path):
    for name, use in (("before", False), ("after", True)):
        model = LayerPoolBertModel.from_pretrained(tiny_folder)
        if use:
            model.encode("a")
        model.save_pretrained(tmp_path / name)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("before", "after")]
    assert files[0] == files[1]
    assert all(
        (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes() for name in files[0]
    )


def test_the_tokenizer_comes_from_the_revision_of_the_weights_and_runs_no_code(tiny_folder, monkeypatch):
    asked = []

    class Noting:
        @staticmethod
        def from_pretrained(name, **options):
            asked.append((name, options))
            raise OSError("not here.\nAnd more")

    monkeypatch.setattr(modeling_layerpool_texts, "AutoTokenizer", Noting)
    model = LayerPoolBertModel.from_pretrained(tiny_folder, revision="main", token=None)
    with pytest.raises(ValueError, match=r"its tokenizer could not be opened \(not here\); pass one: encode\("):
        model.encode("a")
    assert asked == [(tiny_folder, {"trust_remote_code": False, "revision": "main"})]


def test_no_tokenizer_is_guessed(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="was not opened from a checkpoint, and so has no tokenizer; pass one"):
        tiny_model().encode("a")
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer.*; pass one: encode"):
        LayerPoolBertModel.from_pretrained(tmp_path).encode("a")
