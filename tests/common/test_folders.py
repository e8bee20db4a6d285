"""Output folders: checked at the start, and removed again if nothing was written."""

import os

import pytest

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.folders import output_folder


def test_a_folder_that_stays_empty_is_removed_with_the_parents_that_were_made_for_it(tmp_path):
    (tmp_path / "mine").mkdir()
    with output_folder(tmp_path / "mine" / "a" / "b") as path:
        assert path.is_dir()
    assert os.listdir(tmp_path) == ["mine"]
    assert os.listdir(tmp_path / "mine") == []


def test_a_folder_that_was_there_stays_even_if_it_is_empty(tmp_path):
    with output_folder(tmp_path):
        pass
    assert tmp_path.is_dir()


def test_what_was_written_stays_after_an_error(tmp_path):
    def write_and_fail():
        with output_folder(tmp_path / "a") as path:
            (path / "checkpoint").write_text("")
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert os.listdir(tmp_path / "a") == ["checkpoint"]


@pytest.mark.parametrize("name", ["file", "file/below", "dangling", "dangling/below", "x" * 300, "a\0b"])
def test_a_folder_that_cannot_be_made_is_one_sentence_and_leaves_nothing(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"--output_dir .* cannot be written to"), output_folder(f"{tmp_path}/{name}"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file"]


def test_a_folder_without_permission_to_write_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):  # root may write anywhere, so that a real folder would show nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(InputError, match="Permission denied"), output_folder(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
