"""A plain export gives what the model gives, in tools that know nothing of this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from modeling_layerpool.common.checkpoints import load_layerpool
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.publishing import export_plain as exporting
from modeling_layerpool.publishing.export_onnx import export_onnx
from modeling_layerpool.publishing.export_plain import export_plain, main
from tests.conftest import ENCODERS, SENTENCES, assert_close_to


TEXTS = [*SENTENCES, "", "word " * 600]


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pooled_in_float64(folder, pooling, texts):
    """The definition, a text at a time: the mean of the last states, or the first of them."""
    encoder, tokenizer = AutoModel.from_pretrained(folder).double().eval(), AutoTokenizer.from_pretrained(folder)
    embeddings = []
    for text in texts:
        with torch.no_grad():
            states = encoder(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state[0]
        embeddings.append(states[0] if pooling == "cls" else states.mean(dim=0))
    return torch.stack(embeddings).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_opens_as_a_stock_one_with_the_same_embeddings(tiny, tokenizer_of, encoder, pooling, tmp_path):
    model, tokenizer = tiny(encoder, pooler_type=pooling), tokenizer_of[encoder]
    done = export_plain(save(model, tokenizer, tmp_path / "model"), tmp_path / "plain")
    assert done.max_difference < 2e-6
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "auto_map" not in config
    assert not {"pooler_type", "pooler_layers", "projection_dim"} & config.keys()
    assert not list((tmp_path / "plain").glob("*.py"))
    _, report = AutoModel.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    texts = list(SENTENCES)
    expected = model.encode(texts, tokenizer)
    assert_close_to(SentenceTransformer(str(tmp_path / "plain")).encode(texts), expected)
    assert_close_to(pooled_in_float64(tmp_path / "plain", pooling, texts), expected.astype(np.float64))


def test_real_weights_agree_to_1e6_at_all_lengths(minilm, tmp_path):
    model, tokenizer = load_layerpool(minilm, pooler_type="mean")
    export_plain(save(model, tokenizer, tmp_path / "model"), tmp_path / "plain")
    expected = model.eval().encode(TEXTS, tokenizer)
    stock = SentenceTransformer(str(tmp_path / "plain"))
    assert stock.max_seq_length == 512
    # Tools without transformers read the files of the tokenizer. This one's were made for 128 tokens.
    tokens = Tokenizer.from_file(str(tmp_path / "plain" / "tokenizer.json"))
    assert [len(tokens.encode(text).ids) for text in ("a text", TEXTS[-1])] == [4, 512]
    assert "max_length" not in json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    np.testing.assert_allclose(stock.encode(TEXTS), expected, atol=1e-6)


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "modernbert"])
def test_an_encoder_that_is_cut_has_fewer_layers(tiny, tokenizer_of, encoder, tmp_path):
    model, tokenizer = tiny(encoder, pooler_type="mean", pooler_layers=[0, 2]), tokenizer_of[encoder]
    done = export_plain(save(model, tokenizer, tmp_path / "model"), tmp_path / "plain")
    assert done.layers == 2
    assert AutoModel.from_pretrained(tmp_path / "plain").config.num_hidden_layers == 2
    texts = list(SENTENCES)
    assert_close_to(SentenceTransformer(str(tmp_path / "plain")).encode(texts), model.encode(texts, tokenizer))


def test_the_projection_and_the_modules_of_sentence_transformers_are_kept(tiny_model, tokenizer, tmp_path):
    from sentence_transformers.models import Dense, Normalize

    model = tiny_model(pooler_type="cls", projection_dim=8)
    folder = save(model, tokenizer, tmp_path / "model")
    torch.manual_seed(0)
    ours = SentenceTransformer(modules=[*SentenceTransformer(folder), Dense(8, 5), Normalize()])
    ours.prompts = {"query": "what is ", "document": ""}
    ours.save(str(tmp_path / "ours"), create_model_card=False)
    done = export_plain(str(tmp_path / "ours"), tmp_path / "plain")
    assert done.modules == ("cls pooling", "projection", "Dense", "Normalize")
    plain = SentenceTransformer(str(tmp_path / "plain"))
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    texts = list(SENTENCES)
    assert_close_to(plain.encode(texts), ours.encode(texts))
    assert_close_to(plain.encode_query(texts), ours.encode_query(texts))
    assert abs(plain.encode_query(texts) - plain.encode(texts)).max() > 1e-4


def test_prompts_are_left_out_of_the_mean_as_in_the_model(tiny_model, tokenizer, tmp_path):
    prompts = {"query": "what is ", "document": ""}
    model = tiny_model(pooler_type="mean", projection_dim=8, include_prompt=False, prompts=prompts)
    export_plain(save(model, tokenizer, tmp_path / "model"), tmp_path / "plain")
    plain = SentenceTransformer(str(tmp_path / "plain"))
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Dense"]
    texts = list(SENTENCES)
    expected = model.encode(texts, tokenizer, prompt_name="query")
    assert_close_to(plain.encode_query(texts), expected)
    assert abs(model.encode(texts, tokenizer, prompt="") - expected).max() > 1e-4
    with pytest.raises(InputError, match="include_prompt=False cannot be exported to ONNX"):
        export_onnx(str(tmp_path / "model"), tmp_path / "onnx")


def test_a_pooling_in_place_of_the_pooler_is_not_added_to_it(tiny_model, tokenizer, tmp_path):
    model = tiny_model(pooler_type="mean", include_prompt=False, prompts={"query": "what is "})
    model.config.default_prompt_name = "query"
    folder = save(model, tokenizer, tmp_path / "model")
    ours = SentenceTransformer(folder)
    export_plain(folder, tmp_path / "plain")
    plain = SentenceTransformer(str(tmp_path / "plain"))
    assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling"]
    assert_close_to(plain.encode(list(SENTENCES)), ours.encode(list(SENTENCES)))


@pytest.mark.long
def test_a_folder_opens_where_this_package_is_not(tiny_folder, tmp_path):
    export_plain(tiny_folder, tmp_path / "plain")
    program = (
        "import sys\n"
        "sys.modules['modeling_layerpool'] = None\n"  # an import of it fails
        "from sentence_transformers import SentenceTransformer\n"
        "print(SentenceTransformer(sys.argv[1], trust_remote_code=False).encode('a text').shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "plain")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(32,)\n"
    assert "MISSING" not in done.stderr


@pytest.mark.parametrize(
    ("pooler_type", "way_out"),
    [
        ("layer_attention", "export_onnx"),
        ("weighted_layers", "export_onnx"),
        ("mean_first_last", "export_onnx"),
        ("hire", "serve it with its own code"),
    ],
)
def test_another_pooler_is_one_sentence_that_names_what_to_do(tiny_model, tokenizer, tmp_path, pooler_type, way_out):
    folder = save(tiny_model(pooler_type=pooler_type), tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match=rf"pooler_type='{pooler_type}' reads several hidden states, .*{way_out}"):
        export_plain(folder, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_a_cut_modernbert_has_no_final_norm_and_is_refused(tiny, tokenizer, tmp_path):
    folder = save(tiny("modernbert", pooler_type="mean", pooler_layers=[2]), tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match=r"has no final_norm\.weight, but a stock ModernBertModel always has it"):
        export_plain(folder, tmp_path / "plain")


def test_what_needs_no_export_or_has_no_room_is_one_sentence(tiny_folder, minilm, tmp_path):
    with pytest.raises(InputError, match="is not a model of this package; it opens without its code as it is"):
        export_plain(minilm, tmp_path / "plain")
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        export_plain(tiny_folder, tiny_folder)


def test_a_module_with_its_own_code_is_refused(tiny_folder, tmp_path):
    path = tmp_path / "tiny" / "modules.json"
    modules = json.loads(path.read_text())
    path.write_text(json.dumps([*modules, {"idx": 1, "name": "1", "path": "1_Mine", "type": "mine.Head"}]))
    with pytest.raises(InputError, match=r"mine\.Head is not of sentence-transformers; remove it"):
        export_plain(tiny_folder, tmp_path / "plain")


def test_a_result_that_differs_does_not_stay(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_embeddings", lambda *arguments: torch.ones(1))
    with pytest.raises(InputError, match="the exported model's embeddings differ from the model's by"):
        export_plain(tiny_folder, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_the_command_says_what_it_wrote_and_a_mistake_is_exit_code_2(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export_plain", tiny_folder, str(tmp_path / "plain")])
    main()
    assert f"{tmp_path}/plain: BertModel, 3 layers, then mean pooling; opens without" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/plain: is not empty; name a new folder\n"
