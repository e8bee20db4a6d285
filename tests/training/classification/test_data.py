"""Which labels rows have, and which rows make a batch."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given
from hypothesis import strategies as st

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training.classification import (
    ClassificationDataArguments,
    ClassificationTrainingArguments,
    Labels,
    LengthGroupedBatchSampler,
    read_part,
    tokenize_part,
)


def part_of(tmp_path, labels, name="train.jsonl", column="label", **options):
    """Rows with these labels, read from a file."""
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text(f"sentence,{column}\n" + "".join(f"a text,{label}\n" for label in labels))
    else:
        path.write_text("".join(json.dumps({"sentence": "a text", column: label}) + "\n" for label in labels))
    part = "train" if name.startswith("train") else "test"
    return read_part(ClassificationDataArguments(**{f"{part}_file": str(path)} | options), part)


@pytest.mark.parametrize(
    ("labels", "problem_type", "names"),
    [
        (["b", "a", "b"], "single_label_classification", ("a", "b")),
        ([10, 2, 1], "single_label_classification", ("1", "2", "10")),
        (["10", "2", "1"], "single_label_classification", ("1", "2", "10")),
        ([True, False], "single_label_classification", ("False", "True")),
        (["v1", "v10", "v2"], "single_label_classification", ("v1", "v10", "v2")),
        ([1.5, 2], "regression", ("label",)),
        ([1.0, 0.0], "regression", ("label",)),
        ([["a", "c"], [], ["b"]], "multi_label_classification", ("a", "b", "c")),
        ([["a"], []], "multi_label_classification", ("a",)),
    ],
)
def test_labels_of_json_are_what_they_look_like(tmp_path, labels, problem_type, names):
    assert Labels.from_rows(part_of(tmp_path, labels)) == Labels(problem_type, names)


@pytest.mark.parametrize(
    ("labels", "problem_type", "names"),
    [
        (["1", "0", "10"], "single_label_classification", ("0", "1", "10")),
        (["1.5", "2"], "regression", ("label",)),
        (["1.5", "two"], "single_label_classification", ("1.5", "two")),
    ],
)
def test_labels_of_a_csv_file_are_numbers_if_all_of_them_are(tmp_path, labels, problem_type, names):
    assert Labels.from_rows(part_of(tmp_path, labels, "train.csv")) == Labels(problem_type, names)


def test_a_column_score_is_a_regression_and_a_told_problem_type_decides(tmp_path):
    assert Labels.from_rows(part_of(tmp_path, [1, 2], column="score")).problem_type == "regression"
    part = part_of(tmp_path, [1, 2])
    labels = Labels.from_rows(part, "regression")
    assert labels == Labels("regression", ("label",))
    assert labels.encode(part, "them", "nothing") == [1.0, 2.0]
    assert Labels.from_rows(part_of(tmp_path, [1.0, 2.0]), "single_label_classification").names == ("1", "2")


def test_labels_are_encoded_and_decoded_by_their_names(tmp_path):
    part = part_of(tmp_path, ["b", "a", "b"])
    labels = Labels.from_rows(part)
    assert labels.encode(part, "them", "nothing") == [1, 0, 1]
    logits = np.log([[0.25, 0.75], [0.5, 0.25]])
    assert labels.predictions(logits) == [
        {"prediction": "b", "scores": pytest.approx({"a": 0.25, "b": 0.75})},
        {"prediction": "a", "scores": pytest.approx({"a": 2 / 3, "b": 1 / 3})},
    ]
    part = part_of(tmp_path, [["b", "b"], [], ["a", "b"]])
    labels = Labels.from_rows(part)
    assert labels.encode(part, "them", "nothing") == [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    assert labels.predictions(np.array([[-1.0, 0.5]])) == [
        {"prediction": ["b"], "scores": pytest.approx({"a": 1 / (1 + np.e), "b": 1 / (1 + np.exp(-0.5))})}
    ]
    assert Labels("regression", ("score",)).predictions(np.array([[1.5], [2.0]])) == [
        {"prediction": 1.5},
        {"prediction": 2.0},
    ]


def test_labels_survive_their_way_through_a_configuration(tiny_model):
    labels = Labels("single_label_classification", ("no", "perhaps", "yes"))
    config = tiny_model().config
    for name, value in labels.config_fields.items():
        setattr(config, name, value)
    assert Labels.from_config(json.loads(config.to_json_string(use_diff=True))) == labels


def test_rows_to_predict_have_labels_or_have_none(tmp_path):
    assert part_of(tmp_path, ["a", "b"], "test.jsonl").labels == ["a", "b"]
    assert part_of(tmp_path, [None, None], "test.jsonl").labels is None
    assert part_of(tmp_path, ["a"], "test.jsonl", column="other").labels is None
    with pytest.raises(InputError, match=r"test.jsonl, line 2: the column 'label' is missing, null or empty"):
        part_of(tmp_path, ["a", None], "test.jsonl")


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"body": "b", "title": "t", "verdict": "x", "label": 1}\n')
    data = ClassificationDataArguments(train_file=str(path), text_columns=["title", "body"], label_column="verdict")
    part = read_part(data, "train")
    assert (part.texts, part.labels) == ((["t"], ["b"]), ["x"])
    columns = ["sentence1=title", "sentence2=body", "label=verdict"]
    again = read_part(ClassificationDataArguments(train_file=str(path), columns=columns), "train")
    assert (again.text_columns, again.texts, again.labels) == (part.text_columns, part.texts, part.labels)


def test_a_named_column_goes_before_a_known_one(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "q", "sentence": "s", "review": "r", "label": 1, "stars": 2.5}\n')
    data = ClassificationDataArguments(train_file=str(path), columns=["text=review", "score=stars"])
    part = read_part(data, "train")
    assert (part.text_columns, part.label_column, part.is_score) == (("review",), "stars", True)
    with pytest.raises(InputError, match="--columns and --label_column both name the label"):
        ClassificationDataArguments(train_file=str(path), columns=["label=stars"], label_column="stars")


@pytest.mark.parametrize(
    ("task", "part", "split", "texts", "label"),
    [
        ("mrpc", "train", "train", {"sentence1": "a", "sentence2": "b"}, 1),
        ("mnli", "validation", "validation_matched", {"premise": "a", "hypothesis": "b"}, 1),
        ("qqp", "validation", "validation", {"question1": "a", "question2": ""}, 1),
        ("qnli", "test", "test", {"question": "a", "sentence": "b"}, -1),
        ("stsb", "train", "train", {"sentence1": "a", "sentence2": "b"}, 3.5),
        ("stsb", "test", "test", {"sentence1": "a", "sentence2": "b"}, -1.0),
    ],
)
def test_glue_has_its_splits_columns_and_class_names(monkeypatch, task, part, split, texts, label):
    asked = []

    def load_hub(*place):
        asked.append(place)
        dataset = Dataset.from_list([{"idx": 7, **texts, "label": label}])
        return dataset if task == "stsb" else dataset.cast_column("label", ClassLabel(names=["zero", "one"]))

    monkeypatch.setattr("modeling_layerpool.training.classification.data.load_hub", load_hub)
    rows = read_part(ClassificationDataArguments(task_name=task), part)
    assert asked == [("nyu-mll/glue", task, split)]
    assert (rows.text_columns, rows.texts) == (tuple(texts), tuple([text] for text in texts.values()))
    assert rows.where(0) == f"nyu-mll/glue ({task}), split {split}, row 0"
    assert rows.labels == {1: ["one"], 3.5: [3.5]}.get(label)


def test_a_pair_is_one_row_of_tokens_with_its_length(tmp_path, tokenizer):
    path = tmp_path / "train.jsonl"
    path.write_text('{"premise": "a cat", "hypothesis": "a dog sleeps", "label": "no"}\n')
    part = read_part(ClassificationDataArguments(train_file=str(path)), "train")
    row = tokenize_part(part, [1], tokenizer)[0]
    assert tokenizer.decode(row["input_ids"]) == "[CLS] a cat [SEP] a dog sleeps [SEP]"
    assert (row["length"], row["labels"], row["row_number"]) == (8, 1, 1)
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_sampling_that_does_not_exist_here_is_refused(tmp_path):
    with pytest.raises(InputError, match="train_sampling_strategy='batch_rebalance' is unknown; use one of"):
        ClassificationTrainingArguments(output_dir=str(tmp_path), train_sampling_strategy="batch_rebalance")


# --- batches of similar length ---


def epochs_of(lengths, batch_size, world_size=1, epochs=2, **options):
    """The batches of each epoch, with the rows of all processes."""
    result = []
    for epoch in range(epochs):
        shares = []
        for rank in range(world_size):
            sampler = LengthGroupedBatchSampler(
                lengths, len(lengths), batch_size, rank=rank, world_size=world_size, **options
            )
            sampler.set_epoch(epoch)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler)
        result.append([[row for share in batch for row in share] for batch in zip(*shares, strict=True)])
    return result


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 9), st.integers(1, 3))
def test_every_row_is_there_once_on_one_process_and_only_too_small_a_rest_is_left_out(lengths, batch_size, world_size):
    for batches in epochs_of(lengths, batch_size * world_size, world_size):
        rows = [row for batch in batches for row in batch]
        rest = len(lengths) % (batch_size * world_size)
        assert len(rows) == len(set(rows)) == len(lengths) - (rest if rest < world_size else 0)
        assert all(len(batch) == batch_size * world_size for batch in batches[:-1])


def test_rows_of_similar_length_are_together_and_epochs_differ():
    lengths = np.random.default_rng(0).integers(5, 100, 400).tolist()

    def padded(batches):
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    grouped = epochs_of(lengths, 8)
    assert padded(grouped[0]) < 1.15 * sum(lengths)
    assert grouped[0] != grouped[1]
    assert grouped == epochs_of(lengths, 8)
    longest = [max(lengths[row] for row in batch) for batch in grouped[0]]
    assert longest != sorted(longest, reverse=True)  # the batches themselves are shuffled


def test_processes_share_the_same_batches():
    lengths = [*range(1, 24)]
    assert epochs_of(lengths, 4, world_size=2) == epochs_of(lengths, 4)
