"""The angle objective against a slow float64 reference, and against sentence-transformers."""

import math

import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import OBJECTIVES, ContrastiveTrainingArguments, EmbeddedBatch
from tests.training.contrastive.test_pairwise import loss_of, scored
from tests.training.test_losses import same_values_and_gradients


SCORES = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.25], dtype=torch.float64)


def embeddings(width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 2, width, dtype=torch.float64, generator=generator).requires_grad_()


def loss(pairs, **options):
    texts = torch.arange(10).view(5, 2)
    return OBJECTIVES["angle"](**options)(EmbeddedBatch(pairs, texts, pairs, texts, 0, SCORES, SCORES))


def similarity(x, y):
    """The absolute sum of the real and the imaginary parts of x / y, where both have length 1."""
    half = len(x) // 2
    total = 0
    for i in range(half):
        a, b, c, d = x[i], x[half + i], y[i], y[half + i]
        total = total + (a * c + b * d) + (b * c - a * d)
    return abs(total / (x.norm() * y.norm()))


def ranking(similarities, temperature):
    terms = [
        torch.exp((similarities[j] - similarities[i]) / temperature)
        for i in range(5)
        for j in range(5)
        if SCORES[i] > SCORES[j]
    ]
    return torch.log(1 + sum(terms))


def test_it_equals_the_formula():
    pairs = embeddings()
    angles = [similarity(x, y) for x, y in pairs]
    cosines = [x @ y / (x.norm() * y.norm()) for x, y in pairs]
    expected = 0.3 * ranking(angles, 0.5) + 0.7 * ranking(cosines, 0.1)
    options = {"angle_weight": 0.3, "angle_temperature": 0.5, "cosine_weight": 0.7, "temperature": 0.1}
    same_values_and_gradients(loss(pairs, **options), expected, [pairs])


@pytest.mark.parametrize("width", [6, 7])
def test_its_terms_are_the_losses_of_sentence_transformers(width):
    pairs = embeddings(width)
    columns = list(pairs.unbind(1))
    angle = AnglELoss(None, scale=1.0).compute_loss_from_embeddings(columns, SCORES)
    same_values_and_gradients(loss(pairs, cosine_weight=0.0), angle, [pairs])
    cosine = CoSENTLoss(None, scale=20.0).compute_loss_from_embeddings(columns, SCORES)
    same_values_and_gradients(loss(pairs, angle_weight=0.0), cosine, [pairs])


def test_a_run_ranks_the_scaled_scores_and_learns(make_trainer, tiny_model):
    model = tiny_model(pooler_type="mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = make_trainer(
        model=model,
        train_dataset=Dataset.from_list(scored(12)),
        objective="angle",
        max_steps=30,
        learning_rate=1e-3,
        temperature=0.2,
        learn_temperature=True,
    )
    got, first, second, values = loss_of(trainer)
    pairs, texts = torch.stack([first, second], dim=1), torch.arange(12).view(6, 2)
    assert values.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    torch.testing.assert_close(trainer.objective(EmbeddedBatch(pairs, texts, pairs, texts, 0, values, values)), got)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    assert not math.isclose(trainer.objective.temperature.item(), 0.2)
    settings = trainer.objective.settings(trainer.columns)
    assert settings["angle"] == "1 angle (temperature 1) + 1 cosine"
    assert settings["values"] == "0 to 5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angle_temperature": 0.0}, "angle_temperature=0.0 must be above 0"),
        ({"angle_weight": 0.0, "cosine_weight": 0.0}, "both 0, which leaves nothing to rank"),
        ({"angle_weight": 0.0, "angle_temperature": 2.0}, "angle_temperature does nothing with angle_weight=0"),
        ({"mask_duplicates": False}, "mask_duplicates does nothing with objective=angle"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), objective="angle", **options)


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"cosine_weight": 0.0, "temperature": 0.1}, ["sentence1", "sentence2", "score"], "temperature does nothing"),
        ({"score_range": [0.0, 2.0]}, ["anchor", "positive", "negative"], "score_range does nothing with triplets"),
        ({}, ["anchor", "positive"], "a.jsonl: no column 'negative', which the angle objective needs"),
    ],
)
def test_rows_that_do_not_fit_the_options_are_refused(options, columns, message):
    with pytest.raises(InputError, match=message):
        OBJECTIVES["angle"](**options).select_columns(columns, "a.jsonl")


def triplets(negatives, rows=4, width=6):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 2 + negatives, width, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("negatives", [1, 2])
def test_triplets_are_ranked_as_pairs_and_have_the_batch_as_negatives(negatives):
    rows, temperature = triplets(negatives), 0.1
    texts = torch.arange(rows.shape[0] * rows.shape[1]).view(rows.shape[:2])
    options = {"angle_weight": 0.3, "angle_temperature": 0.5, "cosine_weight": 0.7, "temperature": temperature}
    objective = OBJECTIVES["angle"](**options)
    got = objective(EmbeddedBatch(rows, texts, rows, texts, 0))

    def cosine(x, y):
        return x @ y / (x.norm() * y.norm())

    expected = 0
    for weight, measure, divisor in ((0.3, similarity, 0.5), (0.7, cosine, temperature)):
        positive = [measure(row[0], row[1]) / divisor for row in rows]
        negative = [measure(row[0], other) / divisor for row in rows for other in row[2:]]
        expected = expected + weight * torch.log(1 + sum(torch.exp(n - p) for p in positive for n in negative))
    columns = [row[1] for row in rows] + [other for row in rows for other in row[2:]]
    for index, row in enumerate(rows):
        exponents = [torch.exp(cosine(row[0], column) / temperature) for column in columns]
        expected = expected - torch.log(exponents[index] / sum(exponents)) / len(rows)
    same_values_and_gradients(got, expected, [rows])
    # Two processes, each with half of the rows.
    halves = [objective(EmbeddedBatch(rows[i : i + 2], texts[i : i + 2], rows, texts, i)) for i in (0, 2)]
    same_values_and_gradients(sum(halves) / 2, expected, [rows])


def test_a_run_on_triplets_learns(make_trainer, tiny_model):
    model = tiny_model(pooler_type="mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = make_trainer(model=model, objective="angle", max_steps=20, learning_rate=1e-3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert trainer.objective.settings(trainer.columns)["angle"].endswith("1 cosine + 1 in-batch negatives")
    assert trainer.objective.settings([])["angle"].endswith("1 cosine")  # of a trainer without rows
