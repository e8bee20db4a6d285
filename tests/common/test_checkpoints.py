"""Opening checkpoints: trained tensors stay, in float32, and a broken file ends in one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.checkpoint_files import loading_errors, published_pooling, read_json_object
from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training.masked_lm.models import load_masked_language_model
from modeling_layerpool.training.mlm_head import MaskedLanguageHead
from modeling_layerpool.training.model_arguments import ModelArguments
from tests.conftest import SENTENCES


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    """A folder of a model with these options."""

    def save(**options):
        tiny_model(initializer_range=0.2, **options).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize(
    ("pooler_type", "option", "readers"),
    [
        ("mean", {"pooler_residual": "mean"}, "layer_attention, residual_layers, weighted_layers"),
        ("mean", {"pooler_scaling": "sqrt_hidden_size"}, "layer_attention"),
        ("hire", {"pooler_output_activation": "relu"}, "layer_attention"),
        ("weighted_layers", {"pooler_activation": "gelu"}, "layer_attention, hire"),
        ("cls", {"pooler_normalize_inputs": True}, "layer_attention, residual_layers, weighted_layers"),
        ("layer_attention", {"pooler_gru_size": 8}, "hire"),
        (None, {"pooler_gru_layers": 1}, "hire"),
        ("concat_layers", {"pooler_queries": 2}, "attentive_layers"),
        ("mean", {"pooler_layer_dropout": 0.5}, "attentive_layers"),
    ],
)
def test_an_option_that_the_pooler_does_not_read_is_refused(saved, pooler_type, option, readers):
    given = {} if pooler_type is None else {"pooler_type": pooler_type}
    with pytest.raises(InputError) as error:
        load_layerpool(saved(), **given, **option)
    ((name, value),) = option.items()
    expected = f"{name}={value} does nothing with pooler_type={pooler_type or 'layer_attention'}; it is of {readers}"
    assert str(error.value) == expected


@pytest.mark.parametrize("pooler_type", ["mean", "hire"])
def test_another_pooler_leaves_what_only_the_former_reads(saved, pooler_type):
    options = {"pooler_residual": "cls", "pooler_normalize_inputs": True, "pooler_output_activation": "relu"}
    model, _ = load_layerpool(saved(**options), pooler_type=pooler_type)
    config = model.config
    assert (config.pooler_residual, config.pooler_normalize_inputs, config.pooler_output_activation) == (
        None,
        False,
        None,
    )


def test_another_pooler_keeps_what_both_read(saved):
    model, _ = load_layerpool(saved(pooler_residual="cls"), pooler_type="weighted_layers")
    assert model.config.pooler_residual == "cls"
    assert not model.pooler.layer_weights.any()


@pytest.mark.parametrize(("trained", "given"), [(None, "mean"), ("mean", "cls"), ("cls", None)])
@pytest.mark.parametrize("pooler_type", ["layer_attention", "weighted_layers"])
def test_the_weights_of_a_pooler_are_not_read_as_those_of_another_residual(saved, pooler_type, trained, given):
    folder = saved(pooler_type=pooler_type, pooler_residual=trained)
    name = "residual_layers" if pooler_type == "weighted_layers" and trained else pooler_type
    with pytest.raises(InputError, match=f"its {name} was trained with pooler_residual={trained}"):
        load_layerpool(folder, pooler_residual=given)
    load_layerpool(folder, pooler_residual=trained)


@pytest.mark.parametrize(
    ("trained", "given", "residual"),
    [("weighted_layers", "residual_layers", None), ("residual_layers", "weighted_layers", "mean")],
)
def test_the_weights_of_layers_are_not_read_as_those_of_the_other_pooler_with_such(saved, trained, given, residual):
    with pytest.raises(InputError, match=f"its {trained} was trained with pooler_residual={residual}"):
        load_layerpool(saved(pooler_type=trained), pooler_type=given)


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        ({"pooler_type": "weighted_layers", "pooler_residual": "mean"}, {"pooler_type": "residual_layers"}),
        ({"pooler_type": "residual_layers"}, {"pooler_type": "weighted_layers", "pooler_residual": "mean"}),
        ({"pooler_type": "residual_layers", "pooler_residual": "cls"}, {"pooler_type": "residual_layers"}),
    ],
)
def test_residual_layers_under_their_old_name_keep_their_weights(tiny_model, tokenizer, tmp_path, trained, given):
    model = tiny_model(**trained)
    torch.nn.init.normal_(model.pooler.layer_weights)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_layerpool(str(tmp_path), **given)
    assert torch.equal(again.pooler.layer_weights, model.pooler.layer_weights)
    assert again.pooler.residual == model.pooler.residual
    assert (again.encode(["a b"], tokenizer) == model.encode(["a b"], tokenizer)).all()


def write_pooling(folder, content):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
    module = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps([module]))


def test_residual_layers_without_a_residual_are_refused(minilm):
    with pytest.raises(InputError, match="residual_layers needs a pooler_residual, mean or cls"):
        load_layerpool(minilm, pooler_type="residual_layers", pooler_residual=None)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (None, "mean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean"),
    ],
)
def test_an_encoder_without_pooler_starts_as_the_pooling_that_it_was_published_with(
    tmp_path, tokenizer, tiny_config, pooling, expected
):
    BertModel(BertConfig(**tiny_config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if pooling is not None:
        write_pooling(tmp_path, pooling)
    plain, _ = load_layerpool(str(tmp_path))
    assert plain.config.pooler_type == expected
    model, _ = load_layerpool(str(tmp_path), pooler_type="residual_layers")
    assert model.config.pooler_residual == expected
    assert (model.encode(list(SENTENCES), tokenizer) == plain.encode(list(SENTENCES), tokenizer)).all()


def test_a_pooling_that_no_pooler_does_is_warned_of(tmp_path, caplog):
    write_pooling(tmp_path, {"pooling_mode": ["mean", "max"]})
    assert published_pooling(str(tmp_path)) == "mean"
    assert "was pooled by ['mean', 'max'], which no pooler here does; it starts as mean" in caplog.text


def test_a_plain_encoder_takes_any_residual(minilm):
    model, _ = load_layerpool(minilm, pooler_type="weighted_layers", pooler_residual="mean")
    torch.testing.assert_close(model.pooler.layer_weights, torch.zeros(7), atol=0, rtol=0)


def test_no_residual_can_be_asked_for_by_a_flag():
    overrides = ModelArguments("folder", pooler_type="layer_attention", pooler_residual="none").config_overrides()
    assert overrides == {"pooler_type": "layer_attention", "pooler_residual": None}
    assert "pooler_residual" not in ModelArguments("folder").config_overrides()


# --- dtype ---


@pytest.fixture
def saved_plain(tiny_config, tokenizer, tmp_path):
    """A folder of a plain BERT with its head for masked language modelling, in a dtype."""

    def save(dtype=torch.float32):
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig(**tiny_config)).to(dtype).save_pretrained(tmp_path / "plain")
        tokenizer.save_pretrained(tmp_path / "plain")
        return str(tmp_path / "plain")

    return save


def dtypes(model):
    return {parameter.dtype for parameter in model.parameters()} | {model.config.dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_the_file_holds_unless_another_dtype_is_asked_for(
    tiny_model, tokenizer, saved_plain, tmp_path, dtype
):
    ours, plain = str(tmp_path / "ours"), saved_plain(dtype)
    tiny_model(pooler_type="layer_attention").to(dtype).save_pretrained(ours)
    tokenizer.save_pretrained(ours)
    for folder in (ours, plain):
        for task in ("embedding", "sequence-classification"):
            assert dtypes(load_layerpool(folder, task=task)[0]) == {torch.float32}
            assert dtypes(load_layerpool(folder, task=task, dtype="auto")[0]) == {dtype}
    assert dtypes(load_masked_language_model(plain)[0]) == {torch.float32}
    assert dtypes(load_masked_language_model(plain, dtype="auto")[0]) == {dtype}
    assert dtypes(load_layerpool(ours, dtype="bfloat16")[0]) == {torch.bfloat16}
    assert dtypes(load_masked_language_model(plain, dtype=torch.float64)[0]) == {torch.float64}
    with pytest.raises(InputError, match="could not be loaded"):
        load_layerpool(ours, dtype="half precision")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("of_checkpoint", [False, True])
def test_the_head_of_a_masked_language_model_has_the_dtype_of_its_encoder(saved_plain, dtype, of_checkpoint):
    folder = saved_plain(torch.bfloat16)
    model = LayerPoolBertModel.from_pretrained(folder, dtype=torch.float32).to(dtype)
    head = MaskedLanguageHead.of_encoder(model, folder if of_checkpoint else None)
    assert {parameter.dtype for parameter in head.parameters()} == {dtype}


# --- what was trained must be there ---


@pytest.fixture
def saved_classifier(tiny, tokenizer, tmp_path):
    """A folder of a classifier of three classes, without some tensors."""

    def save(*without, **options):
        tiny("bert", classifier=True, num_labels=3, **options).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        drop(tmp_path, *without)
        return str(tmp_path)

    return save


def drop(folder, *names):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in names:
        del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", ["classifier.weight", "classifier.bias"])
def test_a_trained_classifier_that_is_missing_is_not_quietly_replaced(saved_classifier, name):
    folder = saved_classifier(name)
    with pytest.raises(InputError) as error:
        load_layerpool(folder, task="sequence-classification")
    assert str(error.value) == (
        f"{folder}: the weights lack {name}, which was trained; copy the whole checkpoint again, or "
        "start a new classifier with --ignore_mismatched_sizes"
    )
    load_layerpool(folder, task="sequence-classification", ignore_mismatched_sizes=True)
    load_layerpool(folder)  # which needs none


@pytest.mark.parametrize("name", ["pooler.query.weight", "pooler.projection.bias"])
@pytest.mark.parametrize("task", ["embedding", "sequence-classification"])
def test_a_trained_pooler_that_is_missing_is_not_quietly_replaced(saved_classifier, name, task):
    folder = saved_classifier(name)
    with pytest.raises(InputError, match=f"lack {name}, .*start a new pooler with another --pooler_type"):
        load_layerpool(folder, task=task, ignore_mismatched_sizes=True)
    load_layerpool(folder, task=task, pooler_type="hire", pooler_gru_size=8)


def test_a_tensor_of_the_encoder_that_is_missing_is_said_first(saved_classifier):
    folder = saved_classifier("pooler.query.weight", "bert.encoder.layer.1.output.dense.bias")
    with pytest.raises(
        InputError, match=r"1 tensors are missing \(for example bert\.encoder\.layer\.1\.output\.dense\.bias"
    ):
        load_layerpool(folder)


def test_a_trained_classifier_of_another_shape_is_not_quietly_replaced(saved_classifier):
    folder = saved_classifier()
    message = (
        r"2 tensors have another shape .*\(for example classifier.bias: \(3,\) rather than \(5,\)\); start a new "
        "classifier with --ignore_mismatched_sizes"
    )
    with pytest.raises(InputError, match=message):
        load_layerpool(folder, task="sequence-classification", num_labels=5)
    options = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model, _ = load_layerpool(folder, task="sequence-classification", **options)
    assert model.classifier.weight.shape == (5, 32)


@pytest.mark.parametrize("task", ["embedding", "sequence-classification"])
def test_a_new_pooler_on_a_saved_encoder_has_the_width_of_its_own(saved, task):
    model, _ = load_layerpool(saved(pooler_type="mean"), task=task, pooler_type="concat_layers")
    assert model.embedding_dim == 4 * 32


def test_a_saved_sentence_encoder_gets_a_new_classifier(saved):
    folder = saved(pooler_type="layer_attention")
    model, _ = load_layerpool(folder, task="sequence-classification", num_labels=4)
    assert model.classifier.weight.shape == (4, 32)
    assert torch.equal(model.pooler.query.weight, load_layerpool(folder)[0].pooler.query.weight)


def test_a_deeper_pooler_than_the_trained_one_is_not_half_random(saved):
    folder = saved(pooler_type="hire", pooler_gru_layers=1, pooler_gru_size=8)
    with pytest.raises(InputError, match=r"lack pooler\.extractor\..*start a new pooler"):
        load_layerpool(folder, pooler_gru_layers=2)


def test_a_width_that_is_asked_for_starts_a_linear_map(saved):
    folder = saved(pooler_type="mean")
    assert load_layerpool(folder, projection_dim=8)[0].pooler.projection.weight.shape == (8, 32)
    narrow, _ = load_layerpool(folder, projection_dim=8)
    narrow.save_pretrained(folder)
    load_layerpool(folder)
    with pytest.raises(InputError, match=r"\(8,\) rather than \(4,\)\); start a new pooler with another"):
        load_layerpool(folder, projection_dim=4)
    wide, _ = load_layerpool(folder, projection_dim=4, pooler_type="weighted_layers")
    assert wide.pooler.projection.weight.shape == (4, 32)


# --- broken checkpoints ---


NESTED = "[" * 100_000
ANY_FILE = {
    "list": b"[]",
    "text": b'"a"',
    "number": b"3",
    "null": b"null",
    "empty": b"",
    "nested": NESTED.encode(),
    "not UTF-8": b'{"a": "\xff"}',
    "garbage": bytes(range(256)) * 8,
}
FIELDS = {
    "hidden_size": ["32", -32, 0, None, 32.0, 10**30],
    "num_hidden_layers": ["3", -1, 0, None, 10**9],
    "num_attention_heads": [0, -4],
    "vocab_size": [0, "many"],
    "intermediate_size": [0, -1],
    "max_position_embeddings": [0, -1, None],
    "model_type": [["bert"], 3, None, {}, "albatross"],
    "architectures": ["BertModel", 3, [1]],
    "id2label": [["a"], {"a": "b"}, {"0": 1}, 3],
    "hidden_act": ["none at all", 3],
    "dtype": ["no_such_type"],
}


@pytest.fixture(params=["ours", "classifier", "plain"])
def opening(request, saved, saved_plain):
    """A folder, and the function that opens it."""
    folder = saved_plain() if request.param == "plain" else saved(pooler_type="layer_attention")
    options = {"task": "sequence-classification"} if request.param == "classifier" else {}
    return folder, load_masked_language_model if request.param == "plain" else load_layerpool, options


def refusal(opening):
    """The one sentence that a broken checkpoint ends in."""
    folder, load, options = opening
    with pytest.raises(InputError) as error:
        load(folder, **options)
    sentence = str(error.value)
    assert sentence.startswith(folder)
    assert "\n" not in sentence
    return sentence.removeprefix(folder)


@pytest.mark.parametrize("content", ANY_FILE)
def test_a_config_that_is_no_object_is_one_sentence(opening, tmp_path, content):
    for path in tmp_path.rglob("config.json"):
        path.write_bytes(ANY_FILE[content])
    assert refusal(opening).startswith("/config.json: ")


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values])
def test_a_config_with_a_broken_field_is_one_sentence(opening, tmp_path, field, value):
    for path in tmp_path.rglob("config.json"):
        change_json(path, **{field: value})
    assert refusal(opening)


@pytest.mark.parametrize("content", [*ANY_FILE, "truncated"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer_is_one_sentence(opening, tmp_path, file, content):
    for path in tmp_path.rglob(file):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "truncated" else ANY_FILE[content])
    assert refusal(opening).startswith(f"/{file}: ")


def test_a_tokenizer_of_an_empty_object_is_one_sentence(opening, tmp_path):
    for path in tmp_path.rglob("tokenizer.json"):
        path.write_text("{}")
    assert refusal(opening) == ": has no tokenizer that could be opened (KeyError: 'added_tokens')"


def test_an_empty_token_for_unknown_words_is_one_sentence(opening, tmp_path):
    for path in tmp_path.rglob("tokenizer_config.json"):
        change_json(path, unk_token="")
    assert ": has a tokenizer with broken special tokens (maximum recursion depth" in refusal(opening)


@pytest.mark.parametrize("length", ["abc", -1, 0, 1, 2, 1.5, True, [64]])
def test_a_length_that_leaves_no_room_for_a_text_is_one_sentence(opening, tmp_path, length):
    for path in tmp_path.rglob("tokenizer_config.json"):
        change_json(path, model_max_length=length)
    assert "model_max_length must be a whole number above 2, the special tokens of a text, not" in refusal(opening)


@pytest.mark.parametrize(("length", "expected"), [(64.0, 64), (1e30, int(1e30)), (None, None), (3, 3)])
def test_a_length_that_is_a_whole_number_is_taken(saved, tmp_path, length, expected):
    folder = saved()
    change_json(tmp_path / "tokenizer_config.json", model_max_length=length)
    model, tokenizer = load_layerpool(folder)
    assert expected is None or tokenizer.model_max_length == expected
    assert isinstance(tokenizer.model_max_length, int)
    model.encode(SENTENCES, tokenizer)


@pytest.mark.parametrize("share", [0, 0.0001, 0.5, "garbage", "folder"])
def test_broken_weights_are_one_sentence(opening, tmp_path, share):
    for path in tmp_path.rglob("model.safetensors"):
        whole = path.read_bytes()
        path.unlink()
        if share == "folder":
            path.mkdir()
        else:
            path.write_bytes(ANY_FILE["garbage"] if share == "garbage" else whole[: int(len(whole) * share)])
    assert refusal(opening).startswith(": could not be loaded (")


@pytest.mark.parametrize(
    "content", ["[]", "{", "{}", '{"weight_map": []}', '{"weight_map": {"a": "gone.safetensors"}, "metadata": {}}']
)
def test_a_broken_index_of_the_weights_is_one_sentence(opening, tmp_path, content):
    for path in tmp_path.rglob("model.safetensors"):
        path.rename(path.with_name("model-00001-of-00001.safetensors"))
        path.with_name("model.safetensors.index.json").write_text(content)
    assert refusal(opening)


def test_a_head_from_a_broken_checkpoint_is_one_sentence(saved_plain, tiny_model, tmp_path):
    folder = saved_plain()
    (tmp_path / "plain" / "model.safetensors").write_bytes(ANY_FILE["garbage"])
    with pytest.raises(InputError, match="plain: could not be loaded"):
        MaskedLanguageHead.of_encoder(tiny_model(), folder)


def test_a_panic_of_the_tokenizers_package_is_one_sentence(saved, monkeypatch):
    class PanicException(BaseException):
        """The panic of that package derives from BaseException only."""

    def panic(*args, **kwargs):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    folder = saved()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(InputError, match=r"no tokenizer that could be opened \(called `Option::unwrap"):
        load_layerpool(folder)


def test_who_interrupts_the_loading_is_not_told_of_a_broken_file():
    with pytest.raises(KeyboardInterrupt), loading_errors("a model"):
        raise KeyboardInterrupt


def test_an_exception_whose_text_says_little_is_named():
    for error, reason in (
        (KeyError("weight_map"), "KeyError: 'weight_map'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (
            ValueError("Validation error for field 'a':\n    expected int"),
            "Validation error for field 'a': expected int",
        ),
        (OSError("cannot be reached.\nTry again."), "cannot be reached"),
    ):
        with pytest.raises(InputError) as told, loading_errors("a model"):
            raise error
        assert str(told.value) == f"a model: could not be loaded ({reason})"


def test_an_adapters_config_must_be_an_object(tmp_path):
    path = tmp_path / "adapter_config.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        read_json_object(path)
