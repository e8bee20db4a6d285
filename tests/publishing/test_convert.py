"""Old checkpoints: what is converted embeds as its authors' formula does, and what cannot be is refused."""

import json
import os
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from modeling_layerpool import LayerPoolBertModel, LayerPoolRobertaModel
from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.publishing import convert
from modeling_layerpool.publishing.convert import main
from tests.conftest import SENTENCES
from tests.processes import run_without_the_package


WIDTH = 16
ENCODERS = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}
CLASSES = {"bert": LayerPoolBertModel, "roberta": LayerPoolRobertaModel}
TEXTS = [*SENTENCES, "", "a man " * 60]
# As transformers 4.2 wrote it.
OLD_CONFIG = {
    "_name_or_path": "somebody/result",
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "transformers_version": "4.2.1",
    "use_cache": True,
}
OF_ENCODER = {
    "bert": {
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
    },
    "roberta": {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 66,
        "model_type": "roberta",
        "pad_token_id": 1,
        "type_vocab_size": 1,
    },
}


class Source:
    """An old checkpoint of random weights, in a folder."""

    def __init__(self, folder, encoder, prefix, kind, seed=0):
        self.folder, self.encoder = folder, encoder
        folder.mkdir(parents=True)
        words = write_bert_vocabulary(folder) if encoder == "bert" else write_roberta_vocabulary(folder)
        self.config = OLD_CONFIG | OF_ENCODER[encoder] | {"vocab_size": words, "architectures": ["ForCL"]}
        self.write_config()
        config_class, model_class = ENCODERS[encoder]
        torch.manual_seed(seed)
        self.model = model_class(config_class(**self.config), add_pooling_layer=False).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) / 4)
        self.tensors = {prefix + name: tensor for name, tensor in self.model.state_dict().items()}
        positions = self.config["max_position_embeddings"]
        self.tensors[f"{prefix}embeddings.position_ids"] = torch.arange(positions).unsqueeze(0)
        self.attention = {name: torch.randn(WIDTH, WIDTH) for name in ("query", "key", "value")}
        self.weight = torch.randn(WIDTH, 2 * WIDTH if kind == "layer-attention" else WIDTH)
        self.bias = torch.randn(WIDTH)
        if kind == "layer-attention":
            self.tensors |= {f"attn.{name}.0.weight": tensor for name, tensor in self.attention.items()}
        mlp = "mlp" if prefix else "pooler"
        self.tensors |= {f"{mlp}.dense.weight": self.weight, f"{mlp}.dense.bias": self.bias}
        self.write()

    def write_config(self, **changes):
        (self.folder / "config.json").write_text(json.dumps(self.config | changes))

    def write(self, **changes):
        """Save the tensors, some of them changed (`__` for a dot), or without those that become None."""
        changes = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        kept = {name: tensor for name, tensor in (self.tensors | changes).items() if tensor is not None}
        torch.save(kept, self.folder / "pytorch_model.bin")

    def rename(self, old, new):
        self.tensors = {name.replace(old, new): tensor for name, tensor in self.tensors.items()}
        self.write()

    @torch.no_grad()
    def embeddings(self, formula):
        """In float64, each sentence by itself."""
        tokenizer, rows = AutoTokenizer.from_pretrained(self.folder), []
        encoder = ENCODERS[self.encoder][1](self.model.config, add_pooling_layer=False).double().eval()
        encoder.load_state_dict(self.model.state_dict())
        for text in TEXTS:
            inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            rows.append(formula(self, encoder(**inputs, output_hidden_states=True).hidden_states))
        return torch.stack(rows)


def write_bert_vocabulary(folder):
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "man",
        "is",
        "play",
        "##ing",
        "guitar",
        "##s",
        ".",
        "the",
    ]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in [*words, "layer", "!", "quick", "fox", "dog"]))
    return len(words) + 5


def write_roberta_vocabulary(folder):
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "an", "Ġm", "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na n\nĠ m\n")
    return len(words)


def layer_attention(source, states):
    """The formula of Oh et al., one query after the other."""

    def f(x):
        return torch.tensor([number if number >= 0 else number * (1 / 8 + 1 / 3) / 2 for number in x.tolist()])

    torch.set_default_dtype(torch.float64)
    try:
        maps = {name: weight.double() for name, weight in source.attention.items()}
        n, u = len(states), torch.zeros(WIDTH)
        for i in range(n):
            query = f(maps["query"] @ states[i][0, 0])
            scores = []
            for j in range(n):
                key = f(maps["key"] @ states[j][0].mean(dim=0))
                scores.append(torch.dot(query, key) / n)
            weights = torch.exp(torch.stack(scores) - max(scores))
            weights = weights / weights.sum()
            for j in range(n):
                u = u + weights[j] * f(maps["value"] @ states[j][0].mean(dim=0)) / n
        return torch.tanh(source.weight.double() @ torch.cat([states[-1][0, 0], u]) + source.bias.double())
    finally:
        torch.set_default_dtype(torch.float32)


def mlp_on_cls(source, states):
    return torch.tanh(source.weight.double() @ states[-1][0, 0] + source.bias.double())


def plain_cls(source, states):
    return states[-1][0, 0]


@pytest.fixture
def make_source(tmp_path):
    def make(kind="layer-attention", encoder="bert", prefix=None, name="source"):
        return Source(tmp_path / name, encoder, f"{encoder}." if prefix is None else prefix, kind)

    return make


@pytest.fixture
def output(tmp_path):
    return tmp_path / "converted" / "encoder-v1.0"


def assert_embeds_as(source, output, formula):
    expected = source.embeddings(formula)
    tokenizer = AutoTokenizer.from_pretrained(output)
    inputs = tokenizer(TEXTS, truncation=True, max_length=64, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(output, dtype=torch.float64)
    assert type(model) is CLASSES[source.encoder]
    with torch.no_grad():
        got = model(**inputs).pooler_output
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    embeddings = model.float().encode(TEXTS, tokenizer)
    np.testing.assert_allclose(embeddings, expected.numpy(), atol=2e-5)


def refusal(*arguments, **options):
    with pytest.raises(InputError) as error:
        convert.convert(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def with_everything_old(source, prefix):
    """Names of TensorFlow, a pooler of the encoder's, and the head of the auxiliary loss."""
    source.tensors |= {
        f"{prefix}pooler.dense.weight": torch.randn(WIDTH, WIDTH),
        f"{prefix}pooler.dense.bias": torch.randn(WIDTH),
        "lm_head.bias": torch.randn(3),
        "lm_head.transform.LayerNorm.weight": torch.randn(WIDTH),
        "cls.predictions.decoder.weight": torch.randn(3, WIDTH),
    }
    source.tensors = {
        re.sub("LayerNorm.weight$", "LayerNorm.gamma", re.sub("LayerNorm.bias$", "LayerNorm.beta", name)): tensor
        for name, tensor in source.tensors.items()
    }
    source.write()


# --- what is converted ---


@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_layer_attention_embeds_as_the_formula(make_source, output, encoder):
    source = make_source(encoder=encoder)
    done = convert.convert(source.folder, output)
    assert (done.kind, done.pooler_type, done.model_class) == (
        "layer-attention",
        "layer_attention",
        CLASSES[encoder].__name__,
    )
    assert done.max_difference < 1e-5
    assert_embeds_as(source, output, layer_attention)


@pytest.mark.parametrize(
    ("encoder", "prefix"), [("bert", "bert."), ("roberta", "roberta."), ("bert", ""), ("roberta", "")]
)
@pytest.mark.parametrize(("mlp", "formula"), [("keep", mlp_on_cls), ("drop", plain_cls)])
def test_simcse_embeds_with_its_mlp_or_without(make_source, output, encoder, prefix, mlp, formula):
    source = make_source("simcse", encoder, prefix)
    done = convert.convert(source.folder, output, kind=None if prefix else "simcse", mlp=mlp)
    assert done.kind == "simcse"
    assert done.pooler_type == {"keep": "layer_attention", "drop": "cls"}[mlp]
    assert_embeds_as(source, output, formula)


def test_old_names_and_what_is_left_out(make_source, output):
    source = make_source()
    with_everything_old(source, "bert.")
    assert "bert.embeddings.LayerNorm.gamma" in source.tensors
    done = convert.convert(source.folder, output)
    assert set(done.left_out) == {
        "bert.embeddings.position_ids",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "lm_head.bias",
        "lm_head.transform.LayerNorm.gamma",
        "cls.predictions.decoder.weight",
    }
    assert done.tensors + len(done.left_out) == len(source.tensors)
    assert all(name in str(done) for name in done.left_out)
    assert f"{done.max_difference:.1e}" in str(done)
    assert_embeds_as(source, output, layer_attention)


def test_a_dropped_mlp_is_named_among_what_is_left_out(make_source, output):
    done = convert.convert(make_source("simcse").folder, output, mlp="drop")
    assert {"mlp.dense.weight", "mlp.dense.bias"} <= set(done.left_out)


def test_training_leaves_simcses_mlp_a_plain_mlp(make_source, output):
    source = make_source("simcse")
    convert.convert(source.folder, output, mlp="keep")
    model = AutoModel.from_pretrained(output).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = model.pooler.projection.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]])).pooler_output.square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert not torch.equal(model.pooler.projection.weight[:, :WIDTH], before[:, :WIDTH])
    for weight in (model.pooler.query, model.pooler.key, model.pooler.value):
        assert not weight.weight.any()
    assert not model.pooler.projection.weight[:, WIDTH:].any()


def test_safetensors_go_before_a_pickle(make_source, output):
    source = make_source()
    save_file(source.tensors, source.folder / "model.safetensors")
    (source.folder / "pytorch_model.bin").write_bytes(b"nothing")
    convert.convert(source.folder, output)
    assert_embeds_as(source, output, layer_attention)


def test_a_file_is_converted_with_what_lies_beside_it(make_source, output):
    source = make_source()
    (source.folder / "pytorch_model.bin").rename(source.folder / "best.bin")
    convert.convert(source.folder / "best.bin", output)
    assert_embeds_as(source, output, layer_attention)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_without_loss(make_source, output, dtype):
    source = make_source()
    halves = {name: t.to(dtype) if t.is_floating_point() else t for name, t in source.tensors.items()}
    torch.save(halves, source.folder / "pytorch_model.bin")
    source.write_config(torch_dtype=str(dtype).removeprefix("torch."))
    convert.convert(source.folder, output)
    model = LayerPoolBertModel.from_pretrained(output)
    assert model.dtype == torch.float32
    assert torch.equal(model.pooler.key.weight, halves["attn.key.0.weight"].float())
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(model.bert.state_dict()[name], halves[f"bert.{name}"].float())


def test_the_tokenizer_goes_along(make_source, output):
    source = make_source()
    convert.convert(source.folder, output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    words = (source.folder / "vocab.txt").read_text().split()
    wanted = ["[CLS]", "a", "man", "is", "play", "##ing", "[UNK]", "[SEP]"]
    assert tokenizer("A man is playing flute")["input_ids"] == [words.index(word) for word in wanted]


def test_prompts_go_along(make_source, output):
    source, prompts = make_source(), {"query": "a man: ", "document": ""}
    path = source.folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": prompts, "default_prompt_name": "query"}))
    convert.convert(source.folder, output)
    config = AutoModel.from_pretrained(output).config
    assert (config.prompts, config.default_prompt_name) == (prompts, "query")


@pytest.mark.long
@pytest.mark.parametrize(("kind", "encoder"), [("layer-attention", "bert"), ("simcse", "roberta")])
def test_it_opens_without_the_package(make_source, output, tmp_path, kind, encoder):
    source = make_source(kind, encoder)
    convert.convert(source.folder, output, mlp="keep" if kind == "simcse" else None)
    expected = source.embeddings(layer_attention if kind == "layer-attention" else mlp_on_cls)
    np.save(tmp_path / "expected.npy", expected.numpy())
    code = """
        import json
        import numpy as np
        from transformers import AutoModel, AutoTokenizer
        model, info = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        got = model.encode(json.loads(sys.argv[2]), tokenizer)
        assert abs(got - np.load("expected.npy")).max() < 2e-5
    """
    run_without_the_package(code, output, json.dumps(TEXTS), cwd=tmp_path)


def test_training_goes_on_from_it(make_source, output):
    convert.convert(make_source().folder, output)
    model, tokenizer = load_layerpool(str(output))
    assert model.config.pooler_type == "layer_attention"
    assert len(tokenizer) == model.config.vocab_size


# --- what is refused ---


def test_what_is_not_there_is_named(make_source, output, tmp_path):
    assert "no such folder or file" in refusal(tmp_path / "none", output)
    source = make_source()
    (source.folder / "pytorch_model.bin").rename(tmp_path / "pytorch_model.bin")
    assert "has no weights (model.safetensors or pytorch_model.bin" in refusal(source.folder, output)
    assert "has no config.json" in refusal(tmp_path / "pytorch_model.bin", output)
    source.write()
    (source.folder / "vocab.txt").unlink()
    assert "has no tokenizer" in refusal(source.folder, output)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"hidden_size": "wide"}', '{"num_attention_heads": 0}', '{"hidden_act": 1}']
)
def test_a_broken_configuration_is_named(make_source, output, content):
    source = make_source()
    (source.folder / "config.json").write_text(content)
    assert "config.json" in refusal(source.folder, output)


def test_other_models_are_refused(make_source, output):
    source = make_source()
    source.write_config(model_type="mpnet")
    assert "a model of type 'mpnet'; supported are bert, roberta, xlm-roberta" in refusal(source.folder, output)
    source.write_config(model_type="layerpool_bert")
    assert "is already a model of this package" in refusal(source.folder, output)
    source.write_config(model_type="roberta")
    assert "roberta.embeddings.word_embeddings.weight" in refusal(source.folder, output)


def test_unknown_tensors_are_named(make_source, output):
    source = make_source()
    source.write(attn__query__2__weight=torch.zeros(1), bert__encoder__layer__0__distance_embedding=torch.zeros(1))
    assert refusal(source.folder, output).endswith(
        "2 tensors unknown, taken as layer-attention: attn.query.2.weight, bert.encoder.layer.0.distance_embedding"
    )


def test_missing_tensors_are_named(make_source, output):
    source = make_source()
    source.write(attn__value__0__weight=None, bert__encoder__layer__2__output__dense__bias=None)
    assert refusal(source.folder, output).endswith(
        "2 tensors missing, taken as layer-attention: bert.encoder.layer.2.output.dense.bias, attn.value.0.weight"
    )


def test_a_layer_more_than_the_configuration_has_is_refused(make_source, output):
    source = make_source()
    source.write_config(num_hidden_layers=2)
    assert re.search(r"16 tensors unknown.* bert\.encoder\.layer\.2\..* and 11 more$", refusal(source.folder, output))


def test_other_shapes_are_named(make_source, output):
    source = make_source()
    source.write(mlp__dense__weight=torch.zeros(WIDTH, WIDTH))
    assert "mlp.dense.weight is (16, 16) rather than (16, 32)" in refusal(source.folder, output)
    source.write_config(intermediate_size=40)
    assert "bert.encoder.layer.0.intermediate.dense.weight is (37, 16) rather than (40, 16)" in refusal(
        source.folder, output
    )


def test_a_tensor_by_two_names_is_refused(make_source, output):
    source = make_source()
    source.write(bert__embeddings__LayerNorm__gamma=torch.ones(WIDTH))
    names = "bert.embeddings.LayerNorm.weight and bert.embeddings.LayerNorm.gamma"
    assert f"{names} are two names of one tensor" in refusal(source.folder, output)


def test_numbers_that_would_not_be_the_same_are_refused(make_source, output):
    source = make_source()
    source.write(mlp__dense__bias=source.bias.double())
    assert "mlp.dense.bias is torch.float64" in refusal(source.folder, output)
    source.write(attn__key__0__weight=torch.full((WIDTH, WIDTH), torch.nan))
    assert "attn.key.0.weight holds numbers that are not finite" in refusal(source.folder, output)
    source.write(bert__embeddings__position_ids=torch.arange(64).flip(0).unsqueeze(0))
    assert "bert.embeddings.position_ids does not count from 0" in refusal(source.folder, output)


def test_a_tokenizer_of_too_many_words_is_refused(make_source, output):
    source = make_source()
    with (source.folder / "vocab.txt").open("a") as file:
        file.write("further\n")
    assert "the tokenizer has 20 tokens, but the model only 19" in refusal(source.folder, output)


def test_simcse_needs_a_word_about_its_mlp(make_source, output):
    source = make_source("simcse")
    assert "--mlp keep or --mlp drop" in refusal(source.folder, output)
    assert "2 tensors missing" not in refusal(source.folder, output)
    attention = make_source(name="attention")
    assert "--mlp is for SimCSE" in refusal(attention.folder, output, mlp="drop")
    assert "kind='other' is unknown" in refusal(source.folder, output, kind="other")


def test_a_kind_that_cannot_be_seen_has_to_be_named(make_source, output):
    source = make_source("simcse", prefix="")
    assert "give --kind simcse" in refusal(source.folder, output, mlp="keep")
    source.write(pooler__dense__weight=None, pooler__dense__bias=None)
    assert "neither layer-wise attention pooling" in refusal(source.folder, output, mlp="keep")
    assert "pooler.dense.weight, pooler.dense.bias" in refusal(source.folder, output, kind="simcse", mlp="drop")


def test_a_wrong_kind_is_refused(make_source, output):
    assert "attn.query.0.weight" in refusal(make_source("simcse").folder, output, kind="layer-attention")
    assert "3 tensors unknown, taken as simcse" in refusal(
        make_source(name="attention").folder, output, kind="simcse", mlp="keep"
    )


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_not_run(make_source, output, tmp_path):
    source = make_source()
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"attn.query.0.weight": Malicious(str(tmp_path / "ran"))}, source.folder / "pytorch_model.bin")
        assert "cannot be opened without running its code" in refusal(source.folder, output)
        assert not (tmp_path / "ran").exists()


def test_damaged_weights_are_refused(make_source, output):
    source = make_source()
    path = source.folder / "pytorch_model.bin"
    whole = path.read_bytes()
    for content in (b"", b"no pickle", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert str(path) in refusal(source.folder, output)
    for content in ([source.bias], {"model": {"mlp.dense.bias": source.bias}}):
        torch.save(content, path)
        assert "is not a dictionary of tensors" in refusal(source.folder, output)
    (source.folder / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors: could not be read" in refusal(source.folder, output)


def test_an_output_folder_in_use_is_left_alone(make_source, output, monkeypatch):
    source = make_source()
    output.mkdir(parents=True)
    (output / "mine.txt").write_text("kept")
    assert "is not empty" in refusal(source.folder, output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    assert "is a file, not a folder" in refusal(source.folder, output / "mine.txt")
    assert "is a file, not a folder" in refusal(source.folder, output / "mine.txt" / "below")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "no permission" in refusal(source.folder, output / "new")


def test_an_empty_output_folder_is_used(make_source, output):
    output.mkdir(parents=True)
    convert.convert(make_source().folder, output)
    assert (output / "model.safetensors").is_file()
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("fault", [1e-2, torch.nan])
def test_nothing_is_left_of_a_model_that_does_not_embed_as_the_formula(make_source, output, monkeypatch, fault):
    right = convert.original_embedding
    monkeypatch.setattr(convert, "original_embedding", lambda states, head: right(states, head) + fault)
    assert "differ from the original formula's by" in refusal(make_source().folder, output)
    assert list(output.parent.iterdir()) == []


def test_a_configuration_that_asks_for_more_is_found_out(make_source, output):
    source = make_source()
    source.write_config(is_decoder=True)
    assert "config.json may ask for an option that this package does not support" in refusal(source.folder, output)
    assert not output.exists()


def test_an_interrupted_conversion_leaves_nothing(make_source, output, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "compare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert.convert(make_source().folder, output)
    assert list(output.parent.iterdir()) == []


# --- the command ---


def test_the_command_says_what_it_did(make_source, output, monkeypatch, capsys):
    source = make_source("simcse")
    monkeypatch.setattr(sys, "argv", ["convert", str(source.folder), str(output), "--mlp", "keep"])
    main()
    first, left_out, difference = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{output}: LayerPoolBertModel, pooler layer_attention")
    assert left_out.startswith("left out: bert.embeddings.position_ids (")
    assert float(difference.rpartition(" ")[2]) < 1e-5
    assert_embeds_as(source, output, mlp_on_cls)


def test_the_command_ends_on_bad_input_with_one_sentence_and_code_2(make_source, output, monkeypatch, capsys):
    source = make_source("simcse")
    for arguments in ([source.folder, output], [source.folder, output, "--kind", "other"]):
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert "error: " in sentence
    assert not output.exists()
