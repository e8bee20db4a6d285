"""A teacher or a guide in a training run: the loss of a step, and what is refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import info_nce
from modeling_layerpool.training.computed_files import embed_texts
from modeling_layerpool.training.distillation_losses import distill_similarities, distill_vectors
from tests.training.conftest import triplets


COLUMNS = ("anchor", "positive", "negative")


class RandomEncoder:
    """Draws an embedding for each text, always the same one."""

    def __init__(self, width=32, seed=0):
        self.width, self.seed = width, seed
        self.identity = f"random {width} {seed}"

    def encode(self, sentences):
        return np.stack(
            [np.random.default_rng([self.seed, *text.encode()]).normal(size=self.width) for text in sentences]
        )


@pytest.fixture
def embed(tmp_path):
    def make(rows=None, **groups):
        rows = triplets(14) if rows is None else rows
        texts = [text for row in rows for text in row.values()]
        return embed_texts(texts, groups, tmp_path / "embeddings", show_progress_bar=False)

    return make


def step(trainer, rows=4):
    """The embeddings of a batch of texts, `(b, c, h)`, and the loss of the trainer's step."""
    model = trainer.model.double().eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])
    texts = trainer.train_dataset[:rows]
    columns = trainer.columns
    ids = [texts[f"{column}_input_ids"][row] for row in range(rows) for column in columns]
    embeddings = torch.cat([model(input_ids=torch.tensor([sentence])).pooler_output for sentence in ids])
    trainer.model.training = True  # the terms count in training, and dropout stays off
    trainer.extra_modules.double()
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.model.training = False
    return embeddings.view(rows, len(columns), -1), loss


@pytest.mark.parametrize(
    ("options", "weight"), [({}, 1.0), ({"distill_weight": 0.3, "distill_temperature": 0.2}, 0.3)]
)
def test_a_teacher_adds_the_divergence_of_the_rows_to_the_objective(make_trainer, embed, options, weight):
    teacher = embed(teacher=[RandomEncoder()])
    trainer = make_trainer(text_embeddings=teacher, **options)
    embeddings, loss = step(trainer)
    goals = torch.stack([teacher.read("teacher", teacher.indices(list(row.values()))) for row in triplets(4)])
    further = [part[:, 1:].flatten(0, 1) for part in (embeddings, goals.double())]
    expected = info_nce(*embeddings.unbind(1), temperature=0.05) + weight * distill_similarities(
        *(embeddings[:, 0], further[0], goals[:, 0].double(), further[1]),
        temperature=options.get("distill_temperature", 0.05),
    )
    torch.testing.assert_close(loss, expected, atol=1e-8, rtol=1e-8)


def test_one_column_of_texts_is_compared_with_the_other_rows(make_trainer, embed):
    rows = [{"text": row["anchor"]} for row in triplets(14)]
    teacher = embed(rows, teacher=[RandomEncoder(5)])
    trainer = make_trainer(objective="distill", text_embeddings=teacher, train_dataset=Dataset.from_list(rows))
    embeddings, loss = step(trainer)
    goals = teacher.read("teacher", np.arange(4)).double()
    ours, own = embeddings[:, 0], torch.arange(4)
    torch.testing.assert_close(loss, distill_similarities(ours, ours, goals, goals, own, own), atol=1e-8, rtol=1e-8)


def test_vectors_of_the_same_width_need_no_map(make_trainer, embed):
    teacher = embed(teacher=[RandomEncoder(32)])
    trainer = make_trainer(objective="distill", distill_loss="vectors", text_embeddings=teacher)
    embeddings, loss = step(trainer)
    goals = teacher.read("teacher", np.arange(12)).double()
    torch.testing.assert_close(loss, distill_vectors(embeddings.flatten(0, 1), goals), atol=1e-8, rtol=1e-8)


def test_a_map_to_a_wider_teacher_is_learned_and_resumed_but_no_part_of_the_model(make_trainer, embed, tmp_path):
    options = {"objective": "distill", "distill_loss": "vectors", "distill_projection": True, "max_steps": 4}
    options |= {"text_embeddings": embed(teacher=[RandomEncoder(48)]), "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(**options)
    start = trainer.objective.map.weight.clone()
    assert torch.equal(start, torch.eye(48, 32))
    trainer.train()
    assert not torch.equal(trainer.objective.map.weight, start)
    assert not any("map" in name for name in trainer.model.state_dict())
    resumed = make_trainer(name="resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert torch.equal(resumed.objective.map.weight, trainer.objective.map.weight)


def test_a_guide_masks_the_texts_that_it_finds_nearer_than_the_positive(make_trainer, embed):
    guide = embed(guide=[RandomEncoder(3)])
    trainer = make_trainer(text_embeddings=guide, guide_margin=0.1)
    embeddings, loss = step(trainer)
    seen = torch.stack([guide.read("guide", guide.indices(list(row.values()))) for row in triplets(4)])
    columns = torch.cat([seen[:, 1], seen[:, 2]])
    guided = info_nce(
        *embeddings.unbind(1), temperature=0.05, guide_anchors=seen[:, 0], guide_columns=columns, guide_margin=0.1
    )
    torch.testing.assert_close(loss, guided, atol=1e-8, rtol=1e-8)
    assert loss < info_nce(*embeddings.unbind(1), temperature=0.05)


@pytest.mark.parametrize("objective", ["supervised", "distill"])
def test_gradient_caching_gives_the_gradient_of_the_plain_step(make_trainer, embed, objective):
    embeddings = embed(
        teacher=[RandomEncoder()], **({"guide": [RandomEncoder(3)]} if objective == "supervised" else {})
    )
    gradients = {}
    for cache in (None, 16):
        trainer = make_trainer(
            name=f"cache {cache}", objective=objective, text_embeddings=embeddings, gradient_cache=cache, rows=14
        )
        trainer.model.double().eval()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        trainer.model.train = lambda mode=True, model=trainer.model: setattr(model, "training", mode)
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, batch)
        gradients[cache] = {name: p.grad for name, p in trainer.model.named_parameters()}
    for name, gradient in gradients[None].items():
        torch.testing.assert_close(gradients[16][name], gradient, atol=1e-10, rtol=1e-8, msg=name)


def test_a_frozen_encoder_learns_from_a_teacher_too(make_trainer, embed, tiny_model):
    teacher = embed(teacher=[RandomEncoder()])
    losses = {}
    for cache in ("float32", "off"):
        trainer = make_trainer(
            name=cache,
            model=tiny_model(pooler_type="weighted_layers"),
            text_embeddings=teacher,
            freeze_encoder=True,
            state_cache=cache,
            max_steps=3,
            optim="sgd",
            learning_rate=0.1,
        )
        trainer.train()
        losses[cache] = [entry["distill_loss"] for entry in trainer.state.log_history if "distill_loss" in entry]
    assert len(losses["off"]) == 3
    assert losses["float32"] == pytest.approx(losses["off"], abs=1e-4)


def test_training_draws_the_similarities_to_those_of_the_teacher(make_trainer, embed):
    options = {
        "per_device_train_batch_size": 14,
        "max_steps": 40,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
    }
    trainer = make_trainer(objective="distill", text_embeddings=embed(teacher=[RandomEncoder()]), **options)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5]), losses


def test_several_datasets_with_other_columns_share_the_teacher(make_trainer, embed):
    rows = triplets(14)
    pairs = [{column: row[column] for column in COLUMNS[:2]} for row in rows[7:]]
    datasets = {"triplets": Dataset.from_list(rows[:7]), "pairs": Dataset.from_list(pairs)}
    trainer = make_trainer(
        train_dataset=datasets, text_embeddings=embed(teacher=[RandomEncoder()]), num_train_epochs=1
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert sum("distill_loss" in entry for entry in trainer.state.log_history) == 4


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ({}, {"objective": "distill"}, "objective=distill learns from a teacher; give one"),
        ({}, {"distill_weight": 0.5}, "distill_weight does nothing without a teacher"),
        ({}, {"distill_loss": "cosines"}, "distill_loss does nothing without a teacher"),
        ({}, {"guide_margin": 0.1}, "guide_margin does nothing without a guide"),
        ({"guide": 3}, {"objective": "pairwise"}, "a guide does nothing with objective=pairwise; leave it out"),
        (
            {"teacher": 32},
            {"objective": "distill", "distill_weight": 2.0},
            "distill_weight does nothing with objective",
        ),
        (
            {"teacher": 48},
            {"distill_loss": "vectors"},
            "compares 32 numbers of the model with 48 of the teacher; give --distill_projection, or another",
        ),
        ({"teacher": 32}, {"distill_loss": "cosines", "distill_temperature": 0.1}, "distill_temperature does nothing"),
        ({"teacher": 32}, {"distill_projection": True}, "distill_projection does nothing with distill_loss=rows"),
        ({"teacher": 32}, {"distill_loss": "all"}, "use one of rows, cosines, vectors"),
        ({"teacher": 32}, {"distill_weight": False}, "distill_weight=False must be a number"),
    ],
)
def test_wrong_options_are_one_sentence(make_trainer, embed, groups, options, message):
    text_embeddings = embed(**{group: [RandomEncoder(width)] for group, width in groups.items()}) if groups else None
    with pytest.raises(InputError, match=message):
        make_trainer(text_embeddings=text_embeddings, **options)


def test_a_group_that_nothing_reads_is_refused(make_trainer, embed):
    with pytest.raises(InputError, match="'teachers' is no group of text embeddings; use 'teacher' or 'guide'"):
        make_trainer(text_embeddings=embed(teachers=[RandomEncoder()]))


def test_embeddings_of_another_corpus_are_refused(make_trainer, embed):
    with pytest.raises(InputError, match="the text embeddings are those of other texts"):
        make_trainer(text_embeddings=embed([{"text": "another text"}], teacher=[RandomEncoder()]))


def test_a_stream_or_tokenized_rows_are_refused(make_trainer, embed, tokenizer):
    embeddings = embed(teacher=[RandomEncoder()])
    stream = IterableDataset.from_generator(lambda: iter(triplets(14)))
    with pytest.raises(InputError, match="embeds a dataset with a length, not a stream"):
        make_trainer(train_dataset=stream, text_embeddings=embeddings, max_steps=2)
    tokenized = make_trainer().train_dataset
    with pytest.raises(InputError, match="train_dataset is tokenized, and text_embeddings need its texts"):
        make_trainer(train_dataset=tokenized, text_embeddings=embeddings)


def test_the_card_names_the_distillation(make_trainer, embed):
    trainer = make_trainer(text_embeddings=embed(teacher=[RandomEncoder()]), distill_weight=0.5)
    facts = trainer.card_facts()
    assert facts.settings["distillation"] == "rows (temperature 0.05)"
    assert facts.settings["weight of the distillation"] == "0.5"
    assert any("hinton2015distilling" in citation for citation in facts.citations)
