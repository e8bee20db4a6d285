"""Exported files give what the model gives, in ONNX Runtime, for any number and length of texts."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation.sentence_transformers_files import SETTINGS_FILE
from modeling_layerpool.publishing import export_onnx as exporting
from modeling_layerpool.publishing.export_onnx import export_onnx, main
from modeling_layerpool.publishing.stock_files import stock_config
from tests.conftest import ENCODERS, SENTENCES
from tests.processes import ROOT


pytestmark = pytest.mark.long


def run(path, tokenizer, texts):
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="np", return_token_type_ids=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["pooler_output"], {name: value.astype(np.int64) for name, value in inputs.items()})[0]


@pytest.fixture(scope="module")
def exported(minilm, tmp_path_factory):
    """The real weights, with a pooler over all layers, as a folder of this package and as ONNX."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    model, tokenizer = load_layerpool(minilm, pooler_type="layer_attention")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / SETTINGS_FILE).write_text('{"prompts": {"query": "what is ", "document": ""}}')
    done = export_onnx(str(folder / "model"), folder / "onnx", int8=True)
    return model.eval(), folder / "onnx", done


def test_real_weights_agree_to_1e4_up_to_512_tokens_and_64_texts(exported, record_difference):
    model, folder, done = exported
    assert done.max_difference < 1e-4
    assert (64, 16) in exporting.SHAPES
    assert (1, 512) in exporting.SHAPES
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [*SENTENCES, "", "word " * 600]
    expected = model.encode(texts, tokenizer)
    np.testing.assert_allclose(run(folder / exporting.MODEL_FILE, tokenizer, texts), expected, atol=1e-4)
    # Padding does not matter.
    alone = np.concatenate([run(folder / exporting.MODEL_FILE, tokenizer, [text]) for text in texts])
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    # Nor on which side it is, but for the positions of the tokens, which are those of transformers.
    batch = tokenizer(texts, padding=True, padding_side="left", truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected_left = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    session = onnxruntime.InferenceSession(str(folder / exporting.MODEL_FILE), providers=["CPUExecutionProvider"])
    feed = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(session.run(["pooler_output"], feed)[0], expected_left, atol=1e-4)
    what = "an exported file, 1 to 64 texts of 1 to 512 tokens"
    record_difference("onnxruntime", what, max(done.max_difference, abs(alone - expected).max()))


def test_the_file_says_what_it_takes_and_gives(exported):
    _, folder, done = exported
    file = onnx.load(folder / exporting.MODEL_FILE)
    assert [entry.version for entry in file.opset_import if entry.domain in ("", "ai.onnx")] == [done.opset]
    session = onnxruntime.InferenceSession(str(folder / exporting.MODEL_FILE), providers=["CPUExecutionProvider"])
    assert {entry.name: entry.type for entry in session.get_inputs()} == {
        "input_ids": "tensor(int64)",
        "attention_mask": "tensor(int64)",
    }
    assert all(isinstance(axis, str) for entry in session.get_inputs() for axis in entry.shape)
    tokens, pooled = session.get_outputs()
    assert (tokens.name, len(tokens.shape), tokens.shape[2]) == ("last_hidden_state", 3, 384)
    assert (pooled.name, len(pooled.shape), pooled.shape[1]) == ("pooler_output", 2, 384)


def test_eight_bits_are_smaller_and_near(exported):
    model, folder, done = exported
    assert done.int8_mib < 0.35 * done.mib
    assert done.int8_cosine > 0.95
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = model.encode(list(SENTENCES), tokenizer)
    got = run(folder / exporting.INT8_FILE, tokenizer, list(SENTENCES))
    cosines = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.95


class FileInOnnxRuntime:
    """What sentence-transformers calls of optimum's `ORTModelForFeatureExtraction`."""

    def __init__(self, folder, config):
        options = {"providers": ["CPUExecutionProvider"]}
        self.session = onnxruntime.InferenceSession(str(Path(folder) / "onnx" / "model.onnx"), **options)
        self.config = config

    def forward(self, input_ids, attention_mask, token_type_ids=None, return_dict=True):
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        [states] = self.session.run(["last_hidden_state"], feed)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states))

    __call__ = forward


def assert_opens_as_onnx_backend(exported):
    model, folder, _ = exported
    stock = SentenceTransformer(str(folder), backend="onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [*SENTENCES, "", "word " * 600]
    np.testing.assert_allclose(stock.encode(texts), model.encode(texts, tokenizer), atol=1e-5)
    questions = model.encode([f"what is {text}" for text in texts], tokenizer)
    np.testing.assert_allclose(stock.encode_query(texts), questions, atol=1e-5)
    assert stock.get_embedding_dimension() == 384


def test_sentence_transformers_opens_the_folder_by_onnx_runtime(exported, monkeypatch):
    """Its files and modules as they are, but without optimum, which no release of transformers 5 has yet."""

    def load(model_name_or_path, config, **options):
        return FileInOnnxRuntime(model_name_or_path, config)

    monkeypatch.setattr("sentence_transformers.base.modules.transformer.load_onnx_model", load)
    assert_opens_as_onnx_backend(exported)


def test_sentence_transformers_opens_the_folder_by_optimum(exported):
    pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx 0.1.0 needs transformers below 4.58")
    assert_opens_as_onnx_backend(exported)


def test_the_first_token_and_the_token_mean_of_the_states_are_the_embedding(exported):
    _, folder, _ = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="np", return_token_type_ids=False)
    session = onnxruntime.InferenceSession(str(folder / exporting.MODEL_FILE), providers=["CPUExecutionProvider"])
    states, pooled = session.run(None, {name: value.astype(np.int64) for name, value in inputs.items()})
    assert states.shape == (*inputs["input_ids"].shape, 384)
    np.testing.assert_array_equal(states[:, 0], pooled)
    np.testing.assert_allclose(states.mean(axis=1), pooled, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_can_be_exported(tiny, tokenizer, encoder, tmp_path):
    model = tiny(encoder)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    done = export_onnx(str(tmp_path / "model"), tmp_path / "onnx")
    assert done.max_difference < 1e-5


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_configuration_of_a_cut_encoder_is_a_stock_one(tiny, encoder, tmp_path):
    model = tiny(encoder, pooler_layers=[0, 2])
    stock_config(model).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == model.config.model_type.removeprefix("layerpool_").replace("_v2", "-v2")
    assert (config.num_hidden_layers, config.hidden_size) == (2, 32)


def export(model):
    """By `torch.export`, with free batch and length."""
    dimensions = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", max=512)}
    return torch.export.export(
        exporting._Embedding(model),
        exporting._inputs(model, 2, 7),
        dynamic_shapes={"input_ids": dimensions, "attention_mask": dimensions},
    )


def largest_difference(model, exported_model):
    differences = []
    for batch, length in ((1, 1), (5, 33), (2, 512)):
        right = exporting._inputs(model, batch, length)
        for inputs in (right, [tensor.flip(1) for tensor in right]):  # padded on either side
            with torch.no_grad():
                differences.append((exported_model(*inputs)[1] - model(*inputs).pooler_output).abs().max())
    return max(differences)


@pytest.mark.parametrize(
    "pooler_type", ["layer_attention", "weighted_layers", "concat_layers", "attentive_layers", "mean_first_last"]
)
def test_torch_export_keeps_batch_and_length_free(tiny_model, pooler_type, record_difference):
    model = tiny_model(pooler_type=pooler_type)
    difference = largest_difference(model, export(model).module())
    assert difference < 2e-6
    record_difference("torch", "`torch.export`, free batch and length", difference)


@pytest.mark.slow
def test_ahead_of_time_compiled_it_gives_the_same(tiny_model, tmp_path, record_difference):
    model = tiny_model()
    package = torch._inductor.aoti_compile_and_package(export(model), package_path=str(tmp_path / "model.pt2"))
    difference = largest_difference(model, torch._inductor.aoti_load_package(package))
    assert difference < 2e-6
    record_difference("torch", "AOTInductor, free batch and length", difference)


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(tiny_model, tokenizer, tmp_path, capsys):
    tiny_model(pooler_type="hire").save_pretrained(tmp_path / "hire")
    tokenizer.save_pretrained(tmp_path / "hire")
    with pytest.raises(InputError, match="pooler_type='hire' cannot be exported: its GRUs read packed sequences"):
        export_onnx(str(tmp_path / "hire"), tmp_path / "out")
    with pytest.raises(InputError, match="opset=9 is too old"):
        export_onnx(str(tmp_path / "hire"), tmp_path / "out", opset=9)
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        export_onnx(str(tmp_path / "hire"), tmp_path / "hire")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hire"]


def test_a_file_that_differs_does_not_stay(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_export", lambda model, path, opset: path.write_bytes(b"nothing"))
    monkeypatch.setattr(exporting, "_compare", lambda model, path: (0.5, 1.0))
    with pytest.raises(InputError, match=r"embeddings differ from the model's by 5\.0e-01"):
        export_onnx(tiny_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exporter_that_fails_is_one_sentence(tiny_folder, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such operator.\nA long story follows.")

    monkeypatch.setattr(exporting, "_export", fail)
    with pytest.raises(InputError, match=r"LayerPoolBertModel could not be exported \(no such operator\)"):
        export_onnx(tiny_folder, tmp_path / "out")


def test_a_package_that_is_not_there_is_named(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"exporting needs .*: pip install onnx onnxscript onnxruntime"):
        export_onnx(tiny_folder, tmp_path / "out")


def test_a_mistake_on_the_command_line_is_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export_onnx", str(tmp_path / "nowhere"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/nowhere: no such folder")


@pytest.mark.slow
def test_the_command_writes_the_folder_and_says_how_near_it_is(tiny_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", exporting.__name__, tiny_folder, str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "largest difference from the model" in done.stdout
    assert (tmp_path / "out" / exporting.MODEL_FILE).is_file()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
