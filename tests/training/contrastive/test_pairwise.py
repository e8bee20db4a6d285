"""The pairwise objective in real runs: its data, its losses, two stages, and two ways to cut a batch."""

import json
import re

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file as load_weights

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.publishing import write_model_card
from modeling_layerpool.training import OBJECTIVES, ContrastiveTrainingArguments
from modeling_layerpool.training.batching import model_inputs
from modeling_layerpool.training.contrastive.data import load_file
from modeling_layerpool.training.losses import batch_softmax_contrastive, cosent, cosine_bce, cosine_mse
from tests.files import write_rows
from tests.processes import ROOT, launch
from tests.training.conftest import triplets


def scored(rows, column="score"):
    """Pairs with scores of 0 to 5, or labels."""
    return [
        {
            "sentence1": row["anchor"],
            "sentence2": row["positive"],
            column: float(number % 6) if column == "score" else number % 2,
        }
        for number, row in enumerate(triplets(rows))
    ]


@pytest.fixture
def make_pairwise(make_trainer):
    def make(rows=12, column="score", **options):
        return make_trainer(train_dataset=Dataset.from_list(scored(rows, column)), objective="pairwise", **options)

    return make


def loss_of(trainer):
    """The loss of the first six rows without noise, and what it is made of."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    model = trainer.model.eval()
    embeddings = model(**model_inputs(batch)).pooler_output.view(6, 2, -1)
    return trainer.compute_loss(model, batch), *embeddings.unbind(1), batch["values"]


@pytest.mark.parametrize("loss", ["bsc", "mse", "combined", "bce", "cosent"])
def test_each_loss_is_the_function_of_its_name_on_scaled_scores(make_pairwise, loss):
    trainer = make_pairwise(pairwise_loss=loss, **({} if loss == "mse" else {"temperature": 0.2}))
    got, first, second, values = loss_of(trainer)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]))
    contrastive = batch_softmax_contrastive(first, second, values >= 0.5, temperature=0.2)
    expected = {
        "bsc": lambda: contrastive,
        "mse": lambda: cosine_mse(first, second, values),
        "combined": lambda: 0.1 * contrastive + 0.9 * cosine_mse(first, second, values),
        "bce": lambda: cosine_bce(first, second, values, temperature=0.2),
        "cosent": lambda: cosent(first, second, values, temperature=0.2),
    }[loss]()
    torch.testing.assert_close(got, expected)


def test_labels_are_0_and_1_even_where_one_of_them_is_missing(make_pairwise, make_trainer):
    trainer = make_pairwise(column="label")
    assert [row["value"] for row in trainer.train_dataset][:4] == [0.0, 1.0, 0.0, 1.0]
    positives = Dataset.from_list([row | {"label": 1} for row in scored(8, "label")])
    assert set(make_trainer(train_dataset=positives, objective="pairwise").train_dataset["value"]) == {1.0}


def test_a_given_range_decides_and_a_score_outside_names_its_row(make_pairwise):
    trainer = make_pairwise(score_range=[0, 10])
    assert max(trainer.train_dataset["value"]) == 0.5
    with pytest.raises(InputError, match="train_dataset, row 4: the score 4 is outside 0 to 3; set --score_range"):
        make_pairwise(score_range=[0, 3])


def test_the_second_loss_has_the_last_steps(make_pairwise):
    trainer = make_pairwise(max_steps=4, pairwise_loss="bsc", second_loss="mse", second_loss_share=0.5)
    used = []
    trainer.objective.register_forward_pre_hook(lambda objective, _: used.append(objective.current_loss))
    trainer.train()
    assert used == ["bsc", "bsc", "mse", "mse"]


def test_a_run_of_two_stages_resumes_bit_identical(make_pairwise):
    options = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "second_loss": "mse",
        "learn_temperature": True,
    }
    unbroken, resumed = make_pairwise(name="unbroken", **options), make_pairwise(name="resumed", **options)
    unbroken.train()
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-2")
    for name, weight in unbroken.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name
    assert unbroken.objective.temperature == resumed.objective.temperature


@pytest.mark.parametrize("loss", ["bsc", "combined", "cosent"])
def test_gradient_caching_does_not_change_the_loss(make_pairwise, tiny_model, loss):
    found = []
    for cache in (None, 48):
        config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_activation": "relu"}
        trainer = make_pairwise(
            model=tiny_model(**config).double(), pairwise_loss=loss, max_steps=2, gradient_cache=cache
        )
        trainer.train()
        found.append(trainer.model.state_dict())
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["combined", "cosent"])
def test_two_processes_train_like_one(tiny_model, tokenizer, tmp_path, loss):
    folder = tmp_path / "start"
    tiny_model(pooler_type="mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    train = tmp_path / "train.jsonl"
    write_rows(train, scored(7))
    found = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        done = launch(
            ROOT / "run_contrastive.py",
            *("--model_name_or_path", folder, "--objective", "pairwise", "--pairwise_loss", loss),
            *("--train_file", train, "--output_dir", output, "--max_steps", "2", "--lr_scheduler_type", "constant"),
            *("--per_device_train_batch_size", 4 // processes, "--optim", "sgd", "--learning_rate", "0.5"),
            *("--save_strategy", "no"),
            processes=processes,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert f"4 on {processes} process(es)" in done.stdout
        assert re.search(r"values +0 to 5\n", done.stdout)
        assert re.search(rf"pairwise loss +{loss}\n", done.stdout)
        found.append(load_weights(output / "model.safetensors"))
    moved = 0.0
    start = load_weights(folder / "model.safetensors")
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-5, rtol=1e-4, msg=name)
        moved += (weight - start[name]).abs().sum().item()
    assert moved > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairwise_loss": "cosine"}, "pairwise_loss='cosine' is unknown; use one of bsc, mse"),
        ({"second_loss": "cosine"}, "second_loss='cosine' is unknown"),
        ({"combined_weight": 2.0}, "combined_weight=2.0 must be at least 0 and at most 1"),
        ({"score_range": [5.0, 0.0]}, "score_range=.* must be two numbers, the lower one first"),
        ({"symmetric": True}, "symmetric does nothing with objective=pairwise"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), objective="pairwise", **options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence1": "a", "score": 1}, "no column 'sentence2', which the pairwise objective needs"),
        ({"sentence1": "a", "sentence2": "b"}, "no column 'score' or 'label', which the pairwise objective needs"),
        ({"sentence1": "a", "sentence2": "b", "label": "yes"}, "the column 'label' must be a number, got 'yes'"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, message):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=f"t.jsonl, line 1: {message}"):
        load_file(str(path), OBJECTIVES["pairwise"]())


def test_scores_that_are_all_equal_are_refused(make_trainer):
    rows = Dataset.from_list([row | {"score": 3.0} for row in scored(8)])
    with pytest.raises(InputError, match="every score is 3, which leaves nothing to learn"):
        make_trainer(train_dataset=rows, objective="pairwise")


def test_the_card_says_which_losses_and_which_order(make_pairwise, tmp_path):
    trainer = make_pairwise(
        max_steps=2, pairwise_loss="combined", second_loss="mse", shuffling="words", group_size=3, score_range=[0, 5]
    )
    trainer.train()
    path = write_model_card(
        trainer, base_model="tiny", train_data="pairs.jsonl", validation_data=None, command="python"
    )
    card = path.read_text()
    assert "combined, then mse for the last 50 % of steps" in card
    assert "0.1 bsc + 0.9 mse" in card
    assert "by words of the first texts, 3 of them together" in card
    assert "Batch-Softmax Contrastive Loss" in card
