"""Averages of models: the weights by the formula, the card, and what is refused."""

import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig, BertModel

from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.publishing.average import average, main
from tests.conftest import SENTENCES, assert_close_to
from tests.tiny import TINY_BERT


@pytest.fixture
def save(tiny_model, tokenizer, tmp_path):
    """Saves a tiny model whose weights were moved by random numbers, and returns its folder."""

    def make(name, seed=0, **options):
        model = tiny_model(**{"pooler_type": "residual_layers", "pooler_residual": "mean"} | options)
        generator = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.data += 0.01 * torch.randn(weight.shape, generator=generator)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture
def plain(tokenizer, tmp_path):
    torch.manual_seed(0)
    BertModel(BertConfig(**TINY_BERT), add_pooling_layer=False).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    return str(tmp_path / "plain")


@pytest.mark.parametrize(("weights", "shares"), [(None, [1 / 3] * 3), ([1, 3, 0], [0.25, 0.75, 0])])
def test_every_weight_is_the_weighted_mean(save, tmp_path, tokenizer, weights, shares):
    folders = [save(name, seed) for seed, name in enumerate("abc")]
    output = average(folders, tmp_path / "out", weights=weights)
    parts = [load_file(f"{folder}/model.safetensors") for folder in folders]
    for name, tensor in load_file(output / "model.safetensors").items():
        expected = sum(share * part[name].double() for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
    model = AutoModel.from_pretrained(output)
    assert model.encode(list(SENTENCES), tokenizer).shape == (3, 32)


def test_a_run_and_the_plain_encoder_that_it_started_from(save, plain, tmp_path, tokenizer):
    """The pooler that the plain encoder gets adds nothing to its mean, so its share of that pooler is 0."""
    trained = save("trained", use_cache=False)  # as a trainer leaves it
    output = average([plain, trained], tmp_path / "out", weights=[0.25, 0.75])
    model, _ = load_layerpool(str(output))
    own, _ = load_layerpool(trained)
    assert_close_to(model.pooler.layer_weights.detach(), 0.75 * own.pooler.layer_weights.detach())
    start, _ = load_layerpool(plain)
    expected = (
        0.25 * start.bert.encoder.layer[0].output.dense.weight + 0.75 * own.bert.encoder.layer[0].output.dense.weight
    )
    assert_close_to(model.bert.encoder.layer[0].output.dense.weight, expected)
    same = average([plain, trained], tmp_path / "start", weights=[1, 0])
    assert_close_to(load_layerpool(str(same))[0].encode(SENTENCES, tokenizer), start.encode(SENTENCES, tokenizer))


def test_the_card_names_the_ingredients_and_no_path(save, tmp_path):
    average([save("a"), save("b", 1)], tmp_path / "out", weights=[1, 3])
    text = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"\| `a` \(local\) +\| 0.25 ", text)
    assert re.search(r"\| `b` \(local\) +\| 0.75 ", text)
    assert str(tmp_path) not in text
    card = ModelCard(text)
    assert "merge" in card.data.tags
    assert card.data.pipeline_tag == "sentence-similarity"


def test_it_runs_as_a_command(save, tmp_path, monkeypatch, capsys):
    folders = [save("a"), save("b", 1)]
    monkeypatch.setattr(
        "sys.argv", ["average", *folders, "--output_dir", str(tmp_path / "out"), "--weights", "1", "1"]
    )
    main()
    assert capsys.readouterr().out.endswith("the average of 2 models\n")
    assert np.isfinite(load_layerpool(str(tmp_path / "out"))[0].encode(list(SENTENCES))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 2}, "its shape is another one than that of"),
        ({"projection_dim": 8}, "its shape is another one than that of"),
        ({"pooler_type": "mean", "pooler_residual": None}, "its shape is another one than that of"),
        ({"pooler_residual": "cls"}, "its pooler_residual is cls, and that of .* is mean"),
        (
            {"hidden_act": "relu"},
            "its hidden_act is relu, and that of .* is gelu; average",
        ),
    ],
)
def test_models_of_another_shape_or_pooling_are_refused(save, tmp_path, options, message):
    folders = [save("a"), save("b", **options)]
    with pytest.raises(InputError, match=message):
        average(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0], "1 for 2 models; give one for each"), ([1, -1], "must be at least 0"), ([0, 0], "not all of them 0")],
)
def test_wrong_weights_are_one_sentence(save, tmp_path, weights, message):
    with pytest.raises(InputError, match=message):
        average([save("a"), save("b")], tmp_path / "out", weights=weights)


def test_one_model_two_plain_ones_and_a_random_pooler_are_refused(save, plain, tmp_path):
    with pytest.raises(InputError, match="at least two models"):
        average([plain], tmp_path / "out")
    with pytest.raises(InputError, match="none is a model of this package"):
        average([plain, plain], tmp_path / "out")
    trained = save("a", pooler_type="layer_attention", pooler_residual=None)
    with pytest.raises(InputError, match="has no layer_attention of its own, and a new one would be random"):
        average([plain, trained], tmp_path / "out")


def test_another_vocabulary_is_refused(save, tmp_path, tokenizer):
    folders = [save("a"), save("b")]
    vocabulary = tmp_path / "b" / "tokenizer.json"
    text = vocabulary.read_text()
    word = next(word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 3)
    vocabulary.write_text(text.replace(f'"{word}"', f'"{word}x"'))
    with pytest.raises(InputError, match="has another vocabulary than"):
        average(folders, tmp_path / "out")
