"""The model: parity with BERT, packed input, the encoder's checkpoints, encode, and what a model must survive."""

import copy
import pickle
import threading
import weakref

import accelerate
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from tests.conftest import POOLER_TYPES, SENTENCES, assert_close_to, needs_gradient_checkpointing
from tests.tiny import TINY_BERT


def token_ids(tokenizer, sentences=SENTENCES):
    return tokenizer(list(sentences))["input_ids"]


def without_dropout(model):
    """Training mode in which nothing is random."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.RReLU):
            module.eval()
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    return model


# Values of the library's BertModel on the same weights, pooled by hand: the first four numbers of each embedding.
GOLDEN = {
    "cls": [
        [0.098853, 0.080678, -0.097866, -0.497266],
        [0.110807, 0.443736, 0.107355, 0.756713],
        [-0.467131, -0.250385, 0.348965, 0.258615],
    ],
    "mean": [
        [0.106762, -0.023971, -0.047551, -0.312445],
        [0.260575, 0.355563, 0.247581, 0.445457],
        [-0.463841, -0.203499, 0.11666, 0.351017],
    ],
    "mean_first_last": [
        [0.049906, 0.03747, -0.038838, -0.137438],
        [0.258145, 0.24044, 0.146959, 0.239908],
        [-0.229024, -0.164424, 0.076836, 0.263034],
    ],
    "mean_last_two": [
        [0.056826, -0.14955, -0.105709, 0.00252],
        [0.261208, 0.203431, 0.1924, 0.332753],
        [-0.394105, -0.060461, 0.025722, 0.303385],
    ],
}


@pytest.mark.parametrize("pooler_type", GOLDEN)
def test_golden_values_on_real_weights(minilm, minilm_tokenizer, pooler_type):
    model = LayerPoolBertModel.from_pretrained(minilm, pooler_type=pooler_type).eval()
    batch = minilm_tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = model(**batch).pooler_output
    torch.testing.assert_close(embeddings[:, :4], torch.tensor(GOLDEN[pooler_type]), atol=1e-5, rtol=0)


def test_the_encoder_computes_what_bert_computes(minilm, minilm_tokenizer, record_difference):
    batch = minilm_tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = BertModel.from_pretrained(minilm).eval()(**batch, output_hidden_states=True)
        output = LayerPoolBertModel.from_pretrained(minilm).eval()(**batch, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert len(output.hidden_states) == 7
    for got, state in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(got, state)
    record_difference("transformers", "hidden states, against the library's `BertModel`", 0)


def test_layers_above_the_highest_state_read_are_neither_built_nor_computed(minilm, minilm_tokenizer, caplog):
    model, info = LayerPoolBertModel.from_pretrained(
        minilm, pooler_type="mean", pooler_layers=[0, 2], output_loading_info=True
    )
    assert len(model.bert.encoder.layer) == 2
    assert not info["unexpected_keys"]
    batch = minilm_tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = BertModel.from_pretrained(minilm).eval()(**batch, output_hidden_states=True).hidden_states[2]
        assert_close_to(model.eval()(**batch).last_hidden_state, expected)


# --- checkpoints of plain BERT ---


def bert_layouts(tmp_path):
    """The three layouts of BERT checkpoints that are about, with the same random weights."""
    torch.manual_seed(0)
    config = BertConfig(**TINY_BERT)
    model = BertForPreTraining(config)
    folders = {}
    for name in ("bare", "prefixed", "gamma_beta"):
        folders[name] = tmp_path / name
        (model.bert if name == "bare" else model).save_pretrained(folders[name])
    weights = load_file(folders["gamma_beta"] / "model.safetensors")
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, folders["gamma_beta"] / "model.safetensors", metadata={"format": "pt"})
    return model.bert, folders


@pytest.mark.parametrize("layout", ["bare", "prefixed", "gamma_beta"])
@pytest.mark.parametrize("pooler_type", ["layer_attention", "mean"])
def test_from_any_bert_layout_only_the_pooler_is_new(tmp_path, layout, pooler_type):
    bert, folders = bert_layouts(tmp_path)
    model, info = LayerPoolBertModel.from_pretrained(
        folders[layout], pooler_type=pooler_type, output_loading_info=True
    )
    assert info["missing_keys"] == {f"pooler.{name}" for name in model.pooler.state_dict()}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    expected = bert.state_dict()
    for name, weight in model.bert.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_a_masked_language_model_is_a_start_too(tmp_path):
    config = BertConfig(**TINY_BERT)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    _, info = LayerPoolBertModel.from_pretrained(tmp_path, pooler_type="mean", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


# --- packed input ---


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
@pytest.mark.parametrize("training", [False, True])
def test_packed_equals_padded(minilm, minilm_tokenizer, pooler_type, attention, training, record_difference):
    torch.manual_seed(0)
    model = LayerPoolBertModel.from_pretrained(minilm, pooler_type=pooler_type, attn_implementation=attention)
    model = without_dropout(model) if training else model.eval()
    sentences = [*SENTENCES, "", "word " * 100, *SENTENCES]
    batch = minilm_tokenizer(sentences, padding=True, return_tensors="pt")
    packed = pack_sentences(token_ids(minilm_tokenizer, sentences), pad_token_id=0, row_length=128)
    assert packed["input_ids"].shape[0] < len(sentences)
    with torch.no_grad():
        expected = model(**batch).pooler_output
        got = model(**packed).pooler_output
        derived = model(packed["input_ids"], sequence_ids=packed["sequence_ids"]).pooler_output
    assert_close_to(got, expected, 1e-5 if pooler_type == "hire" else 2e-6)
    assert torch.equal(derived, got)
    record_difference("torch", f"packed input against padded, {attention}", (got - expected).abs().max())


def test_packed_gradients_equal_padded_ones(tiny_model, tokenizer):
    model = without_dropout(tiny_model()).double()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    packed = pack_sentences(token_ids(tokenizer), pad_token_id=0)
    weight = torch.randn(3, 32, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((model(**inputs).pooler_output * weight).sum(), list(model.parameters()))
        for inputs in (batch, packed)
    ]
    for padded_gradient, packed_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(packed_gradient, padded_gradient, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("attention", ["sdpa", "flash"])
def test_one_flat_row_with_cumulative_lengths_is_packed_input(tiny_model, tokenizer, flash, attention):
    model = tiny_model()
    ids = token_ids(tokenizer)
    lengths = torch.tensor([0, *map(len, ids)]).cumsum(0).int()
    flat = torch.tensor([[token for sentence in ids for token in sentence]])
    positions = torch.tensor([[place for sentence in ids for place in range(len(sentence))]])
    longest = max(map(len, ids))
    with torch.no_grad():
        expected = model(**pack_sentences(ids, pad_token_id=0)).pooler_output
        if attention == "flash":
            flash(model)
        got = model(
            flat,
            position_ids=positions,
            cu_seq_lens_q=lengths,
            cu_seq_lens_k=lengths,
            max_length_q=longest,
            max_length_k=longest,
        ).pooler_output
    assert_close_to(got, expected)


def test_flash_attention_gets_one_flat_row_with_borders(tiny_model, tokenizer, flash):
    model = tiny_model()
    packed = pack_sentences(token_ids(tokenizer, SENTENCES * 3), pad_token_id=0, row_length=32)
    assert packed["input_ids"].shape[0] > 1
    with torch.no_grad():
        expected = model(**packed)
        flash(model)
        got = model(**packed)
    assert_close_to(got.pooler_output, expected.pooler_output)
    assert got.last_hidden_state.shape == expected.last_hidden_state.shape


def test_padded_and_packed_at_once_is_refused(tiny_model):
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="either attention_mask or sequence_ids"):
        tiny_model()(ids, attention_mask=ids, sequence_ids=torch.zeros_like(ids))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1, 4, 4\)"):
        tiny_model()(ids, attention_mask=torch.ones(1, 1, 4, 4))


# --- encode ---


def test_encode_keeps_the_order_and_equals_the_forward_pass(tiny_model, tokenizer):
    model = tiny_model()
    sentences = [f"{'word ' * (i * 7 % 23)}number {i}" for i in range(60)]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).pooler_output
    for budget in (1, 100, 100_000):
        got = model.encode(sentences, tokenizer, max_tokens_per_batch=budget)
        assert got.dtype == np.float32
        assert_close_to(got, expected.numpy())
    one = model.encode(sentences[7], tokenizer, normalize=True, convert_to_numpy=False)
    assert_close_to(one, torch.nn.functional.normalize(expected[7], dim=0))


def test_encode_across_windows_keeps_the_order(tiny_model, tokenizer, monkeypatch):
    model = tiny_model()
    sentences = [f"number {i}" for i in range(25)]
    expected = model.encode(sentences, tokenizer)
    monkeypatch.setattr("modeling_layerpool.models.modeling_layerpool_encode.ENCODE_WINDOW", 7)
    assert_close_to(model.encode(sentences, tokenizer), expected)


def test_encode_of_empty_and_overlong_texts_is_finite(tiny_model, tokenizer):
    model = tiny_model(max_position_embeddings=64)
    embeddings = model.encode(["", "  ", "word " * 1000], tokenizer)
    assert np.isfinite(embeddings).all()
    assert model.encode([], tokenizer).shape == (0, 32)
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 8
    assert_close_to(
        model.encode("one two three four five six seven eight", short),
        model.encode("one two three four five six", tokenizer),
    )


def test_encode_leaves_the_mode_as_it_was(tiny_model, tokenizer):
    model = tiny_model().train()
    first, again = model.encode("text", tokenizer), model.encode("text", tokenizer)
    assert (first == again).all()
    assert model.training


def test_encode_refuses_what_is_no_text(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="Sentence 1 must be a str, got NoneType"):
        tiny_model().encode(["a", None], tokenizer)
    with pytest.raises(ValueError, match="max_tokens_per_batch=0 must be positive"):
        tiny_model().encode(["a"], tokenizer, max_tokens_per_batch=0)


def offload_to_cpu(model, folder):
    return accelerate.cpu_offload(model)


def offload_to_disk(model, folder):
    return accelerate.disk_offload(model, folder / "offloaded")


def dispatch(model, folder):
    model.save_pretrained(folder / "saved")
    devices = {"bert": "disk", "pooler": "disk"}
    return (
        type(model).from_pretrained(folder / "saved", device_map=devices, offload_folder=folder / "offloaded").eval()
    )


@pytest.mark.parametrize("offload", [offload_to_cpu, offload_to_disk, dispatch])
@pytest.mark.parametrize("pooler_type", ["layer_attention", "hire", "weighted_layers", "mean"])
def test_encode_works_where_the_weights_are_offloaded(tiny_model, tokenizer, tmp_path, offload, pooler_type):
    model = tiny_model(pooler_type=pooler_type)
    expected, one = model.encode(SENTENCES, tokenizer), model.encode_token_ids([[7, 8, 9]])
    offloaded = offload(model, tmp_path)
    assert offloaded.device.type == "meta"
    assert_close_to(offloaded.encode(SENTENCES, tokenizer), expected)
    tensor = offloaded.encode(SENTENCES, tokenizer, normalize=True, convert_to_numpy=False)
    assert tensor.device.type == "cpu"
    assert_close_to(offloaded.encode_token_ids([[7, 8, 9]]), one)


def test_rows_of_nothing_but_padding_are_finite(tiny_model):
    for pooler_type in POOLER_TYPES:
        for attention in ("sdpa", "eager"):
            model = tiny_model(pooler_type=pooler_type)
            model.set_attn_implementation(attention)
            mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
            assert model(torch.ones(2, 3, dtype=torch.long), attention_mask=mask).pooler_output.isfinite().all()


# --- what a model must survive ---


@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_every_parameter_gets_a_gradient_from_the_embedding(tiny_model, tokenizer, pooler_type):
    model = tiny_model(pooler_type=pooler_type, pooler_layers=[0, 1, 2]).train()
    output = model(**pack_sentences(token_ids(tokenizer), pad_token_id=0)).pooler_output
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@needs_gradient_checkpointing
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_on_packed_input(tiny_model, tokenizer, use_reentrant):
    model = without_dropout(tiny_model()).double()
    packed = pack_sentences(token_ids(tokenizer), pad_token_id=0)
    model(**packed).pooler_output.square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model(**packed).pooler_output.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_checkpoints_that_would_enclose_the_reading_of_states_are_refused(tiny_model, monkeypatch):
    call = GradientCheckpointingLayer.__call__
    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", call)  # as older releases define it
    with pytest.raises(ValueError, match="needs a newer transformers"):
        tiny_model().gradient_checkpointing_enable()


@pytest.mark.long
def test_compiled_without_graph_breaks_it_gives_the_same(tiny_model, tokenizer):
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    packed = pack_sentences(token_ids(tokenizer), pad_token_id=0)
    padded = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        left = {name: value.flip(1) for name, value in padded.items()}
        for inputs in (packed, padded, left):
            torch.testing.assert_close(compiled(**inputs).pooler_output, model(**inputs).pooler_output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooler_type", POOLER_TYPES)
def test_half_precision_works_whole_and_under_autocast(tiny_model, tokenizer, dtype, pooler_type):
    model = tiny_model(pooler_type=pooler_type)
    packed = pack_sentences(token_ids(tokenizer), pad_token_id=0)
    tolerance = 4 * torch.finfo(dtype).eps
    with torch.no_grad():
        expected = model(**packed).pooler_output
        with torch.autocast("cpu", dtype=dtype):
            assert_close_to(model(**packed).pooler_output.float(), expected, tolerance)
        half = model.to(dtype)
        output = half(**packed).pooler_output
    assert output.dtype == dtype
    assert_close_to(output.float(), expected, tolerance)
    half.train()(**packed).pooler_output.sum().backward()


def test_inference_keeps_no_state_longer_than_its_layer(tiny_model, tokenizer):
    model = tiny_model()
    alive = []

    def count(module, args, output):
        alive.append(sum(reference() is not None for reference in references))
        references.append(weakref.ref(output))

    references: list = []
    for layer in model.bert.encoder.layer:
        layer.register_forward_hook(count)
    with torch.inference_mode():
        model(**pack_sentences(token_ids(tokenizer), pad_token_id=0))
    # When a layer returns, at most its own input, the output of the one before, is alive.
    assert max(alive) <= 1


def test_copied_and_pickled_models_read_their_own_layers(tiny_model, tokenizer):
    model = tiny_model()
    packed = pack_sentences(token_ids(tokenizer), pad_token_id=0)
    with torch.no_grad():
        expected = model(**packed).pooler_output
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for parameter in model.parameters():
            parameter.zero_()
        for other in others:
            torch.testing.assert_close(other(**packed).pooler_output, expected)


def test_one_model_serves_several_threads(tiny_model, tokenizer):
    model = tiny_model()
    texts = [[f"thread {thread} text {i}" for i in range(20)] for thread in range(4)]
    expected = [model.encode(part, tokenizer) for part in texts]
    results = [None] * 4

    def work(thread):
        for _ in range(5):
            results[thread] = model.encode(texts[thread], tokenizer, max_tokens_per_batch=32)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(results, expected, strict=True):
        assert_close_to(got, want)


def test_a_model_is_built_from_a_configuration_alone(tiny_config):
    model = LayerPoolBertModel(LayerPoolBertConfig(**tiny_config))
    assert set(dict(model.named_children())) == {"bert", "pooler"}
    assert model.pooler.query.weight.shape == (32, 32)
    assert model.pooler.projection.weight.shape == (32, 64)
