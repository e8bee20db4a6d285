"""Heads without their encoder: they answer as the whole model does, in one forward pass, and fit no other encoder."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_layerpool import load_heads, load_layerpool, save_head
from modeling_layerpool.common import head_files
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.models.modeling_layerpool_poolers import POOLERS
from tests.conftest import ENCODERS, SENTENCES, assert_close_to


SEPARABLE = [name for name, pooler in POOLERS.items() if not pooler.reads_tokens]
PAIRS = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[1], SENTENCES[2])]
CLASSES = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
TASKS = {
    "single_label_classification": CLASSES,
    "multi_label_classification": CLASSES,
    "regression": {"id2label": {0: "score"}, "label2id": {"score": 0}},
}


def randomize(*modules):
    """Other weights than those that a new module starts with, which may be zero."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.normal_(std=0.3)


@pytest.fixture
def classifier(tiny_folder):
    """Makes a classifier on the encoder in `tiny_folder`, as if it was trained with the encoder frozen."""

    def make(problem_type="single_label_classification", **options):
        defaults = {"problem_type": problem_type, "pooler_type": "layer_attention", "projection_dim": None}
        options = TASKS[problem_type] | defaults | options
        model, _ = load_layerpool(tiny_folder, task="sequence-classification", **options)
        randomize(model.pooler, model.classifier)
        return model.eval()

    return make


@pytest.fixture
def saved(classifier, tokenizer, tiny_folder, tmp_path):
    """Makes a classifier, saves its head in a folder of this name, and returns both."""

    def save(name="head", text_columns=("text",), encoder=tiny_folder, **options):
        model = classifier(**options)
        save_head(model, tokenizer, tmp_path / name, encoder=encoder, text_columns=text_columns)
        return model, tmp_path / name

    return save


def logits_of(model, tokenizer, texts):
    """Of the whole model, by its plain forward pass, one text at a time."""
    with torch.no_grad():
        texts = [text if isinstance(text, tuple) else (text,) for text in texts]
        return torch.cat([model(**tokenizer(*text, truncation=True, return_tensors="pt")).logits for text in texts])


def logits_of_heads(heads, texts):
    return {head.name: logits for head, logits in heads._logits(texts, None)}


# --- the same answers as the whole model ---


@pytest.mark.parametrize("pooler_type", SEPARABLE)
@pytest.mark.parametrize("options", [{}, {"pooler_layers": [-1, 1], "projection_dim": 5}])
def test_the_logits_are_those_of_the_whole_model(saved, tokenizer, pooler_type, options):
    model, folder = saved(pooler_type=pooler_type, **options)
    got = logits_of_heads(load_heads(folder), list(SENTENCES))["head"]
    assert_close_to(got, logits_of(model, tokenizer, SENTENCES))


def test_options_of_a_pooler_are_saved(saved, tokenizer):
    model, folder = saved(pooler_residual="mean", pooler_normalize_inputs=True, pooler_scaling="sqrt_hidden_size")
    got = logits_of_heads(load_heads(folder), list(SENTENCES))["head"]
    assert_close_to(got, logits_of(model, tokenizer, SENTENCES))
    model, folder = saved(pooler_type="weighted_layers", pooler_residual="cls")
    got = logits_of_heads(load_heads(folder), list(SENTENCES))["head"]
    assert_close_to(got, logits_of(model, tokenizer, SENTENCES))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_heads_of_different_depth_share_an_encoder_of_any_kind(tiny, tokenizer_of, tmp_path, encoder):
    tokenizer, models = tokenizer_of[encoder], {}
    folder = tmp_path / "encoder"
    tiny(encoder, pooler_type="mean").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, layers in (("low", [0, 1]), ("high", None), ("middle", [2])):
        model, _ = load_layerpool(
            str(folder), task="sequence-classification", pooler_type="concat_layers", pooler_layers=layers,
            projection_dim=None,
        )  # fmt: skip
        randomize(model.classifier)
        models[name] = model.eval()
        save_head(model, tokenizer, tmp_path / name, encoder=folder)
    heads = load_heads(*(tmp_path / name for name in models))
    assert heads.encoder.pooler.states == [0, 1, 2, 3]
    for name, got in logits_of_heads(heads, list(SENTENCES)).items():
        assert_close_to(got, logits_of(models[name], tokenizer, SENTENCES), tolerance=1e-5)
    alone = load_heads(tmp_path / "low")
    assert alone.encoder.pooler.states == [0, 1]


def test_a_head_on_real_weights(minilm, minilm_tokenizer, tmp_path):
    model, _ = load_layerpool(minilm, task="sequence-classification", pooler_type="concat_layers")
    randomize(model.eval().classifier)
    save_head(model, minilm_tokenizer, tmp_path / "task", encoder=minilm)
    assert sum(path.stat().st_size for path in (tmp_path / "task").iterdir()) < 100_000
    got = logits_of_heads(load_heads(tmp_path / "task"), list(SENTENCES))["task"]
    assert_close_to(got, logits_of(model, minilm_tokenizer, SENTENCES))


def test_all_heads_answer_from_one_forward_pass(saved, monkeypatch):
    folders = [saved(name, pooler_type=name, pooler_layers=[0, 2])[1] for name in ("concat_layers", "weighted_layers")]
    heads = load_heads(*folders, saved("mean", pooler_type="mean", pooler_layers=[1])[1])
    assert heads.encoder.pooler.states == [0, 1, 2]
    calls = []
    heads.encoder.base_model.register_forward_hook(lambda *_: calls.append(1))
    found = heads.predict(list(SENTENCES))
    assert len(calls) == 1
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(
        ("concat_layers", *found), len(SENTENCES)
    )
    monkeypatch.setattr("modeling_layerpool.common.heads.WINDOW", 2)
    for name, rows in heads.predict(list(SENTENCES), show_progress_bar=True).items():
        assert [row["prediction"] for row in rows] == [row["prediction"] for row in found[name]]
    assert heads.predict([]) == {name: [] for name in found}


@pytest.mark.parametrize("problem_type", TASKS)
def test_predictions_have_the_names_and_scores_of_the_classes(saved, tokenizer, problem_type):
    model, folder = saved(problem_type=problem_type)
    logits = logits_of(model, tokenizer, SENTENCES).double()
    for row, found in zip(logits, load_heads(folder).predict(SENTENCES)["head"], strict=True):
        if problem_type == "regression":
            assert found == {"prediction": pytest.approx(row.item(), rel=1e-4, abs=1e-5)}
            continue
        names, is_multiple = list(CLASSES["label2id"]), problem_type == "multi_label_classification"
        scores = 1 / (1 + (-row).exp()) if is_multiple else row.exp() / row.exp().sum()
        assert found["scores"] == pytest.approx(dict(zip(names, scores.tolist(), strict=True)), rel=1e-4, abs=1e-5)
        best = names[int(row.argmax())]
        assert found["prediction"] == (
            [name for name, x in zip(names, row, strict=True) if x > 0] if is_multiple else best
        )


def test_pairs_are_read_together(saved, tokenizer):
    model, folder = saved(text_columns=("premise", "hypothesis"))
    heads = load_heads(folder)
    assert_close_to(logits_of_heads(heads, PAIRS)["head"], logits_of(model, tokenizer, PAIRS))
    with pytest.raises(InputError, match=r"text 1 is 'a text', but these heads classify pairs of texts"):
        heads.predict([PAIRS[0], "a text"])


def test_every_head_cuts_texts_at_its_own_length(saved, tokenizer):
    tokenizer.model_max_length = 5
    short, short_folder = saved("short")
    tokenizer.model_max_length = 12
    long, long_folder = saved("long", pooler_type="mean")
    got = logits_of_heads(load_heads(short_folder, long_folder), list(SENTENCES))
    assert_close_to(got["long"], logits_of(long, tokenizer, SENTENCES))
    tokenizer.model_max_length = 5
    assert_close_to(got["short"], logits_of(short, tokenizer, SENTENCES))


# --- what is saved ---


def test_a_folder_says_what_it_belongs_to(saved, tiny_folder, monkeypatch):
    monkeypatch.chdir(Path(tiny_folder).parent)
    _, folder = saved(encoder="tiny", pooler_type="concat_layers", text_columns=("sentence",))
    description = json.loads((folder / "head.json").read_text())
    assert description["encoder"] == tiny_folder  # as an absolute path
    assert description["revision"] == "main"
    assert re.fullmatch("[0-9a-f]{64}", description["encoder_checksum"])
    assert description["pooler"] == {
        "pooler_type": "concat_layers",
        "projection_dim": None,
        "pooler_layers": [0, 1, 2, 3],
    }
    assert description["labels"] == ["no", "yes", "perhaps"]
    assert (description["text_columns"], description["max_seq_length"]) == (["sentence"], 512)
    assert {"python", "torch", "transformers"} <= set(description["versions"])
    assert set(load_file(folder / "head.safetensors")) == {"classifier.weight", "classifier.bias"}
    assert sorted(path.name for path in folder.iterdir()) == ["head.json", "head.safetensors"]


@pytest.mark.parametrize("function", ["save", "asdict"])
def test_a_failed_save_leaves_no_head(saved, monkeypatch, function):
    _, folder = saved()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(head_files, function, fail)
    with pytest.raises(OSError, match="No space left"):
        saved()
    with pytest.raises(InputError, match=r"head: holds no head \(head.json\)"):
        load_heads(folder)
    assert [path.name for path in folder.iterdir()] in (["head.safetensors"], [])


# --- mistakes ---


def test_what_cannot_be_saved_is_one_sentence(classifier, tiny_model, tokenizer, tmp_path):
    gru = {"pooler_type": "hire", "pooler_gru_size": 8, "pooler_gru_layers": 1}
    with pytest.raises(InputError, match=r"pooler_type=hire cannot be saved without its encoder"):
        save_head(classifier(**gru), tokenizer, tmp_path / "head", encoder="tiny")
    with pytest.raises(InputError, match=r"LayerPoolBertModel has no classifier"):
        save_head(tiny_model(), tokenizer, tmp_path / "head", encoder="tiny")
    with pytest.raises(InputError, match=r"float32, not torch.bfloat16"):
        save_head(classifier().bfloat16(), tokenizer, tmp_path / "head", encoder="tiny")
    assert not (tmp_path / "head").exists()


def test_a_head_fits_no_other_encoder(saved, tiny_model, tokenizer, tmp_path):
    _, folder = saved()
    for name, change in (("other", {}), ("wider", {"hidden_size": 64}), ("lower", {"num_hidden_layers": 2})):
        model = tiny_model(pooler_type="mean", **change)
        with torch.no_grad():
            model.bert.embeddings.LayerNorm.bias[0] += 1e-3
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    for name in ("other", "wider"):
        with pytest.raises(
            InputError, match=rf"head: \S*{name} has other weights than the encoder that this head was"
        ):
            load_heads(folder, encoder=tmp_path / name)
    with pytest.raises(InputError, match=r"head: its encoder cannot be opened: \S*lower: .*hidden state 3"):
        load_heads(folder, encoder=tmp_path / "lower")
    with pytest.raises(InputError, match=r"head: its encoder cannot be opened: nowhere: no such folder"):
        load_heads(folder, encoder="nowhere")


def test_an_encoder_may_have_moved(saved, tiny_folder, tokenizer, tmp_path):
    model, folder = saved()
    moved = Path(tiny_folder).rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"head: its encoder cannot be opened: \S*tiny: no such folder"):
        load_heads(folder)
    got = logits_of_heads(load_heads(folder, encoder=moved), list(SENTENCES))["head"]
    assert_close_to(got, logits_of(model, tokenizer, SENTENCES))


def test_heads_that_do_not_belong_together_are_one_sentence(saved, minilm, minilm_tokenizer, tmp_path):
    _, folder = saved()
    _, of_pairs = saved("pairs", text_columns=("a", "b"))
    _, of_same_name = saved("deeper/head")
    model, _ = load_layerpool(minilm, task="sequence-classification", pooler_type="mean")
    save_head(model, minilm_tokenizer, tmp_path / "real", encoder=minilm)
    with pytest.raises(InputError, match=r"pairs: classifies pairs of texts, but \S*head single texts"):
        load_heads(folder, of_pairs)
    with pytest.raises(InputError, match=r"another head is also named 'head'; rename"):
        load_heads(folder, of_same_name)
    with pytest.raises(InputError, match=r"real: its encoder is \S+, but that of \S*head is \S*tiny; open them"):
        load_heads(folder, tmp_path / "real")
    with pytest.raises(InputError, match=r"at least one head"):
        load_heads()
    heads = load_heads(folder)
    with pytest.raises(InputError, match=r"list of texts"):
        heads.predict("a text")
    with pytest.raises(InputError, match=r"text 1 is \('a', 'b'\), but these heads classify single texts"):
        heads.predict(["a", ("a", "b")])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"colour": "red"}, r"the field 'colour' is unknown"),
        ({"labels": None}, r"labels must be a list of texts, not None"),
        ({"labels": []}, r"labels must be a list of texts, not \[\]"),
        ({"labels": ["no", "yes"]}, r"the shape of classifier.bias is \(3,\) rather than \(2,\)"),
        ({"max_seq_length": 0}, r"max_seq_length must be a positive whole number, not 0"),
        ({"max_seq_length": True}, r"max_seq_length must be a positive whole number, not True"),
        ({"problem_type": "guess"}, r"problem_type must be one of"),
        ({"text_columns": ["a", "b", "c"]}, r"text_columns must be one name or two"),
        ({"encoder": 3}, r"encoder must be a text, not 3"),
        ({"pooler": {"pooler_layers": [0], "pooler_size": 3}}, r"the field 'pooler_size' of the pooler is unknown"),
        (
            {"pooler": {"pooler_layers": [0, 0], "pooler_type": "mean"}},
            r"pooler_layers must list hidden states from 0, asc",
        ),
        ({"pooler": {"pooler_layers": "all"}}, r"pooler_layers must list hidden states from 0, ascending, not 'all'"),
        ({"pooler": {"pooler_layers": [3], "pooler_type": "max"}}, r"pooler_type must be one of .*, not 'max'"),
        ({"pooler": {"pooler_layers": [3], "pooler_type": "hire"}}, r"pooler_type must be one of .*, not 'hire'"),
        ({"pooler": {"pooler_layers": [3], "pooler_type": "concat_layers"}}, r"the shape of .* is"),
        (
            {"pooler": {"pooler_layers": [3], "pooler_type": "layer_attention", "pooler_scaling": "none"}},
            r"does not describe a head \(pooler_scaling='none' is unknown",
        ),
    ],
)
def test_a_broken_description_is_one_sentence(saved, change, sentence):
    _, folder = saved()
    path = folder / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=sentence) as error:
        load_heads(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_and_missing_files_are_one_sentence(saved, tmp_path):
    _, folder = saved()
    text, weights = (folder / "head.json").read_text(), (folder / "head.safetensors").read_bytes()
    (folder / "head.json").write_text("{")
    with pytest.raises(InputError, match=r"head.json: not valid JSON"):
        load_heads(folder)
    fields = json.loads(text)
    del fields["revision"]
    (folder / "head.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"head.json: the field 'revision' is missing"):
        load_heads(folder)
    (folder / "head.json").write_text(text)
    (folder / "head.safetensors").write_bytes(weights[:-10])
    with pytest.raises(InputError, match=r"head.safetensors: is not a complete file of weights"):
        load_heads(folder)
    save_file({"classifier.bias": torch.zeros(3)}, folder / "head.safetensors")
    with pytest.raises(InputError, match=r"head.safetensors: does not fit head.json: the shape of classifier.weight"):
        load_heads(folder)
    (folder / "head.safetensors").unlink()
    with pytest.raises(InputError, match=r"head.safetensors: no such file"):
        load_heads(folder)
    with pytest.raises(InputError, match=r"nowhere: holds no head"):
        load_heads(tmp_path / "nowhere")


def test_a_head_is_no_whole_model(saved):
    _, folder = saved()
    with pytest.raises(InputError, match=r"head: a head without its encoder; open it in Python with"):
        load_layerpool(str(folder))
