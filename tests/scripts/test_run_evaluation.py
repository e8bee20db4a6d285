import json
import math
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

import run_evaluation
from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.evaluation import (
    alignment,
    load_encoder,
    mean_cosine,
    read_retrieval_folder,
    read_sts_file,
    relevant_pairs,
    report,
    write_results,
)
from modeling_layerpool.evaluation.metrics import similarity_scores
from tests.evaluation.data import PAIRS, real_data, write_lines, write_pairs, write_retrieval, write_transfer
from tests.processes import ROOT, launch


@pytest.fixture
def sts_file(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl")


@pytest.fixture
def retrieval_folder(tmp_path):
    return write_retrieval(tmp_path / "retrieval")


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Run the script's main with these arguments; returns exit code, output, errors and the results file's path."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_evaluation.py", "--output_dir", str(tmp_path / "out"), *arguments])
        code = 0
        try:
            run_evaluation.main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr(), tmp_path / "out" / "evaluation.json"

    return main


def test_results_have_exactly_the_promised_form(evaluate, tiny_folder, sts_file, retrieval_folder):
    code, output, _, path = evaluate(
        *("--model_name_or_path", tiny_folder),
        *("--sts", f"second={sts_file}", f"first={sts_file}", "--sts", f"third={sts_file}"),
        *("--retrieval", f"small={retrieval_folder}"),
    )
    results = json.loads(path.read_text())
    assert code == 0
    assert list(results) == ["sts", "retrieval", "geometry", "model", "versions", "date"]
    assert list(results["sts"]) == ["second", "first", "third"]
    assert list(results["sts"]["first"]) == ["spearman", "pearson", "pairs"]
    assert results["sts"]["first"]["pairs"] == len(PAIRS)
    assert list(results["retrieval"]["small"]) == ["ndcg@10", "mrr@10", "map", "recall@100", "queries"]
    assert list(results["geometry"]) == [
        *("alignment", "uniformity", "mean_cosine"),
        *("effective_rank", "top_direction_share", "isotropy"),
    ]
    assert results["model"] == tiny_folder
    assert {"python", "torch", "transformers", "accelerate", "modeling-layerpool"} <= results["versions"].keys()
    assert f"{results['sts']['first']['spearman']:.2f}" in output
    assert [entry.name for entry in path.parent.iterdir()] == ["evaluation.json"]


def test_with_retrieval_alone_the_geometry_comes_from_relevant_pairs(evaluate, tiny_folder, retrieval_folder):
    code, _, _, path = evaluate("--model_name_or_path", tiny_folder, "--retrieval", f"small={retrieval_folder}")
    results = json.loads(path.read_text())
    assert code == 0
    assert results["sts"] == {}
    assert all(math.isfinite(value) for value in results["geometry"].values())


def test_the_means_over_subsets_are_there_for_the_sets_that_have_subsets(evaluate, tiny_folder, sts_file, tmp_path):
    rows = [json.loads(line) for line in sts_file.read_text().splitlines()]
    for row, genre in zip(rows, "aabbbaab", strict=True):
        row["genre"] = genre
    genres = write_lines(tmp_path / "genres.jsonl", rows)
    sets = ("--sts", f"plain={sts_file}", f"genres={genres}")
    code, output, _, path = evaluate("--model_name_or_path", tiny_folder, *sets, "--sts_subset_column", "genre")
    measured = json.loads(path.read_text())["sts"]
    assert code == 0
    assert list(measured["genres"]) == [
        *("spearman", "pearson", "pairs"),
        *("spearman_subsets_mean", "spearman_subsets_wmean", "pearson_subsets_mean", "pearson_subsets_wmean"),
        "subsets",
    ]
    assert measured["genres"]["subsets"] == 2
    assert measured["plain"] == {name: measured["genres"][name] for name in ("spearman", "pearson", "pairs")}
    assert "undefined" not in output

    for row in rows[:1]:
        row["subset"] = "alone"
    for row in rows[1:]:
        row["subset"] = "others"
    named = write_lines(tmp_path / "named.jsonl", rows)
    code, _, errors, _ = evaluate("--model_name_or_path", tiny_folder, "--sts", f"named={named}")
    assert (code, errors) == (
        2,
        f"error: {named}, subset 'alone': 1 sentence pairs, and a correlation needs at least 2\n",
    )
    code, _, _, path = evaluate("--model_name_or_path", tiny_folder, "--sts", f"n={named}", "--sts_subset_column", "")
    assert code == 0
    assert list(json.loads(path.read_text())["sts"]["n"]) == ["spearman", "pearson", "pairs"]


def test_the_prompts_in_use_are_told_and_no_others(evaluate, tiny_folder, sts_file, retrieval_folder):
    prompts = {"query": "query: ", "document": "passage: ", "alike": "like: "}
    write_lines(
        Path(tiny_folder, "config_sentence_transformers.json"), [{"prompts": prompts, "default_prompt_name": "alike"}]
    )
    sts, retrieval = ("--sts", f"a={sts_file}"), ("--retrieval", f"a={retrieval_folder}")
    for sets, expected in (
        (sts, {"sentences": "like: "}),
        (retrieval, {"queries": "query: ", "documents": "passage: "}),
        ((*sts, *retrieval), {"sentences": "like: ", "queries": "query: ", "documents": "passage: "}),
    ):
        code, output, _, path = evaluate("--model_name_or_path", tiny_folder, *sets)
        assert code == 0
        assert json.loads(path.read_text())["prompts"] == expected
        assert output.endswith(f"Wrote {path}\n")
        told = output[output.index("prompts") : output.index("\n\nWrote")].splitlines()[2:]
        assert [line.split(maxsplit=1) for line in told] == [[kind, f'"{text}"'] for kind, text in expected.items()]
    # alone, the geometry is that of queries and documents as they are ranked
    _, _, _, path = evaluate("--model_name_or_path", tiny_folder, *retrieval)
    encoder = load_encoder(tiny_folder)
    corpus, queries, qrels = read_retrieval_folder(retrieval_folder)
    first, second = relevant_pairs(corpus, queries, qrels)
    geometry = json.loads(path.read_text())["geometry"]
    documents = encoder.documents.encode(list(corpus.values()))
    assert geometry["mean_cosine"] == pytest.approx(mean_cosine(documents), abs=1e-6)
    expected = alignment(encoder.queries.encode(first), encoder.documents.encode(second))
    assert geometry["alignment"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("features", ["pooled", "states"])
def test_transfer_tasks_have_a_row_each_and_their_average(evaluate, tiny_folder, tmp_path, features):
    easy = write_transfer(tmp_path / "task.jsonl")
    rows = [json.loads(line) for line in easy.read_text().splitlines()]
    pairs = [{"sentence1": row["sentence"], "sentence2": "The cat sleeps.", "label": row["label"]} for row in rows]
    for part, begin in (("train", 0), ("test", 30)):
        write_lines(tmp_path / "pairs" / f"{part}.jsonl", pairs[begin:])
    tasks = ("--transfer", f"easy={easy}", f"pairs={tmp_path / 'pairs'}")
    code, output, errors, path = evaluate("--model_name_or_path", tiny_folder, *tasks, "--features", features)
    results = json.loads(path.read_text())
    assert code == 0
    assert list(results) == ["sts", "retrieval", "geometry", "transfer", "model", "versions", "date"]
    assert results["transfer"] == {
        "easy": {"accuracy": 100.0, "rows": 40, "features": features},
        "pairs": {"accuracy": 100.0, "rows": 10, "features": features},
    }
    lines = [line.split() for line in output.splitlines()]
    assert lines[0] == ["transfer", "accuracy", "rows", "features"]
    assert lines[-3:] == [["average", "100.00"], [], ["Wrote", str(path)]]
    assert errors.count("Classifying easy:   0%") == 1


def test_states_give_a_plot_of_transfer_tasks(evaluate, tiny_folder, tmp_path):
    task = ("--transfer", f"easy={write_transfer(tmp_path / 'task.jsonl')}")
    for features, drawn in (("states", True), ("pooled", False)):
        words = ("--model_name_or_path", tiny_folder, *task, "--plots", "--features", features)
        code, output, _, path = evaluate(*words)
        assert code == 0
        assert Path(path.parent, "plots", "transfer.png").exists() == drawn
        assert ("transfer.png" in output.splitlines()[-1]) == drawn


def test_states_that_cannot_be_read_end_in_one_sentence(evaluate, tiny_folder, tmp_path):
    sizes = {"vocab_size": 2000, "embedding_size": 16, "hidden_size": 32, "num_attention_heads": 2}
    AlbertModel(AlbertConfig(**sizes, intermediate_size=37, num_hidden_layers=1)).save_pretrained(tmp_path / "albert")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_folder, file), tmp_path / "albert")
    task = ("--transfer", f"easy={write_transfer(tmp_path / 'task.jsonl')}", "--features", "states")
    code, _, errors, path = evaluate("--model_name_or_path", str(tmp_path / "albert"), *task)
    assert code == 2
    assert "error: --features states: " in errors
    assert "a model of type 'albert'; use one of bert, " in errors
    assert errors.endswith("; --features pooled takes any encoder\n")
    assert not path.exists()


def test_features_without_a_transfer_task_are_refused(evaluate, tiny_folder, sts_file):
    code, _, errors, _ = evaluate(
        "--model_name_or_path", tiny_folder, "--sts", f"a={sts_file}", "--features", "states"
    )
    assert code == 2
    assert errors.splitlines()[-1] == "error: --features states does nothing without --transfer"


COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub_cache(tiny_config, tokenizer, tmp_path, monkeypatch):
    """The cache of huggingface_hub with two revisions of two models: ours, and a sentence-transformers model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("ours", "theirs"):
        for seed, (revision, commit) in enumerate(COMMITS.items()):
            repository = tmp_path / "hub" / f"models--someone--{name}"
            snapshot = repository / "snapshots" / commit
            torch.manual_seed(seed)
            if name == "ours":
                LayerPoolBertModel(LayerPoolBertConfig(**tiny_config, pooler_type="mean")).save_pretrained(snapshot)
                tokenizer.save_pretrained(snapshot)
            else:
                static = StaticEmbedding(tokenizer._tokenizer, embedding_dim=16)
                SentenceTransformer(modules=[static], device="cpu").save(str(snapshot))
            write_lines(repository / "refs" / revision, []).write_text(commit)


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_a_revision_is_the_one_that_is_measured_and_named(evaluate, hub_cache, sts_file, name):
    results = {}
    for revision in (None, *COMMITS, COMMITS["v1"]):
        flags = () if revision is None else ("--revision", revision)
        code, _, errors, path = evaluate("--model_name_or_path", f"someone/{name}", "--sts", f"a={sts_file}", *flags)
        assert code == 0, errors
        results[revision] = json.loads(path.read_text())
    assert results[None]["commit"] == results["main"]["commit"] == COMMITS["main"]
    assert results["v1"]["commit"] == results[COMMITS["v1"]]["commit"] == COMMITS["v1"]
    assert results[None]["sts"] == results["main"]["sts"] != results["v1"]["sts"] == results[COMMITS["v1"]]["sts"]


def test_a_revision_that_is_not_there_is_one_sentence(evaluate, hub_cache, tiny_folder, sts_file):
    for model, message in (
        ("someone/ours", "no such folder, nor a Hub model that can be reached at the revision v2"),
        (tiny_folder, "is a folder, and only a model of the Hub has revisions"),
    ):
        flags = ("--model_name_or_path", model, "--sts", f"a={sts_file}", "--revision", "v2")
        code, _, errors, path = evaluate(*flags)
        assert code == 2
        assert errors.splitlines()[-1].startswith("error: ")
        assert message in errors
        assert not path.exists()


def test_a_score_that_is_not_defined_is_null_in_the_file(tmp_path):
    path = write_results({"sts": {"x": similarity_scores([1, 1], [1, 2])}}, tmp_path)
    assert json.loads(path.read_text()) == {"sts": {"x": {"spearman": None, "pearson": None, "pairs": 2}}}


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_results({"sts": {}}, tmp_path)
    with pytest.raises(TypeError):
        write_results({"sts": object()}, tmp_path)

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_results({"retrieval": {}}, tmp_path)
    assert json.loads(path.read_text()) == {"sts": {}}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate: give --sts, --pairs, --retrieval or --transfer"),
        (["--sts", "a=missing.jsonl"], "missing.jsonl: no such file"),
        (["--sts", "unheard"], "--sts unheard: no built-in set of this name"),
        (["--sts", "sts12"], "mteb/sts12-sts could not be loaded from the Hub"),
        (["--transfer", "unheard"], "--transfer unheard: no built-in task of this name"),
        (["--transfer", "mr"], "cornell-movie-review-data/rotten_tomatoes could not be loaded from the Hub"),
        (["--transfer", "t=missing.jsonl"], "missing.jsonl: no such file"),
        (["--sts", "a={sts}", "--sts", "a={sts}"], "--sts: the name 'a' is given twice"),
        (["--sts", "a="], "--sts a=: expected NAME=PATH"),
        (["--sts", "={sts}"], "expected NAME=PATH"),
        (["--sts", "a={empty}"], "empty.jsonl: 0 sentence pairs"),
        (["--retrieval", "{retrieval}"], "expected NAME=PATH"),
        (["--retrieval", "a=missing"], "missing: no such folder"),
        (["--sts", "a={sts}", "--max_tokens_per_batch", "0"], "max_tokens_per_batch=0 must be at least 1"),
        (["--sts", "a={sts}", "--max_seq_length", "0"], "max_seq_length=0 must be at least 1"),
        (["--sts", "a={sts}", "--max_seq_length", "-5"], "max_seq_length=-5 must be at least 1"),
        (["--sts", "a={long}.jsonl"], ".jsonl: cannot be read (File name too long)"),
        (["--pairs", "a={long}.jsonl"], ".jsonl: cannot be read (File name too long)"),
        (["--retrieval", "a={long}"], "xxx: cannot be read (File name too long)"),
        (["--sts", "a={sts}", "--model_name_or_path", "{long}"], "xxx: cannot be read (File name too long)"),
        (["--sts", "a={sts}", "--output_dir", "{long}"], "xxx: cannot be written to (File name too long)"),
        (["--sts", "a={sts}", "--output_dir", "{sts}/deep/er"], "pairs.jsonl is a file, not a folder"),
        (["--sts", "a={sts}", "--output_dir", "{dangling}"], "dangling is a link to nothing"),
        (["--sts", "a={sts}", "--output_dir", "{dangling}/deeper"], "dangling is a link to nothing"),
        (["--sts", "a={sts}", "--output_dir", "{taken}"], "its evaluation.json is a folder; remove it"),
        (["--sts", "\udc80={sts}"], 'sts="\\udc80='),
        (["--retrieval", "\udc80={retrieval}"], 'retrieval="\\udc80='),
        (["--sts", "a={sts}", "--model_name_or_path", "\udc80"], 'model_name_or_path="\\udc80" holds a character'),
        (["--sts", "a={surrogate_subset}"], "line 1: the column 'subset' is not valid Unicode"),
        (["--retrieval", "a={surrogate_id}"], "corpus.jsonl, line 1: the column '_id' is not valid Unicode"),
        (
            ["--sts", "a={sts}", "--sts_subset_column", "genre"],
            "--sts_subset_column genre: no --sts set has this column",
        ),
        (["--sts", "a={sts}", "--output_dir", "{sts}"], "is a file, not a folder"),
        (["--sts", "a={sts}", "--plotz"], "--plotz: unknown argument; did you mean --plots?"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2_before_the_model_is_opened(
    evaluate, arguments, message, sts_file, retrieval_folder, tmp_path
):
    row = {"sentence1": "a", "sentence2": "b", "score": 1, "subset": "\ud800"}
    places = {
        "sts": sts_file,
        "retrieval": retrieval_folder,
        "empty": write_lines(tmp_path / "empty.jsonl", []),
        "long": "x" * 300,
        "dangling": tmp_path / "dangling",
        "taken": tmp_path / "taken",
        "surrogate_subset": write_lines(tmp_path / "subset.jsonl", [row, row | {"score": 2}]),
        "surrogate_id": write_retrieval(tmp_path / "ids"),
    }
    places["dangling"].symlink_to(tmp_path / "nothing")
    (tmp_path / "taken" / "evaluation.json").mkdir(parents=True)
    write_lines(tmp_path / "ids" / "corpus.jsonl", [{"_id": "\ud800", "text": "a"}])
    before = sorted(tmp_path.rglob("*"))
    filled = [argument.format(**places) for argument in arguments]
    # a model that would be an error of its own
    code, output, errors, _ = evaluate("--model_name_or_path", "no-such-model", *filled)
    assert code == 2
    assert message in errors
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert output == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_is_not_there_is_one_sentence_and_writes_nothing(evaluate, sts_file):
    code, _, errors, path = evaluate("--model_name_or_path", "no-such-model", "--sts", f"a={sts_file}")
    assert code == 2
    assert errors.splitlines() == ["error: no-such-model: no such folder, nor a Hub model that can be reached"]
    assert not path.exists()


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cuda:x", "meta", "meta:0", "vulkan", "hpu", "-1"])
def test_a_device_that_is_not_there_is_one_sentence(evaluate, tiny_folder, sts_file, device):
    code, _, errors, path = evaluate(
        "--model_name_or_path", str(tiny_folder), "--sts", f"a={sts_file}", f"--device={device}"
    )
    assert code == 2
    assert errors.splitlines()[-1].startswith(f"error: --device {device}: ")
    assert errors.splitlines()[-1].endswith("use cpu, or cuda on a GPU")
    assert "Traceback" not in errors
    assert not path.exists()


def test_the_script_runs_as_a_program_and_keeps_the_table_on_standard_output(minilm, tmp_path, sts_file):
    model = ("--model_name_or_path", minilm)
    done = launch(ROOT / "run_evaluation.py", *model, "--sts", f"a={sts_file}", "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    spearman = json.loads((tmp_path / "evaluation.json").read_text())["sts"]["a"]["spearman"]
    assert done.stdout.splitlines()[0].split() == ["sts", "spearman", "pearson", "pairs"]
    assert done.stdout.splitlines()[2].split()[:2] == ["a", f"{spearman:.2f}"]


def test_further_columns_of_a_file_are_ignored():
    sets = run_evaluation.read_sets("--sts", [f"sickr={real_data('sick/test.jsonl')}"], read_sts_file)
    assert [len(column) for column in sets["sickr"]] == [4927, 4927, 4927]


@pytest.fixture
def theirs(tiny_config, tokenizer, tmp_path):
    """A small sentence-transformers folder: an encoder, a mean over its tokens, and a Dense module."""
    torch.manual_seed(0)
    BertModel(BertConfig(**tiny_config)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    modules = [Transformer(str(tmp_path / "bert")), Pooling(32), Dense(32, 8)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DEEP = "[" * 100_000


BROKEN = [
    ("modules.json", [], "modules.json: must be a list with at least one module, got []"),
    ("modules.json", [{}], "modules.json, module 1: 'type' must be a text, got None"),
    ("modules.json", {"0": TRANSFORMER}, "modules.json: must be a list with at least one module"),
    ("modules.json", ["Transformer"], "modules.json, module 1: must be an object, got 'Transformer'"),
    ("modules.json", [TRANSFORMER, POOLING | {"path": None}], "module 2: 'path' must be a text, got None"),
    ("modules.json", [TRANSFORMER, POOLING | {"path": ["a"]}], "module 2: 'path' must be a text, got ['a']"),
    ("modules.json", [TRANSFORMER, POOLING | {"name": 1}], "module 2: 'name' must be a text, got 1"),
    ("modules.json", [TRANSFORMER, POOLING | {"path": "../1_Pooling"}], "which is not inside the model's"),
    ("modules.json", [TRANSFORMER, POOLING | {"path": "/etc"}], "which is not inside the model's"),
    ("modules.json", [TRANSFORMER, POOLING | {"path": "x" * 300}], "cannot be read (File name too long)"),
    (
        "modules.json",
        [TRANSFORMER, POOLING | {"path": "2_Pooling"}],
        "names the folder 2_Pooling, which is missing",
    ),
    ("modules.json", "[", "modules.json: not valid JSON"),
    ("modules.json", DEEP, "modules.json: JSON that is nested too deeply"),
    ("modules.json", b"\xff", "modules.json: not valid UTF-8"),
    ("modules.json", [POOLING], "1_Pooling: has no weights"),
    (
        "config_sentence_transformers.json",
        [],
        "config_sentence_transformers.json: must hold a JSON object, names and their values, not []",
    ),
    ("config_sentence_transformers.json", "{", "config_sentence_transformers.json: not valid JSON"),
    ("config_sentence_transformers.json", {"prompts": ["query: "]}, "'prompts' must be an object of texts"),
    ("config_sentence_transformers.json", {"prompts": {"query": 1}}, "the prompt 'query' must be a text, got 1"),
    ("config_sentence_transformers.json", {"prompts": {"query": "\ud800"}}, "is not valid Unicode"),
    ("config_sentence_transformers.json", {"default_prompt_name": "a"}, "'a', which is none of the prompts"),
    ("config_sentence_transformers.json", {"default_prompt_name": ["a"]}, "which is none of the prompts"),
    ("config_sentence_transformers.json", {"truncate_dim": "8"}, "'truncate_dim' must be a whole number"),
    ("config_sentence_transformers.json", {"__version__": 5}, "could not be loaded (TypeError: "),
    ("sentence_bert_config.json", "{", "sentence_bert_config.json: not valid JSON"),
    (
        "sentence_bert_config.json",
        [1],
        "sentence_bert_config.json: must hold a JSON object, names and their values, not [1]",
    ),
    ("sentence_bert_config.json", {"model_args": 5}, "could not be loaded ("),
    ("sentence_bert_config.json", {"unheard": 5}, "could not be loaded (TypeError: "),
    ("1_Pooling/config.json", "{", "1_Pooling/config.json: not valid JSON"),
    ("1_Pooling/config.json", DEEP, "1_Pooling/config.json: JSON that is nested too deeply"),
    ("1_Pooling/config.json", [], "1_Pooling/config.json: must hold a JSON object"),
    ("1_Pooling/config.json", {"pooling_mode": "sum"}, "could not be loaded ("),
    ("2_Dense/config.json", {"in_features": 32, "out_features": 9}, "could not be loaded ("),
    ("config.json", {"model_type": "bert", "hidden_size": 0}, "hidden_size must be a positive whole number, not 0"),
]


@pytest.mark.parametrize(("file", "content", "message"), BROKEN, ids=[message for *_, message in BROKEN])
def test_a_broken_sentence_transformers_folder_is_one_sentence(evaluate, theirs, sts_file, file, content, message):
    path = theirs / file
    if isinstance(content, dict) and file == "1_Pooling/config.json":
        content = json.loads(path.read_text()) | content
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    code, output, errors, results = evaluate("--model_name_or_path", str(theirs), "--sts", f"a={sts_file}")
    assert code == 2
    assert errors.splitlines()[-1].startswith(f"error: {theirs}")
    assert message in errors.splitlines()[-1]
    assert output == ""
    assert not results.parent.exists()


def test_a_folder_of_a_module_that_is_missing_or_does_not_fit_is_one_sentence(evaluate, theirs, sts_file):
    shutil.rmtree(theirs / "1_Pooling")
    code, _, errors, results = evaluate("--model_name_or_path", str(theirs), "--sts", f"a={sts_file}")
    assert code == 2
    assert errors.splitlines()[-1] == (
        f"error: {theirs}/modules.json: names the folder 1_Pooling, which is missing; copy the whole model"
    )
    SentenceTransformer(modules=[Transformer(str(theirs)), Pooling(32), Dense(16, 8)], device="cpu").save(str(theirs))
    code, _, errors, results = evaluate("--model_name_or_path", str(theirs), "--sts", f"a={sts_file}")
    assert code == 2
    assert errors.splitlines()[-1].startswith(f"error: {theirs}: could not be loaded (mat1 and mat2 shapes cannot be")
    assert not results.parent.exists()
