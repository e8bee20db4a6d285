import gzip
import itertools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import (
    TransferTask,
    load_states_encoder,
    load_transfer_task,
    read_transfer_task,
    single_state_accuracies,
    transfer,
    transfer_accuracy,
    transfer_features,
)
from tests.evaluation.data import VectorEncoder, write_lines


def rows(count, start=0, labels=("b", "a")):
    return [
        {"sentence": f"text {index}", "label": labels[index % len(labels)]} for index in range(start, start + count)
    ]


def pairs(count):
    return [{"sentence1": f"a {row}", "sentence2": f"b {row}", "label": row % 2} for row in range(count)]


def task_of(labels, sizes=None):
    labels = np.asarray(labels)
    return TransferTask([f"text {row}" for row in range(len(labels))], None, labels, sizes)


@pytest.fixture
def noisy():
    """Two classes that overlap, as embeddings (120, 3) and as states (120, 2, 4), and the class of each row."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 120)
    embeddings = (generator.normal(size=(120, 3)) * [1, 5, 0.2] + labels[:, None]).astype(np.float32)
    states = (generator.normal(size=(120, 2, 4)) + labels[:, None, None] * [[[0.0], [1.5]]]).astype(np.float32)
    return embeddings, states, labels


# Reading


def test_a_file_is_a_task_of_folds_and_its_labels_are_numbered_in_order(tmp_path):
    task = read_transfer_task(write_lines(tmp_path / "task.jsonl", rows(20)))
    assert task.first[:2] == ["text 0", "text 1"]
    assert task.second is None
    assert task.sizes is None
    assert task.labels.tolist() == [1, 0] * 10


def test_a_folder_holds_its_parts_in_order_plain_or_gzipped(tmp_path):
    write_lines(tmp_path / "test.jsonl", rows(4, start=8))
    write_lines(tmp_path / "dev.jsonl", rows(2, start=6))
    plain = write_lines(tmp_path / "train.jsonl", rows(6))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    task = read_transfer_task(tmp_path)
    assert task.first == [f"text {index}" for index in range(12)]
    assert task.sizes == {"train": 6, "dev": 2, "test": 4}


def test_pairs_have_two_texts_and_an_integer_is_the_label_that_its_digits_are(tmp_path):
    write_lines(tmp_path / "train.jsonl", pairs(6))
    write_lines(tmp_path / "test.jsonl", [row | {"label": str(row["label"])} for row in pairs(4)])
    task = read_transfer_task(tmp_path)
    assert task.second[-1] == "b 3"
    assert task.labels.tolist() == [0, 1] * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"sentence": "a", "label": 1}, {"sentence": " ", "label": 0}], ", line 2: the column 'sentence' is empty"),
        ([{"sentence": "a"}], ", line 1: no column 'label'"),
        ([{"sentence1": "a", "label": 1}], ", line 1: no column 'sentence2'"),
        ([{"sentence": "a", "label": 1.5}], ", line 1: the column 'label' must be a text or an integer, got 1.5"),
        ([{"sentence": "a", "label": None}], ", line 1: the column 'label' must be a text or an integer, got None"),
        (rows(30, labels=("a",)), ": every label is 'a', and a classifier needs at least two labels"),
        ([*rows(30), {"sentence": "a", "label": "c"}], ": the label 'c' has 1 rows, and 10 folds need one in each"),
        ([], ": no rows"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, content, message):
    path = write_lines(tmp_path / "task.jsonl", content)
    with pytest.raises(InputError) as error:
        read_transfer_task(path)
    assert str(error.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": rows(6)}, "has no test.jsonl or test.jsonl.gz; for 10 folds give a file, not a folder"),
        ({"train": rows(6), "test": []}, "no rows in test"),
        ({"train": rows(4), "test": rows(2)}, "the label 'a' has 2 rows, and 3 folds need one in each"),
        ({"train": rows(6), "test": rows(6, labels=("a", "z"))}, "the label 'z' of dev or test is not in train"),
    ],
)
def test_a_wrong_folder_is_named(tmp_path, parts, message):
    for part, content in parts.items():
        write_lines(tmp_path / f"{part}.jsonl", content)
    with pytest.raises(InputError) as error:
        read_transfer_task(tmp_path)
    assert str(error.value) == f"{tmp_path}: {message}"


def test_unknown_built_in_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"--transfer imdb: no built-in task .*mr, cr, subj, mpqa, sst2, trec, mrpc"):
        load_transfer_task("imdb")


def test_built_in_task_without_a_network_says_what_to_do_instead():
    with pytest.raises(InputError, match=r"could not be loaded from the Hub .*give a local task as trec=FILE"):
        load_transfer_task("trec")


def test_the_splits_of_a_built_in_task_are_joined_and_its_label_column_is_read(monkeypatch):
    import datasets

    asked = []

    def load_dataset(repository, configuration, split):
        asked.append((repository, configuration, split))
        labels = [("HUM", "LOC", "NUM")[index % 3] for index in range(9)]
        return datasets.Dataset.from_dict(
            {"text": [f"{split} {index}" for index in range(9)], "label": [0] * 9, "label_coarse_text": labels}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_transfer_task("trec")
    assert asked == [("SetFit/TREC-QC", None, "train"), ("SetFit/TREC-QC", None, "test")]
    assert task.first[9] == "test 0"
    assert task.labels[:4].tolist() == [0, 1, 2, 0]
    assert task.sizes == {"train": 9, "test": 9}


# Features


def test_pairs_are_their_difference_and_their_product():
    encoder = VectorEncoder({"a": [1, 2], "b": [3, -1], "c": [0, 1]})
    features = transfer_features(encoder, TransferTask(["a", "b"], ["b", "c"], np.array([0, 1])))
    assert features.tolist() == [[2, 3, 3, -2], [3, 2, 0, -1]]
    assert encoder.calls == [["a", "b", "b", "c"]]


def test_features_of_states_are_their_token_means_with_mean_0_and_variance_1(tiny_folder):
    encoder = load_states_encoder(tiny_folder)
    task = task_of([0, 1, 0])
    features = transfer_features(encoder, task, encoder.states)
    model = LayerPoolBertModel.from_pretrained(tiny_folder, pooler_type="concat_layers")
    expected = model.encode_states(task.first, encoder.tokenizer)[:, :, 1].astype(np.float64)  # (3, n, h)
    expected -= expected.mean(axis=-1, keepdims=True)
    expected /= expected.std(axis=-1, keepdims=True)
    assert features.shape == (3, 4, 32)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_states_are_read_from_a_plain_encoder_in_a_sentence_transformers_folder(minilm):
    encoder = load_states_encoder(minilm, prompt="query: ")
    encoded = encoder.encode(["a text"]).reshape(7, 384)
    states = encoder.model.encode_states(["query: a text"], encoder.tokenizer)[0, :, 1]
    np.testing.assert_array_equal(encoded, states)


def test_all_states_of_a_trained_model_are_read_whatever_its_pooler_reads(tiny_model, tokenizer, tmp_path):
    for number, options in enumerate(
        (
            {"pooler_type": "mean"},
            {"pooler_type": "layer_attention", "pooler_residual": "mean"},
            {"pooler_type": "concat_layers", "projection_dim": 8},
        )
    ):
        folder = tmp_path / str(number)
        model = tiny_model(**options)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        encoder = load_states_encoder(folder)
        encoded = encoder.encode(["a text", "another"]).reshape(2, encoder.states, 32)
        tokens = tokenizer(["a text"], return_tensors="pt")
        hidden = model.bert(**tokens, output_hidden_states=True).hidden_states
        expected = np.stack([state.detach().numpy()[0].mean(0) for state in hidden])
        np.testing.assert_allclose(encoded[0], expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_whose_states_cannot_be_read_is_one_sentence(tmp_path):
    write_lines(tmp_path / "config.json", [{"model_type": "gpt2"}])
    with pytest.raises(InputError, match=r"--features states: .*'gpt2'.*; --features pooled takes any encoder"):
        load_states_encoder(tmp_path)


def test_too_many_rows_for_a_kernel_are_refused_before_they_are_encoded(monkeypatch):
    monkeypatch.setattr(transfer, "MAX_KERNEL_ROWS", 2)
    with pytest.raises(
        InputError, match="3 rows, and the classifier on states takes at most 2; use --features pooled"
    ):
        transfer_features(VectorEncoder({}), task_of([0, 1, 0]), states=2)


# The protocol


def slow_accuracy(predict, strengths, labels, seed=0):
    """10 folds, of which each chooses its strength on 3 inner folds: the protocol in plain loops."""
    hits = 0
    for train, test in StratifiedKFold(10, shuffle=True, random_state=seed).split(labels, labels):
        best = (-1.0, None)
        for strength in strengths:
            inner = StratifiedKFold(3, shuffle=True, random_state=seed).split(train, labels[train])
            found = [
                np.mean(predict(train[fit], train[held], train, strength) == labels[train[held]])
                for fit, held in inner
            ]
            best = max(best, (np.mean(found), strength), key=lambda pair: pair[0])
        hits += np.sum(predict(train, test, train, best[1]) == labels[test])
    return 100 * hits / len(labels)


def test_pooled_accuracy_is_that_of_nested_folds_in_plain_loops(noisy):
    embeddings, _, labels = noisy

    def predict(fit, rows, train, strength):
        mean, deviation = embeddings[fit].mean(0), embeddings[fit].std(0)
        scaled = (embeddings - mean) / deviation
        return (
            LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(scaled[fit], labels[fit]).predict(scaled[rows])
        )

    measured = transfer_accuracy(embeddings, task_of(labels))
    assert measured["rows"] == 120
    assert measured["features"] == "pooled"
    assert measured["accuracy"] == pytest.approx(slow_accuracy(predict, transfer.INVERSE_STRENGTHS, labels))


def gaussian_ridge(features, labels):
    """Kernel ridge regression in float64, one kernel value at a time."""
    flat = features.reshape(len(features), -1).astype(np.float64)

    def predict(fit, rows, train, strength):
        scaled = (flat - flat[train].mean(0)) / flat[train].std(0)
        gamma = transfer.GAMMA / flat.shape[1]

        def kernel(first, second):
            return np.array([[np.exp(-gamma * np.sum((scaled[i] - scaled[j]) ** 2)) for j in second] for i in first])

        targets = np.stack([np.where(labels == label, 1.0, -1.0) for label in np.unique(labels)], axis=1)
        mean = targets[fit].mean(0)
        weights = np.linalg.solve(kernel(fit, fit) + strength * np.eye(len(fit)), targets[fit] - mean)
        return (kernel(rows, fit) @ weights + mean).argmax(1)

    return predict


def test_accuracy_of_states_is_that_of_a_gaussian_kernel_ridge_in_plain_loops(noisy, monkeypatch):
    _, states, labels = noisy
    monkeypatch.setattr(transfer, "RIDGES", (0.5, 0.1))
    measured = transfer_accuracy(states[:60], task_of(labels[:60]))
    expected = slow_accuracy(gaussian_ridge(states[:60], labels[:60]), (0.5, 0.1), labels[:60])
    assert measured == {"accuracy": pytest.approx(expected), "rows": 60, "features": "states"}


def test_dev_chooses_and_only_test_is_reported(noisy, monkeypatch):
    """The classifier is fitted on train, and a wrong label in test changes the accuracy, but not the choice."""
    embeddings, _, labels = noisy
    sizes = {"train": 60, "dev": 30, "test": 30}
    calls = []

    def classifier(features, labels):
        def predict(fit, rows, strength):
            calls.append((fit.tolist(), rows.tolist(), strength))
            right = strength == 0.1 or rows[0] != 60
            return labels[rows] if right else 1 - labels[rows]

        return predict

    monkeypatch.setattr(transfer, "_logistic_regression", classifier)
    measured = transfer_accuracy(embeddings, task_of(labels, sizes))
    assert measured == {"accuracy": 100.0, "rows": 30, "features": "pooled"}
    train, dev, test = (list(range(*ends)) for ends in itertools.pairwise((0, 60, 90, 120)))
    assert calls == [*((train, dev, strength) for strength in transfer.INVERSE_STRENGTHS), (train, test, 0.1)]


def test_without_dev_the_inner_folds_are_of_train_alone(noisy):
    task = task_of(noisy[2], {"train": 90, "test": 30})
    ((train, inner, test),) = transfer._splits(task, 0, "", False)
    assert (train.tolist(), test.tolist()) == (list(range(90)), list(range(90, 120)))
    assert sorted(np.concatenate([held for _, held in inner])) == list(range(90))
    assert all(set(fit) | set(held) == set(range(90)) and not set(fit) & set(held) for fit, held in inner)


def test_the_features_of_a_held_out_fold_change_nothing_in_training(noisy):
    """The kernel is standardized on the rows to train on."""
    _, states, _ = noisy
    train, rows = np.arange(40), np.arange(60)
    labels = np.arange(60) % 2
    before = transfer._kernel_ridge(states[:60], labels, train)
    changed = states[:60].copy()
    changed[50:] *= 100
    after = transfer._kernel_ridge(changed, labels, train)
    np.testing.assert_array_equal(before(train, rows[40:50], 0.1), after(train, rows[40:50], 0.1))


def test_rounding_in_a_constant_dimension_is_not_scaled_up(noisy):
    _, states, labels = noisy
    noise = 1 + 1e-7 * np.random.default_rng(1).normal(size=(120, 2, 40))
    padded = np.concatenate([states, noise.astype(np.float32)], axis=2)
    assert transfer_accuracy(padded, task_of(labels)) == transfer_accuracy(states, task_of(labels))


def test_the_best_single_state_is_found_and_compared_with_the_last(noisy, monkeypatch):
    _, states, labels = noisy
    task = task_of(labels)
    monkeypatch.setattr(transfer, "STATE_ROWS", 50)
    accuracies = single_state_accuracies(states[:, ::-1], task)  # now the first state has the information
    assert list(accuracies) == ["last layer", "best single state"]
    assert accuracies["best single state"] == transfer_accuracy(states[:, 1:], task)["accuracy"]
    assert accuracies["last layer"] == transfer_accuracy(states[:, :1], task)["accuracy"]


def test_equal_seeds_give_equal_folds_and_others_do_not(noisy):
    task = task_of(noisy[2])
    folds = [[test.tolist() for *_, test in transfer._splits(task, seed, "", False)] for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]
    assert sorted(itertools.chain(*folds[0])) == list(range(120))
