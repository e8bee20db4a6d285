"""A saved folder opens everywhere: without the package, after another save, and in sentence-transformers."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling_layerpool import LayerPoolBertModel
from tests.conftest import ENCODERS, POOLER_TYPES, SENTENCES, assert_close_to
from tests.processes import run_without_the_package


def code_files(encoder):
    """The code files of a checkpoint: the shared ones, and those of its encoder."""
    return {
        "configuration_layerpool.py",
        f"configuration_layerpool_{encoder}.py",
        "modeling_layerpool.py",
        f"modeling_layerpool_{encoder}.py",
        "modeling_layerpool_classification.py",
        "modeling_layerpool_encode.py",
        "modeling_layerpool_hire.py",
        "modeling_layerpool_attention.py",
        "modeling_layerpool_packing.py",
        "modeling_layerpool_pooler_base.py",
        "modeling_layerpool_poolers.py",
        "modeling_layerpool_saving.py",
        "modeling_layerpool_texts.py",
    }


CODE_FILES = code_files("bert")


@pytest.fixture
def real_folder(minilm, minilm_tokenizer, tmp_path):
    def save(**options):
        torch.manual_seed(0)
        model = LayerPoolBertModel.from_pretrained(minilm, **options).eval()
        folder = tmp_path / "layerpool-v1.0"  # dots and dashes, as real names have
        model.save_pretrained(folder)
        minilm_tokenizer.save_pretrained(folder)
        return model, folder

    return save


def test_a_saved_folder_holds_weights_code_and_the_files_of_sentence_transformers(real_folder):
    _, folder = real_folder()
    names = {path.name for path in folder.iterdir()}
    assert names >= CODE_FILES | {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "modules.json",
        "sentence_bert_config.json",
    }
    assert {name for name in names if name.endswith(".py")} == CODE_FILES
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_layerpool_bert.LayerPoolBertConfig",
        "AutoModel": "modeling_layerpool_bert.LayerPoolBertModel",
        "AutoModelForSequenceClassification": "modeling_layerpool_bert.LayerPoolBertForSequenceClassification",
    }


def test_the_travelling_code_imports_torch_and_transformers_only(real_folder):
    import ast

    _, folder = real_folder(pooler_type="mean")
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in modules:
                top = module.split(".")[0]
                assert top in {"torch", "transformers"} | sys.stdlib_module_names, (file.name, module)


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{"pooler_type": "layer_attention"}, {"pooler_type": "weighted_layers", "pooler_layers": [0, 3]}]
)
def test_it_opens_embeds_and_saves_again_without_the_package(real_folder, tmp_path, options, record_difference):
    model, folder = real_folder(**options)
    texts = [*SENTENCES, "", "word " * 600]
    from transformers import AutoTokenizer

    np.save(tmp_path / "expected.npy", model.encode(texts, AutoTokenizer.from_pretrained(folder)))
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = """
        import json
        import numpy as np, torch
        from transformers import AutoModel, AutoTokenizer
        folder, again = sys.argv[1], sys.argv[1] + "-again"
        texts = json.load(open("texts.json"))
        expected = np.load("expected.npy")
        for path in (folder, again):
            model, info = AutoModel.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            assert not info["missing_keys"] and not info["unexpected_keys"], info
            got = model.encode(texts, tokenizer)
            assert (model.encode(texts) == got).all()  # with the tokenizer of the folder
            rounding = 2e-6 * max(1, abs(expected).max())
            assert abs(got - expected).max() <= rounding, abs(got - expected).max()
            batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                padded = model.eval()(**batch).pooler_output.numpy()
            assert abs(padded - expected).max() <= rounding, abs(padded - expected).max()
            if path == folder:
                model.save_pretrained(again)
                tokenizer.save_pretrained(again)
        print(max(abs(got - expected).max(), abs(padded - expected).max()))
    """
    done = run_without_the_package(code, folder, cwd=tmp_path)
    what = "`AutoModel` with the saved folder's code, saved again, without this package"
    record_difference("transformers", what, done.stdout.split()[-1])
    assert {path.name for path in (tmp_path / "layerpool-v1.0-again").glob("*.py")} == CODE_FILES


@pytest.mark.long
@pytest.mark.parametrize("options", [*({"pooler_type": name} for name in POOLER_TYPES), {"projection_dim": 48}])
def test_sentence_transformers_gives_the_same_embeddings(real_folder, options, record_difference):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    model, folder = real_folder(**options)
    texts = [*SENTENCES, "word " * 600]
    expected = model.encode(texts, AutoTokenizer.from_pretrained(folder))
    other = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    got = other.encode(texts)
    assert_close_to(got, expected, 1e-5 if options.get("pooler_type") == "hire" else 2e-6)
    assert other.get_embedding_dimension() == model.embedding_dim
    record_difference("sentence-transformers", "`encode` of a saved folder, every pooler", abs(got - expected).max())


@pytest.mark.long
def test_sentence_transformers_opens_it_without_the_package(real_folder, tmp_path):
    from transformers import AutoTokenizer

    model, folder = real_folder()
    np.save(tmp_path / "expected.npy", model.encode(list(SENTENCES), AutoTokenizer.from_pretrained(folder)))
    code = """
        import json
        import numpy as np
        from sentence_transformers import SentenceTransformer
        model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
        got = model.encode(json.loads(sys.argv[2]))
        expected = np.load("expected.npy")
        assert abs(got - expected).max() < 2e-6 * max(1, abs(expected).max())
    """
    run_without_the_package(code, folder, json.dumps(SENTENCES), cwd=tmp_path)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_save_names_all_classes_and_carries_its_encoders_code_only(tiny, tmp_path, encoder):
    name = ENCODERS[encoder]
    for classifier in (False, True):
        folder = tmp_path / str(classifier)
        tiny(encoder, classifier=classifier).save_pretrained(folder)
        assert {path.name for path in folder.glob("*.py")} == code_files(encoder)
        assert (folder / "modules.json").exists() == (not classifier)
        assert (folder / "sentence_bert_config.json").exists() == (not classifier)
        assert json.loads((folder / "config.json").read_text())["auto_map"] == {
            "AutoConfig": f"configuration_layerpool_{encoder}.LayerPool{name}Config",
            "AutoModel": f"modeling_layerpool_{encoder}.LayerPool{name}Model",
            "AutoModelForSequenceClassification": f"modeling_layerpool_{encoder}.LayerPool{name}"
            "ForSequenceClassification",
        }


@pytest.mark.long
@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_encoder_and_classifier_folders_open_crosswise_without_the_package(tiny, tokenizer_of, tmp_path, encoder):
    tokenizer = tokenizer_of[encoder]
    texts = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    expected = {"inputs": dict(texts)}
    for classifier in (False, True):
        model = tiny(encoder, classifier=classifier, pooler_type="hire", pooler_gru_size=10)
        folder = tmp_path / ("classifier" if classifier else "encoder")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with torch.no_grad():
            output = model(**texts)
        expected[folder.name] = output.logits if classifier else output.pooler_output
    torch.save(expected, tmp_path / "expected.pt")
    code = """
        import torch
        from transformers import AutoModel, AutoModelForSequenceClassification, pipeline
        expected = torch.load("expected.pt")
        def check(auto_class, folder, missing, weights_of=None):
            model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            assert {key.split(".")[0] for key in info["missing_keys"]} == missing, info
            assert not info["unexpected_keys"] and not info["mismatched_keys"], info
            with torch.no_grad():
                return model, model(**expected["inputs"])
        model, output = check(AutoModel, "encoder", set())
        torch.testing.assert_close(output.pooler_output, expected["encoder"])
        model.save_pretrained("encoder-again")
        model, output = check(AutoModelForSequenceClassification, "classifier", set())
        torch.testing.assert_close(output.logits, expected["classifier"])
        with torch.no_grad():
            logits = output.logits
            _, embedded = check(AutoModel, "classifier", set())
            torch.testing.assert_close(model.classifier(embedded.pooler_output), logits)
        model, _ = check(AutoModelForSequenceClassification, "encoder", {"classifier"})
        model.save_pretrained("classifier-again")
        _, output = check(AutoModel, "classifier-again", set())
        torch.testing.assert_close(output.pooler_output, expected["encoder"])
        check(AutoModelForSequenceClassification, "encoder-again", {"classifier"})
        classify = pipeline("text-classification", model="classifier", trust_remote_code=True, device="cpu")
        assert len(classify([{"text": "A man.", "text_pair": "Layers!"}, {"text": "A man."}])) == 2
    """
    run_without_the_package(code, cwd=tmp_path)


@pytest.mark.parametrize("pooler_type", ["layer_attention", "hire"])
def test_sentence_transformers_opens_roberta(tiny, roberta_tokenizer, tmp_path, pooler_type):
    from sentence_transformers import SentenceTransformer

    model = tiny("roberta", pooler_type=pooler_type)
    model.save_pretrained(tmp_path)
    roberta_tokenizer.save_pretrained(tmp_path)
    other = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert other.get_embedding_dimension() == model.embedding_dim
    expected = model.encode(SENTENCES, roberta_tokenizer)
    assert_close_to(other.encode(SENTENCES), expected, 1e-5 if pooler_type == "hire" else 2e-6)


def test_a_folder_of_the_earlier_layout_opens(tiny_model, tmp_path):
    """One modeling file, no classifier, and the activation of layer attention written out for every pooler."""
    model = tiny_model(pooler_type="mean")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pooler_activation"] = "rrelu"
    for field in ("pooler_gru_size", "pooler_gru_layers"):
        del config[field]
    config["auto_map"] = {
        "AutoConfig": "configuration_layerpool.LayerPoolBertConfig",
        "AutoModel": "modeling_layerpool.LayerPoolBertModel",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, info = AutoModel.from_pretrained(tmp_path, trust_remote_code=True, output_loading_info=True)
    assert type(again) is LayerPoolBertModel
    assert not any(info.values())
    again.save_pretrained(tmp_path / "again")
    auto_map = json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_layerpool_bert.LayerPoolBertModel"


def test_only_the_main_process_writes(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "modules.json").exists()


def test_a_pooler_of_another_kind_starts_afresh(real_folder):
    _, folder = real_folder(pooler_type="weighted_layers")
    model, info = LayerPoolBertModel.from_pretrained(folder, pooler_type="layer_attention", output_loading_info=True)
    assert info["missing_keys"] == {f"pooler.{name}" for name in model.pooler.state_dict()}
