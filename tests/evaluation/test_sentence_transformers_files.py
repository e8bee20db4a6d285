"""Folders of sentence-transformers, and ours with modules or prompts that were added to them."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding, WordEmbeddings
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import (
    CachingEncoder,
    alignment,
    evaluate_geometry,
    evaluate_retrieval,
    load_encoder,
    mean_cosine,
)
from modeling_layerpool.evaluation.encoders import LayerPoolEncoder, SentenceTransformersEncoder
from tests.conftest import assert_close_to
from tests.evaluation.data import SENTENCES1, VectorEncoder


MODULE = "sentence_transformers.models"
WORDS = ("guitar", "dog", "stock market", "river", "engine", "onion", "train", "cinema", "plane", "snow")
CORPUS = {
    f"d{i}": f"A {one} is here, and {two} is near."
    for i, (one, two) in enumerate(zip(WORDS, WORDS[3:] + WORDS[:3], strict=True))
}
# The last query is the text of a document, too.
QUERIES = {f"q{i}": f"Where is the {word}?" for i, word in enumerate(WORDS[:6])} | {"both": CORPUS["d4"]}
QRELS = {query: {f"d{i}": 1, f"d{(i + 4) % 10}": 1} for i, query in enumerate(QUERIES)}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def change(path, **values):
    write(path, (json.loads(path.read_text()) if path.exists() else {}) | values)


def module(path, kind, number=1):
    return {"idx": number, "name": str(number), "path": path, "type": kind}


@pytest.fixture
def static():
    def make(tokenizer, seed, width=16):
        torch.manual_seed(seed)
        return StaticEmbedding(tokenizer._tokenizer, embedding_dim=width)

    return make


@pytest.fixture
def router_folder(static, tokenizer, tmp_path):
    """Queries and documents have weights of their own."""
    router = Router.for_query_document(
        [static(tokenizer, 0)], [static(tokenizer, 1)], default_route=None, allow_empty_key=False
    )
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "router"))
    return tmp_path / "router"


@pytest.fixture
def dense_folder(tiny_folder, tmp_path):
    """A model of ours with a Dense module on it, 32 to 8."""
    torch.manual_seed(0)
    modules = [SentenceTransformer(tiny_folder, device="cpu")[0], Dense(32, 8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "dense"))
    return tmp_path / "dense"


@pytest.fixture
def opened(monkeypatch):
    """Notes what sentence-transformers is asked to open, and opens nothing."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise ValueError("not opened in this test")

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", refuse)
    return asked


HOSTILE = """
from pathlib import Path
from sentence_transformers.sentence_transformer.modules import Normalize

Path(__file__).with_name("marker").touch()
Path({folder!r}, "marker").touch()


class Hostile(Normalize):
    pass
"""


def hostile_type(folder):
    write(folder / "modules.json", [module("", "hostile.Hostile")])


def hostile_type_of_another_package(folder):
    write(folder / "modules.json", [module("", "webbrowser.open")])


def hostile_second_type(folder):
    write(folder / "modules.json", [module("", f"{MODULE}.Transformer", 0), module("1_Hostile", "hostile.Hostile")])


def class_that_opens_other_models(folder):
    write(folder / "modules.json", [module("", "sentence_transformers.SentenceTransformer")])


def hostile_route(folder):
    write(folder / "modules.json", [module("", f"{MODULE}.Asym")])
    write(folder / "config.json", {"types": {"a": "hostile.Hostile"}, "structure": {"query": ["a"]}, "parameters": {}})


def hostile_route_in_a_route(folder):
    write(folder / "modules.json", [module("1_Router", f"{MODULE}.Router")])
    write(folder / "1_Router" / "router_config.json", {"types": {"inner": f"{MODULE}.Router"}})
    write(folder / "1_Router" / "inner" / "router_config.json", {"types": {"a": "hostile.Hostile"}})
    (folder / "1_Router" / "inner" / "a").mkdir()


def hostile_activation(folder):
    write(folder / "modules.json", [module("1_Dense", f"{MODULE}.Dense")])
    write(folder / "1_Dense" / "config.json", {"activation_function": "hostile.Hostile"})


def activation_that_is_no_module(folder):
    write(folder / "modules.json", [module("1_Dense", f"{MODULE}.Dense")])
    write(folder / "1_Dense" / "config.json", {"activation_function": "torch.seed"})


def hostile_tokenizer(folder):
    write(folder / "modules.json", [module("1_Words", f"{MODULE}.WordEmbeddings")])
    write(folder / "1_Words" / "wordembedding_config.json", {"tokenizer_class": "hostile.Hostile"})


def tokenizer_that_opens_other_models(folder):
    write(folder / "modules.json", [module("1_Words", f"{MODULE}.WordEmbeddings")])
    write(
        folder / "1_Words" / "wordembedding_config.json",
        {"tokenizer_class": "sentence_transformers.SentenceTransformer"},
    )


def kernels_of_anyone(folder):
    write(folder / "modules.json", [module("", f"{MODULE}.Transformer"), module("", f"{MODULE}.Normalize", 2)])
    options = {"attn_implementation": "someone/kernel", "allow_all_kernels": True}
    write(folder / "sentence_roberta_config.json", {"model_args": options})


@pytest.mark.parametrize(
    "plant",
    [
        *(hostile_type, hostile_second_type, hostile_type_of_another_package, class_that_opens_other_models),
        *(hostile_route, hostile_route_in_a_route, hostile_activation, activation_that_is_no_module),
        *(hostile_tokenizer, tokenizer_that_opens_other_models, kernels_of_anyone),
    ],
)
def test_code_that_a_folder_names_is_refused_before_the_folder_is_opened(opened, tmp_path, monkeypatch, plant):
    folder = tmp_path / "folder"
    write(folder / "hostile.py", HOSTILE.format(folder=str(tmp_path)))
    monkeypatch.syspath_prepend(str(folder))  # as if the user stood in the folder
    plant(folder)
    with pytest.raises(InputError, match=r"names code to run.*trust it with --trust_remote_code"):
        load_encoder(folder)
    assert opened == []
    assert not list(tmp_path.rglob("marker"))
    with pytest.raises(InputError, match=r"not opened in this test|has no weights"):
        load_encoder(folder, trust_remote_code=True)


def test_code_of_a_folder_runs_with_the_flag(minilm, tmp_path):
    folder = Path(shutil.copytree(minilm, tmp_path / "folder"))
    write(folder / "hostile.py", HOSTILE.format(folder=str(tmp_path)))
    modules = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [*modules, module("", "hostile.Hostile", 3)])
    with pytest.raises(InputError, match=r"modules.json: names code to run, 'hostile.Hostile'"):
        load_encoder(folder)
    assert not (tmp_path / "marker").exists()
    embeddings = load_encoder(folder, trust_remote_code=True, device="cpu").encode(SENTENCES1)
    assert (tmp_path / "marker").exists()
    assert_close_to(embeddings, load_encoder(minilm, device="cpu").encode(SENTENCES1))


def test_every_module_that_sentence_transformers_saves_is_its_own_code(static, tokenizer, router_folder, tmp_path):
    words = WordEmbeddings(WhitespaceTokenizer(["one", "two"]), np.eye(2, 4, dtype=np.float32))
    pooling = sentence_transformers.models.Pooling(4)
    activations = [torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(), torch.nn.Sigmoid()]
    dense = [Dense(4, 4, activation_function=activation) for activation in activations]
    model = SentenceTransformer(modules=[words, pooling, *dense, Normalize()], device="cpu")
    model.save(str(tmp_path / "words"))
    np.testing.assert_allclose(load_encoder(tmp_path / "words").encode(["one two"]), model.encode(["one two"]))

    both = SentenceTransformer(str(router_folder), device="cpu")
    encoder = load_encoder(router_folder)
    np.testing.assert_allclose(encoder.queries.encode(SENTENCES1), both.encode_query(SENTENCES1))
    np.testing.assert_allclose(encoder.documents.encode(SENTENCES1), both.encode_document(SENTENCES1))


def test_pickled_weights_of_any_module_need_the_flag(router_folder, dense_folder):
    for folder, inside in ((router_folder, "document_0_StaticEmbedding"), (dense_folder, "1_Dense")):
        safetensors = folder / inside / "model.safetensors"
        torch.save(load_file(safetensors), safetensors.with_name("pytorch_model.bin"))
        safetensors.unlink()
        for decoy in (False, True):
            if decoy:  # which sentence-transformers does not read
                (folder / inside / "other.safetensors").touch()
            with pytest.raises(InputError, match=rf"{inside}/pytorch_model.bin: a pickle file.*--allow_pickle"):
                load_encoder(folder)
        load_encoder(folder, allow_pickle=True)


def test_a_model_of_ours_with_more_modules_embeds_with_all_of_them(dense_folder, tiny_folder):
    expected = SentenceTransformer(str(dense_folder), device="cpu").encode(SENTENCES1)
    assert expected.shape == (len(SENTENCES1), 8)
    assert_close_to(load_encoder(dense_folder, device="cpu").encode(SENTENCES1), expected)
    assert isinstance(load_encoder(tiny_folder), LayerPoolEncoder)
    SentenceTransformer(tiny_folder, device="cpu").save(tiny_folder)
    assert isinstance(load_encoder(tiny_folder), LayerPoolEncoder), "as sentence-transformers saves it"


def test_a_model_of_ours_that_is_cut_to_fewer_dimensions_is_measured_so(tiny_folder):
    change(Path(tiny_folder, "config_sentence_transformers.json"), truncate_dim=5)
    expected = SentenceTransformer(tiny_folder, device="cpu").encode(SENTENCES1)
    embeddings = load_encoder(tiny_folder, device="cpu").encode(SENTENCES1)
    assert embeddings.shape == expected.shape == (len(SENTENCES1), 5)
    assert_close_to(embeddings, expected)


SETTINGS = [
    {},
    {"prompts": {}},
    {"prompts": {"query": "query: ", "document": "a long passage: "}},
    {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": "query"},
    # of these, sentence-transformers uses none for documents
    {"prompts": {"query": "query: ", "passage": "passage: ", "corpus": "corpus: "}},
    {"prompts": {"similarity": "same? "}, "default_prompt_name": "similarity"},
    {"prompts": {"query": None, "document": ""}, "default_prompt_name": "document"},
    {"prompts": {"query": "query: "}, "model_type": "CrossEncoder"},
]


@pytest.mark.parametrize("kind", ["ours", "theirs"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_prompts_are_those_that_sentence_transformers_uses(kind, settings, tiny_folder, minilm, tmp_path):
    folder = Path(tiny_folder) if kind == "ours" else Path(shutil.copytree(minilm, tmp_path / "theirs"))
    change(folder / "config_sentence_transformers.json", **settings)
    encoder = load_encoder(folder, device="cpu")
    assert isinstance(encoder, LayerPoolEncoder if kind == "ours" else SentenceTransformersEncoder)
    if "model_type" in settings and kind == "ours":
        # sentence-transformers reads no prompts either, but puts a mean over tokens in place of the pooler
        assert encoder.prompt == ""
        assert encoder.queries is None
        return
    other = SentenceTransformer(str(folder), device="cpu")
    remembered = CachingEncoder(encoder)
    for mine, theirs in (
        (remembered.encode, other.encode),
        (remembered.queries.encode, other.encode_query),
        (remembered.documents.encode, other.encode_document),
    ):
        assert_close_to(mine(SENTENCES1), theirs(SENTENCES1))

    relevant = {query: set(judged) for query, judged in QRELS.items()}
    depths = {"mrr_at_k": [10], "ndcg_at_k": [10], "precision_recall_at_k": [100], "map_at_k": [1000]}
    expected = InformationRetrievalEvaluator(QUERIES, CORPUS, relevant, **depths)(other)
    measured = evaluate_retrieval(encoder, CORPUS, QUERIES, QRELS)
    for name, their_name in (
        ("ndcg@10", "ndcg@10"),
        ("mrr@10", "mrr@10"),
        ("map", "map@1000"),
        ("recall@100", "recall@100"),
    ):
        assert measured[name] == pytest.approx(100 * expected[f"cosine_{their_name}"], abs=1e-4)


def test_prompts_change_what_is_measured(tiny_folder):
    plain = evaluate_retrieval(load_encoder(tiny_folder), CORPUS, QUERIES, QRELS)
    prompts = {"query": "a question about music and animals: ", "document": "the stock market fell on Monday: "}
    change(Path(tiny_folder, "config_sentence_transformers.json"), prompts=prompts)
    assert evaluate_retrieval(load_encoder(tiny_folder), CORPUS, QUERIES, QRELS) != plain


def test_pooling_given_by_the_user_goes_without_modules_and_prompts(minilm, tmp_path):
    folder = Path(shutil.copytree(minilm, tmp_path / "folder"))
    change(folder / "config_sentence_transformers.json", prompts={"query": "query: "}, default_prompt_name="query")
    encoder = load_encoder(folder, pooling="mean")
    np.testing.assert_array_equal(encoder.encode(["a"]), load_encoder(minilm, pooling="mean").encode(["a"]))
    assert CachingEncoder(encoder).queries.encode(["a"]).shape == (1, 384)


def roles(**vectors):
    """An encoder that embeds queries and documents in another way than other texts."""
    encoder = VectorEncoder(vectors["texts"])
    encoder.queries, encoder.documents = VectorEncoder(vectors["queries"]), VectorEncoder(vectors["documents"])
    return encoder


def test_the_cache_keeps_queries_and_documents_apart():
    encoder = roles(texts={"a": [1, 0, 0]}, queries={"a": [0, 1, 0]}, documents={"a": [0, 0, 1], "b": [1, 1, 0]})
    cache = CachingEncoder(CachingEncoder(encoder))
    for _ in range(2):
        np.testing.assert_array_equal(cache.encode(["a"]), [[1, 0, 0]])
        np.testing.assert_array_equal(cache.queries.encode(["a"]), [[0, 1, 0]])
        np.testing.assert_array_equal(cache.documents.encode(["b", "a"]), [[1, 1, 0], [0, 0, 1]])
    assert [part.calls for part in (encoder, encoder.queries, encoder.documents)] == [[["a"]], [["a"]], [["b", "a"]]]


def test_an_encoder_without_roles_embeds_a_text_once_whatever_it_is():
    encoder = VectorEncoder({"a": [1, 0], "b": [0, 1]})
    cache = CachingEncoder(encoder)
    assert cache.queries is cache.documents is cache
    evaluate_retrieval(encoder, {"d1": "a", "d2": "b"}, {"q": "a"}, {"q": {"d1": 1}})
    assert encoder.calls == [["a", "b"]]


def test_retrieval_ranks_the_documents_embeddings_for_the_queries():
    documents = {"here": [1, 0], "there": [0, 1]}
    encoder = roles(texts={}, queries={"here": [0, 1]}, documents=documents)
    result = evaluate_retrieval(encoder, {"d1": "here", "d2": "there"}, {"q": "here"}, {"q": {"d2": 1}})
    assert result["mrr@10"] == 100


def test_the_geometry_of_retrieval_is_that_of_queries_and_documents():
    documents = {"a": [1.0, 0.0], "b": [0.6, 0.8]}
    encoder = roles(texts={}, queries={"a": [0.0, 1.0]}, documents=documents)
    result = evaluate_geometry(encoder.documents, ["a"], ["b"], ["a", "b"], query_encoder=encoder.queries)
    vectors = np.array([*documents.values()])
    assert result["alignment"] == pytest.approx(alignment(np.array([[0.0, 1.0]]), vectors[1:]))
    assert result["mean_cosine"] == pytest.approx(mean_cosine(vectors)) == pytest.approx(0.6)
    assert math.isfinite(result["uniformity"])
