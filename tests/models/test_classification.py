"""Classifiers on the pooled vector: the library's losses, packed input, checkpoints, and what opens a saved folder."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_layerpool import LayerPoolBertForSequenceClassification, LayerPoolBertModel
from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from tests.conftest import POOLER_TYPES, SENTENCES, assert_close_to
from tests.models.test_modeling import bert_layouts


ENCODERS = ("bert", "roberta")


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_the_logits_are_a_linear_map_of_the_embedding(tiny, tokenizer_of, encoder, pooler_type):
    model = tiny(encoder, classifier=True, pooler_type=pooler_type, num_labels=3)
    embedder = tiny(encoder, pooler_type=pooler_type)
    embedder.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("classifier.")})
    batch = tokenizer_of[encoder](list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
        expected = embedder(**batch).pooler_output @ model.classifier.weight.T + model.classifier.bias
    assert output.loss is None
    torch.testing.assert_close(output.logits, expected)


LABELS = {
    "regression": (1, torch.tensor([0.5, -1.0, 2.0])),
    "several numbers": (2, torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0]])),
    "single_label_classification": (3, torch.tensor([0, 2, -100])),
    "multi_label_classification": (3, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])),
}


class FirstToken(torch.nn.Module):
    def forward(self, state):
        return state[:, 0]


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("named", [True, False])
def test_the_losses_are_the_librarys(tiny, tiny_config, tokenizer, kind, named):
    num_labels, labels = LABELS[kind]
    if kind == "several numbers" and not named:
        pytest.skip("several numbers are taken for several classes unless the problem is named")
    problem = {"num_labels": num_labels}
    if named:
        problem["problem_type"] = "regression" if kind == "several numbers" else kind
    model = tiny("bert", classifier=True, pooler_type="cls", **problem)
    library = BertForSequenceClassification(BertConfig(**tiny_config, **problem)).eval()
    library.bert.pooler = FirstToken()
    library.load_state_dict(model.state_dict())
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    output, expected = model(**batch, labels=labels), library(**batch, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)
    assert model.config.problem_type == library.config.problem_type
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("pooler_type", ["layer_attention", "hire"])
def test_packed_input_has_one_label_a_sentence(tiny, tokenizer_of, encoder, pooler_type):
    model = tiny(encoder, classifier=True, pooler_type=pooler_type, num_labels=3)
    tokenizer, labels = tokenizer_of[encoder], torch.tensor([0, 2, 1, 1, 0, 2])
    batch = tokenizer(list(SENTENCES) * 2, padding=True, return_tensors="pt")
    packed = pack_sentences(tokenizer(list(SENTENCES) * 2)["input_ids"], tokenizer.pad_token_id, row_length=40)
    assert len(packed["input_ids"]) < 6
    with torch.no_grad():
        expected, got = model(**batch, labels=labels), model(**packed, labels=labels)
    assert_close_to(got.logits, expected.logits)
    torch.testing.assert_close(got.loss, expected.loss)


@pytest.mark.parametrize("classifier", [True, False])
def test_tuples_are_returned_on_request(tiny, classifier):
    model = tiny("bert", classifier=classifier)
    ids = torch.full((2, 4), 7)
    expected = model(ids)
    model.config.return_dict = False
    for got in (model(ids), model(ids, return_dict=False)):
        assert isinstance(got, tuple)
        torch.testing.assert_close(got, expected.to_tuple())


def test_dropout_is_the_configurations(tiny):
    assert tiny("bert", classifier=True, classifier_dropout=0.3).dropout.p == 0.3
    assert tiny("bert", classifier=True, hidden_dropout_prob=0.2).dropout.p == 0.2
    assert tiny("bert", classifier=True, classifier_dropout=0.0).dropout.p == 0.0


def test_accumulated_batches_give_the_mean_of_their_losses(tiny, tokenizer, tmp_path):
    """The library's own heads leave the division by the number of batches to nobody."""
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(SENTENCES[:2] * 2, (0, 1, 1, 0), strict=True)]
    gradients = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        model = tiny("bert", classifier=True, pooler_type="mean", hidden_dropout_prob=0.0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            disable_tqdm=True,
            use_cpu=True,
            report_to="none",
        )
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        before = model.classifier.weight.detach().clone()
        Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train()
        gradients.append(before - model.classifier.weight.detach())
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)


# --- checkpoints ---


@pytest.mark.parametrize("layout", ["bare", "prefixed", "gamma_beta"])
@pytest.mark.parametrize("pooler_type", ["layer_attention", "hire", "mean"])
def test_from_any_bert_layout_only_the_pooler_and_the_classifier_are_new(tmp_path, layout, pooler_type):
    bert, folders = bert_layouts(tmp_path)
    model, info = LayerPoolBertForSequenceClassification.from_pretrained(
        folders[layout], pooler_type=pooler_type, num_labels=5, output_loading_info=True
    )
    pooler = {f"pooler.{name}" for name in model.pooler.state_dict()}
    assert info["missing_keys"] == pooler | {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    expected = bert.state_dict()
    for name, weight in model.bert.state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_classifier_comes_back_as_it_was_saved(tiny, tokenizer_of, encoder, tmp_path):
    model = tiny(encoder, classifier=True, id2label={0: "no", 1: "yes", 2: "perhaps"}, pooler_type="hire")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "modules.json").exists()
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model)
    assert not any(info.values())
    assert again.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    batch = tokenizer_of[encoder](list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_another_number_of_labels_starts_a_new_classifier_if_asked_for(tiny, tokenizer, tmp_path):
    model = tiny("bert", classifier=True, num_labels=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    same, _ = load_layerpool(str(tmp_path), task="sequence-classification")
    assert torch.equal(same.classifier.weight, model.classifier.weight)
    options = {"num_labels": 5, "ignore_mismatched_sizes": True}
    other, _ = load_layerpool(str(tmp_path), task="sequence-classification", **options)
    assert other.classifier.weight.shape == (5, 32)
    assert torch.equal(other.pooler.query.weight, model.pooler.query.weight)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        LayerPoolBertForSequenceClassification.from_pretrained(tmp_path, num_labels=5)


def test_a_plain_classifier_is_a_start_whatever_its_shape(tiny_config, tokenizer, tmp_path):
    plain = BertForSequenceClassification(BertConfig(**tiny_config, num_labels=4))
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for options in ({}, {"num_labels": 2}, {"pooler_type": "hire"}):
        model, _ = load_layerpool(str(tmp_path), task="sequence-classification", **options)
        assert model.classifier.out_features == options.get("num_labels", 4)
        assert torch.equal(model.bert.embeddings.word_embeddings.weight, plain.bert.embeddings.word_embeddings.weight)


def test_a_pooler_of_another_shape_is_refused_by_name(tiny, tokenizer, tmp_path):
    tiny("bert", projection_dim=10).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"for example pooler.projection.bias: \(10,\) rather than \(12,\)"):
        load_layerpool(str(tmp_path), projection_dim=12)


def test_the_rest_of_an_encoder_is_still_asked_for(tiny_config, tokenizer, tmp_path):
    BertModel(BertConfig(**tiny_config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="tensors are missing"):
        load_layerpool(str(tmp_path), task="sequence-classification", num_hidden_layers=4)


# --- pipelines ---


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_pipeline_labels_texts_and_pairs(tiny, tokenizer_of, encoder, tmp_path, caplog):
    model = tiny(encoder, classifier=True, pooler_type="hire", id2label={0: "no", 1: "yes"})
    tokenizer = tokenizer_of[encoder]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), trust_remote_code=True, device="cpu")
    assert "is not supported for text-classification" not in caplog.text
    pairs = [{"text": SENTENCES[0], "text_pair": SENTENCES[1]}, {"text": SENTENCES[2], "text_pair": SENTENCES[0]}]
    results = classify([*SENTENCES]) + classify(pairs, batch_size=2)
    inputs = [(text,) for text in SENTENCES] + [(pair["text"], pair["text_pair"]) for pair in pairs]
    for result, texts in zip(results, inputs, strict=True):
        with torch.no_grad():
            probabilities = model(**tokenizer(*texts, return_tensors="pt")).logits[0].softmax(dim=0)
        assert result["label"] == ["no", "yes"][probabilities.argmax()]
        assert result["score"] == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_the_two_kinds_of_model_open_each_others_folders(tiny, tmp_path):
    classifier, embedder = tiny("bert", classifier=True, num_labels=3), tiny("bert")
    classifier.save_pretrained(tmp_path / "classifier")
    embedder.save_pretrained(tmp_path / "embedder")
    model, info = LayerPoolBertModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.pooler.query.weight, classifier.pooler.query.weight)
    _, info = LayerPoolBertForSequenceClassification.from_pretrained(tmp_path / "embedder", output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
