"""The example that searches a folder of text files: what it finds, what it embeds again, and what it refuses."""

import importlib.util
import os
import re
import sys
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertModel
from tests.processes import ROOT


SCRIPT = ROOT / "examples" / "semantic_search" / "search.py"
NOTES = {
    "garden.md": "Water the tomatoes in the evening, when the sun is low.\n\nThe spade is in the shed, by the door.\n",
    "kitchen/bread.txt": "Knead the dough.\n\nBake it until the crust is brown.\n",
    "computer.rst": "Copy your files to another disk, in case the first one breaks.\n",
    "kitchen/.draft.txt": "Hidden.",
    "photo.jpg": "no text",
}


@pytest.fixture(scope="module")
def search():
    spec = importlib.util.spec_from_file_location("semantic_search", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def notes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in NOTES.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "notes"


@pytest.fixture
def run(search, notes, capsys, monkeypatch):
    """Runs a command of the script beside the folder `notes`, and returns its exit code and what it printed."""
    monkeypatch.setattr(search, "PASSAGE_TOKENS", 22)  # one passage for a file of the notes, but two for the garden

    def run(*arguments):
        code = 0
        try:
            search.main([*map(str, arguments), "--index", "my.index"])
        except SystemExit as end:
            code = end.code
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run


@pytest.fixture
def embedded(monkeypatch):
    """The texts embedded so far as passages of an index: those that are given together, with a progress bar."""
    texts = []
    encode = LayerPoolBertModel.encode

    def record(self, sentences, *arguments, show_progress_bar=False, **options):
        texts.extend(sentences if show_progress_bar else [])
        return encode(self, sentences, *arguments, show_progress_bar=show_progress_bar, **options)

    monkeypatch.setattr(LayerPoolBertModel, "encode", record)
    return texts


def first_places(out):
    return re.findall(r"^-?\d\.\d{3}  (\S+)", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("question", "place", "words"),
    [
        ("How do I protect my data against a broken hard drive?", "notes/computer.rst:1", "Copy your files"),
        ("When should plants be given water?", "notes/garden.md:1", "Water the tomatoes"),
        ("Where do I find something to dig with?", "notes/garden.md:3", "The spade"),
        ("How long does a loaf stay in the oven?", "notes/kitchen/bread.txt:1", "Knead the dough. Bake it"),
    ],
)
def test_a_question_finds_its_file_and_line(run, question, place, words):
    assert run("index", "notes").out.startswith("my.index: 4 passages of 3 files")
    answer = run("ask", question, "--top", 2).out
    assert first_places(answer)[0] == place
    assert len(first_places(answer)) == 2
    assert answer.splitlines()[1].strip().startswith(words)


def test_the_prompt_answers_until_an_empty_line(run, monkeypatch):
    run("index", "notes")
    questions = iter(["bread", "backups", "", "not asked"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(questions))
    assert first_places(run("ask", "--top", 1).out) == ["notes/kitchen/bread.txt:1", "notes/computer.rst:1"]
    assert next(questions) == "not asked"


def test_only_what_is_new_is_embedded_and_what_is_deleted_goes(run, notes, embedded):
    run("index", "notes")
    assert len(embedded) == 4
    embedded.clear()
    assert "(3 files as before); 0 passages embedded" in run("index", "notes").out
    (notes / "garden.md").write_text(NOTES["garden.md"].replace("spade", "hoe"))  # one passage of two
    (notes / "computer.rst").rename(notes / "kitchen" / "moved.rst")
    (notes / "kitchen" / "bread.txt").unlink()
    assert "3 passages of 2 files (1 files as before); 1 passages embedded" in run("index", "notes").out
    assert embedded == ["The hoe is in the shed, by the door."]
    places = first_places(run("ask", "bread", "--top", 10).out)
    assert sorted(places) == ["notes/garden.md:1", "notes/garden.md:3", "notes/kitchen/moved.rst:1"]
    assert first_places(run("ask", "backups").out)[0] == "notes/kitchen/moved.rst:1"  # its vector moved along


def test_an_updated_index_answers_as_a_new_one(run, notes):
    run("index", "notes")
    (notes / "aa.txt").write_text("The train leaves at nine.\n")
    run("index", "notes")
    updated = run("ask", "when does it depart?", "--top", 9).out
    (notes.parent / "my.index").unlink()
    run("index", "notes")
    assert run("ask", "when does it depart?", "--top", 9).out == updated


def test_a_text_that_is_there_twice_is_found_once(run, notes):
    (notes / "kitchen" / "z.txt").write_text(NOTES["kitchen/bread.txt"])
    assert run("index", "notes").out.startswith("my.index: 4 passages of 4 files")
    assert "notes/kitchen/bread.txt:1 and 1 more\n" in run("ask", "bread").out


def test_files_that_cannot_be_read_are_named_and_skipped(run, notes):
    (notes / "latin.txt").write_bytes("Brötchen".encode("latin-1"))
    (notes / "gone.txt").symlink_to(notes / "nowhere.txt")
    (notes / "bom.txt").write_text("\ufeffA text of Windows.\r\n", encoding="utf-8")
    done = run("index", "notes")
    assert done.code == 0
    assert done.out.startswith("my.index: 5 passages of 4 files")
    assert "skipped notes/latin.txt: not valid UTF-8 (byte 2)\n" in done.err
    assert "skipped notes/gone.txt: No such file or directory\n" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "nowhere"), "error: nowhere: no such folder\n"),
        (("index", "empty"), "error: empty: no .txt, .md, .rst file with text in it\n"),
        (("index", "notes", "--model_name_or_path", "empty"), "error: empty: has no config.json\n"),
        (("ask", "bread"), "error: my.index: no such index; make one with: search.py index FOLDER --index my.index\n"),
        (("ask", "bread", "--top", 0), "error: --top 0: must be at least 1\n"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(run, notes, arguments, message):
    (notes.parent / "empty").mkdir()
    (notes.parent / "empty" / "blank.txt").write_text(" \n\n")
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(message)
    assert not (notes.parent / "my.index").exists()


@pytest.mark.parametrize("content", [b"", b"no index", b"half"])
def test_a_file_that_is_no_index_is_refused_and_left_alone(run, notes, content):
    path = notes.parent / "my.index"
    run("index", "notes")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == b"half" else content)
    content = path.read_bytes()
    for arguments in (("index", "notes"), ("ask", "bread")):
        done = run(*arguments)
        assert done.code == 2
        assert done.err == "error: my.index: not an index of this script, or a broken one; name another file\n"
        assert path.read_bytes() == content


def test_an_index_is_not_asked_or_extended_with_another_model(run, notes, minilm):
    run("index", "notes")
    assert run("ask", "bread", "--model_name_or_path", minilm).code == 0  # the same weights, by another name
    other = LayerPoolBertModel.from_pretrained(minilm, pooler_type="mean_last_two")
    other.save_pretrained("other")
    AutoTokenizer.from_pretrained(minilm).save_pretrained("other")
    for arguments in (("ask", "bread"), ("index", "notes")):
        done = run(*arguments, "--model_name_or_path", "other")
        assert done.code == 2
        made, given = "all-MiniLM-L6-v2 (pooler mean)", f"{notes.parent / 'other'} (pooler mean_last_two)"
        assert f"my.index: was made with {made}, and {given} as it is now embeds differently" in done.err
    (notes.parent / "more").mkdir()
    assert "is the index of" in run("index", "more").err


def test_a_saved_folder_is_used_with_its_pooler_and_known_when_it_changes(run, notes, minilm, monkeypatch):
    model = LayerPoolBertModel.from_pretrained(minilm, pooler_type="mean_first_last")
    model.save_pretrained("own")
    AutoTokenizer.from_pretrained(minilm).save_pretrained("own")
    run("index", "notes", "--model_name_or_path", "own")
    monkeypatch.chdir(notes)
    os.rename(notes.parent / "my.index", "my.index")  # the model is found from any folder
    assert first_places(run("ask", "bread").out)[0] == "kitchen/bread.txt:1"
    model.base_model.encoder.layer[-1].output.dense.weight.data.mul_(0.5)  # trained on, in the same folder
    model.save_pretrained(notes.parent / "own")
    assert "(pooler mean_first_last) as it is now embeds differently" in run("ask", "bread").err


@pytest.mark.parametrize("moment", ["embedding", "writing", "moving"])
def test_interrupted_indexing_leaves_the_old_index(search, run, notes, monkeypatch, moment):
    run("index", "notes")
    old = (notes.parent / "my.index").read_bytes()
    (notes / "new.txt").write_text("The train leaves at nine.\n")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    def interrupt_embedding(self, sentences, *arguments, **options):
        return interrupt() if options.get("show_progress_bar") else encode(self, sentences, *arguments, **options)

    with monkeypatch.context() as patch:
        encode = LayerPoolBertModel.encode
        if moment == "embedding":
            patch.setattr(LayerPoolBertModel, "encode", interrupt_embedding)
        elif moment == "writing":
            patch.setattr(search.faiss, "serialize_index", interrupt)
        else:
            patch.setattr(search.os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("index", "notes")
    assert (notes.parent / "my.index").read_bytes() == old
    assert sorted(path.name for path in notes.parent.iterdir()) == ["my.index", "notes"]
    assert "1 passages embedded" in run("index", "notes").out


def test_without_faiss_the_sentence_names_how_to_install_it(search, run, monkeypatch):
    monkeypatch.setattr(search, "faiss", None)
    done = run("index", "notes")
    assert (done.code, done.err) == (2, "error: searching needs FAISS: pip install faiss-cpu\n")


def test_passages_hold_every_word_once_and_know_their_lines(search, minilm_tokenizer):
    long_line = " ".join(f"word{number}" for number in range(60))
    text = f"# One\n\nfirst\n\nsecond\nthird\r\n\n\n# Two\n\n{long_line}\n\nlast"
    limit = 20
    passages = search.split_passages(text, minilm_tokenizer, limit)
    assert [word for passage in passages for word in passage.text.split()] == text.split()
    assert (passages[0].line, passages[0].text) == (1, "# One\n\nfirst\n\nsecond\nthird\n\n# Two")
    assert [passage.line for passage in passages[1:]] == [11] * (len(passages) - 2) + [13]
    for passage in passages:
        tokens = minilm_tokenizer(passage.text, add_special_tokens=False)["input_ids"]
        assert len(tokens) == passage.tokens <= limit
    assert search.split_passages("", minilm_tokenizer, limit) == []
