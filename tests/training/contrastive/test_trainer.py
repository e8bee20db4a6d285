import os

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModel, AutoTokenizer, TrainerCallback

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import ContrastiveTrainer, NonFiniteLossError, info_nce
from modeling_layerpool.training.contrastive.objectives.base import Objective
from modeling_layerpool.training.contrastive.objectives.info_nce import UnsupervisedObjective
from tests.conftest import assert_close_to, needs_gradient_checkpointing
from tests.models.test_saving import CODE_FILES
from tests.training.conftest import triplets


PACKED = ("input_ids", "sequence_ids", "sequence_starts")


def weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()} | {
        name: weight.clone() for name, weight in trainer.objective.state_dict().items()
    }


def assert_identical(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


class Recorder(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})


def test_the_loss_of_a_step_is_the_objective_of_the_padded_texts(make_trainer, tiny_model, tokenizer):
    model = tiny_model(pooler_activation="relu").double()
    trainer = make_trainer(model=model, hard_negative_weight=1.0, temperature=0.1)
    model.eval()
    rows = triplets(4)
    embeddings = {
        column: model(**tokenizer([row[column] for row in rows], padding=True, return_tensors="pt")).pooler_output
        for column in ("anchor", "positive", "negative")
    }
    expected = info_nce(*embeddings.values(), temperature=0.1, hard_negative_weight=1.0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected, atol=1e-10, rtol=1e-10)


def test_the_unsupervised_loss_compares_two_views_made_by_dropout(make_trainer, tiny_model):
    texts = Dataset.from_dict({"text": [row["anchor"] for row in triplets(8)]})
    trainer = make_trainer(train_dataset=texts, objective=UnsupervisedObjective(temperature=0.05), max_steps=2)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    views = trainer.model.train()(**{name: batch[name] for name in PACKED}).pooler_output.view(4, 2, -1)
    assert not torch.allclose(views[:, 0], views[:, 1])
    views = trainer.model.eval()(**{name: batch[name] for name in PACKED}).pooler_output.view(4, 2, -1)
    torch.testing.assert_close(views[:, 0], views[:, 1])
    trainer.train()


def test_accumulated_gradients_are_the_mean_over_the_batches(make_trainer, tiny_model):
    options = {
        "train_sampling_strategy": "sequential",
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "learning_rate": 0.0,
    }
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_activation": "relu"}
    separate = []
    for rows in (slice(0, 4), slice(4, 8)):
        recorder = Recorder()
        make_trainer(
            model=tiny_model(**config),
            train_dataset=Dataset.from_list(triplets(8)[rows]),
            callbacks=[recorder],
            **options,
        ).train()
        separate += recorder.gradients
    recorder = Recorder()
    make_trainer(
        rows=8, model=tiny_model(**config), gradient_accumulation_steps=2, callbacks=[recorder], **options
    ).train()
    (accumulated,) = recorder.gradients
    for name, gradient in accumulated.items():
        torch.testing.assert_close(gradient, (separate[0][name] + separate[1][name]) / 2, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stop", [2, 4, 5])  # within an epoch, at its end (14 rows, batches of 4), in the next one
def test_a_resumed_run_ends_bit_identical_to_an_unbroken_one(make_trainer, stop):
    options = {
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 1,
        "learn_temperature": True,
        "temperature_learning_rate": 0.1,
        "learning_rate": 1e-3,
    }
    unbroken = make_trainer(name="unbroken", **options)
    unbroken.train()
    resumed = make_trainer(name="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-{stop}")
    assert resumed.state.global_step == 7
    assert_identical(weights(resumed), weights(unbroken))


def test_resuming_without_the_learned_temperature_is_refused(make_trainer):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learn_temperature": True}
    trainer = make_trainer(**options)
    trainer.train()
    checkpoint = f"{trainer.args.output_dir}/checkpoint-1"
    os.remove(f"{checkpoint}/objective.safetensors")
    with pytest.raises(InputError, match=r"objective\.safetensors: no such file"):
        make_trainer(name="other", **options).train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize("option", [{"pooler_learning_rate": 1e-3}, {"freeze_encoder": True}, {"optim": "rmsprop"}])
def test_resuming_with_other_groups_of_parameters_is_one_sentence(make_trainer, option):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(**options)
    trainer.train()
    checkpoint = f"{trainer.args.output_dir}/checkpoint-1"
    with pytest.raises(InputError, match="other groups of parameters; resume with the pooler_type, pooler_learning"):
        make_trainer(name="other", **options, **option).train(resume_from_checkpoint=checkpoint)


def test_a_learned_temperature_moves_without_weight_decay_at_its_own_rate(make_trainer):
    trainer = make_trainer(
        max_steps=3,
        learn_temperature=True,
        temperature_learning_rate=0.5,
        weight_decay=0.1,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
    )
    trainer.train()
    group = trainer.optimizer.param_groups[-1]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)
    alpha = trainer.objective.inverse_temperature.item()
    assert 0.1 < abs(alpha - 20) <= 3 * 0.5 + 1e-3  # Adam moves by about its rate a step
    assert trainer.state.log_history[-2]["temperature"] == pytest.approx(1 / alpha)
    assert trainer.objective.inverse_temperature.grad is None


def test_the_pooler_learns_at_its_own_rate_on_the_same_schedule(make_trainer):
    options = {
        "max_steps": 4,
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
    }
    trainer = make_trainer(pooler_learning_rate=1e-2, **options)
    trainer.create_optimizer()
    rate_of = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert rate_of[id(parameter)] == (1e-2 if name.startswith("pooler.") else 1e-4), name
        assert decay_of[id(parameter)] == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name
    assert len(rate_of) == len(list(trainer.model.parameters()))
    trainer.create_scheduler(4)
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.5e-2, 0.5e-4}


def test_a_frozen_encoder_stays_and_the_pooler_moves(make_trainer):
    trainer = make_trainer(max_steps=2, freeze_encoder=True, learning_rate=1e-2)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("bert."), name


@pytest.mark.parametrize("options", [{"freeze_encoder": True}, {"pooler_learning_rate": 1e-3}])
def test_a_pooler_without_weights_cannot_be_trained_alone(make_trainer, tiny_model, options):
    with pytest.raises(InputError, match="pooler_type=mean has no weights of its own"):
        make_trainer(model=tiny_model(pooler_type="mean"), **options)


def test_without_a_learned_temperature_the_objective_has_nothing_to_save(make_trainer):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    assert not os.path.exists(f"{trainer.args.output_dir}/checkpoint-1/objective.safetensors")


class ScaledObjective(Objective):
    """An objective with a parameter of its own, and no temperature."""

    name = "scaled"

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(20.0))

    def select_columns(self, available, source):
        return ["text", "text"]

    def logs(self):
        return {"scale": self.scale.item()}

    def forward(self, batch):
        first, second = batch.all_embeddings.unbind(dim=1)
        scores = self.scale * torch.nn.functional.normalize(first, dim=-1) @ second.T
        return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def test_an_objective_with_parameters_and_no_temperature_trains_and_logs_what_it_wants(make_trainer):
    trainer = make_trainer(
        objective=ScaledObjective(),
        train_dataset=Dataset.from_list([{"text": row["anchor"]} for row in triplets(8)]),
        max_steps=2,
        learning_rate=0.1,
        lr_scheduler_type="constant",
    )
    trainer.train()
    logged = [entry["scale"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(set(logged)) == 2
    assert logged[-1] == trainer.objective.scale.item()


def test_a_checkpoint_opens_as_a_model_with_its_tokenizer(make_trainer):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1, max_seq_length=20)
    trainer.train()
    checkpoint = f"{trainer.args.output_dir}/checkpoint-1"
    model = AutoModel.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert type(model) is LayerPoolBertModel
    assert tokenizer.model_max_length == 20
    texts = ["one text", "word " * 100]
    expected = trainer.model.encode(texts, trainer.processing_class)
    assert_close_to(model.encode(texts, tokenizer), expected)
    assert {name for name in os.listdir(checkpoint) if name.endswith(".py")} == CODE_FILES


def gradients_of(trainer, step):
    trainer.model.zero_grad()
    trainer.objective.zero_grad()
    torch.manual_seed(7)
    loss = step()
    named = [*trainer.model.named_parameters(), *trainer.objective.named_parameters()]
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in named}


@pytest.mark.parametrize("options", [{}, {"symmetric": True, "hard_negative_weight": 1.0, "learn_temperature": True}])
def test_gradient_caching_is_exact_with_noise_on(make_trainer, tiny_model, options):
    trainer = make_trainer(rows=12, model=tiny_model().double(), gradient_cache=64, row_length=32, **options)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(12)])
    assert len(batch["chunks"]) > 2
    cached_loss, cached = gradients_of(trainer, lambda: trainer.training_step(trainer.model, batch))

    def plain_step():
        with trainer.drawing_masks():
            loss = trainer.compute_loss(trainer.model.train(), batch)
            loss.backward()
        return loss

    plain_loss, plain = gradients_of(trainer, plain_step)
    torch.testing.assert_close(cached_loss, plain_loss, atol=0, rtol=1e-12)
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-12, rtol=1e-9, msg=name)


def test_gradient_caching_keeps_the_scale_of_float16(make_trainer):
    trainer = make_trainer(rows=12, gradient_cache=64, row_length=32)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    # As accelerate sets it up on a GPU; it has no float16 on a CPU.
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.compute_loss = torch.autocast("cpu", dtype=torch.float16)(trainer.compute_loss)
    trainer.model.forward = torch.autocast("cpu", dtype=torch.float16)(trainer.model.forward)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(12)])
    cached_loss, cached = gradients_of(trainer, lambda: trainer.training_step(trainer.model, batch))

    def plain_step():
        with trainer.drawing_masks():
            loss = trainer.compute_loss(trainer.model.train(), batch)
            loss.backward()
        return loss

    plain_loss, plain = gradients_of(trainer, plain_step)
    torch.testing.assert_close(cached_loss, plain_loss)
    for name, gradient in plain.items():
        difference = (cached[name] / 1024 - gradient).norm()
        assert difference <= 0.02 * gradient.norm() + 1e-5, name


@pytest.mark.long
def test_compiled_it_needs_three_graphs_at_most_for_batches_of_all_shapes(make_trainer):
    trainer = make_trainer(rows=40)
    compiled = torch.compile(trainer.model.train(), backend="eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    shapes = set()
    for begin in range(0, 40, 5):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(begin, begin + 5)])
        shapes.add(batch["input_ids"].shape)
        compiled(**{name: batch[name] for name in PACKED}).pooler_output.sum().backward()
    assert len(shapes) > 3
    # The first, one where the number of rows is free, one where their length is too.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


def test_gradient_caching_equals_the_uncut_batch_with_noise_off(make_trainer, tiny_model):
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_activation": "relu"}
    results = []
    for cache in (None, 48):
        recorder = Recorder()
        trainer = make_trainer(
            model=tiny_model(**config).double(),
            max_steps=3,
            gradient_cache=cache,
            gradient_accumulation_steps=2,
            learn_temperature=True,
            callbacks=[recorder],
        )
        trainer.train()
        results.append((recorder.gradients, weights(trainer)))
    for plain, cached in zip(results[0][0], results[1][0], strict=True):
        for name, gradient in plain.items():
            torch.testing.assert_close(cached[name], gradient, atol=1e-9, rtol=1e-6, msg=name)
    torch.testing.assert_close(results[1][1]["inverse_temperature"], results[0][1]["inverse_temperature"])


@pytest.mark.long
def test_a_cached_run_resumes_bit_identical(make_trainer):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "gradient_cache": 48}
    unbroken = make_trainer(name="unbroken", **options)
    unbroken.train()
    resumed = make_trainer(name="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-2")
    assert_identical(weights(resumed), weights(unbroken))


def test_memory_that_runs_out_names_gradient_caching(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=1)

    def run_out(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(trainer, "compute_loss", run_out)
    with pytest.raises(torch.OutOfMemoryError, match="Give --gradient_cache"):
        trainer.train()


class Poison(TrainerCallback):
    """Makes the weights NaN before one step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                model.pooler.projection.weight.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_at_the_next_logging_step_and_names_the_rows(make_trainer):
    trainer = make_trainer(max_steps=9, logging_steps=3, callbacks=[Poison(step=4)])
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 4, on rows") as error:
        trainer.train()
    named = str(error.value).split("on rows ")[1].split(" of the")[0]
    # Step 4 is the last, short batch of the first epoch: 14 rows in batches of 4.
    assert {int(row) for row in named.split(", ")} == set(list(trainer.get_train_dataloader().batch_sampler)[3])
    assert trainer.state.global_step == 6


def test_weights_of_a_broken_run_are_not_saved(make_trainer):
    trainer = make_trainer(
        max_steps=9, logging_steps=9, save_strategy="steps", save_steps=2, callbacks=[Poison(step=3)]
    )
    with pytest.raises(NonFiniteLossError, match="step 3"):
        trainer.train()
    assert os.listdir(trainer.args.output_dir) == ["checkpoint-2"]


def test_the_evaluation_loss_is_the_mean_over_the_rows(make_trainer):
    rows = triplets(9)
    trainer = make_trainer(eval_dataset=Dataset.from_list(rows), per_device_eval_batch_size=4)
    trainer.model.train()
    metrics = trainer.evaluate()
    assert trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        losses = [
            trainer.compute_loss(trainer.model, trainer.data_collator([trainer.eval_dataset[i] for i in part]))
            for part in (range(4), range(4, 8))  # row 8 alone has no negatives
        ]
    assert metrics["eval_loss"] == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    assert trainer.state.log_history[-1]["eval_loss"] == metrics["eval_loss"]


def test_an_evaluator_chooses_the_best_checkpoint(make_trainer):
    scores = iter([1.0, 3.0, 2.0])
    trainer = make_trainer(
        evaluator=lambda model, tokenizer: {"score": next(scores)},
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        learning_rate=1e-3,
    )
    trainer.train()
    assert trainer.state.best_metric == 3.0
    best = AutoModel.from_pretrained(f"{trainer.args.output_dir}/checkpoint-2").state_dict()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, best[name]), name


def test_a_metric_that_an_evaluator_does_not_measure_is_named_at_the_first_evaluation(make_trainer):
    trainer = make_trainer(
        evaluator=lambda model, tokenizer: {"score": 1.0, "pairs": 2},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="scor",
    )
    with pytest.raises(InputError, match="metric_for_best_model='scor' is not measured here; use one of score, pairs"):
        trainer.train()


def test_a_streamed_dataset_trains_and_resumes(make_trainer):
    stream = IterableDataset.from_generator(lambda: iter(triplets(14)))
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "train_dataset": stream}
    unbroken = make_trainer(name="unbroken", **options)
    unbroken.train()
    resumed = make_trainer(name="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-4")
    assert_identical(weights(resumed), weights(unbroken))


def test_data_workers_change_nothing(make_trainer):
    alone = make_trainer(max_steps=5)
    alone.train()
    helped = make_trainer(max_steps=5, name="helped", dataloader_num_workers=2)
    helped.train()
    assert_identical(weights(alone), weights(helped))


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{"bf16": True}, pytest.param({"gradient_checkpointing": True}, marks=needs_gradient_checkpointing)]
)
def test_it_learns_in_bf16_and_with_gradient_checkpointing(make_trainer, tiny_model, options):
    model = tiny_model(pooler_type="weighted_layers")
    trainer = make_trainer(rows=8, model=model, max_steps=40, learning_rate=3e-3, **options)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_rows_that_share_a_text_come_in_different_batches(make_trainer):
    rows = triplets(12)
    rows[5]["negative"] = rows[2]["anchor"]
    trainer = make_trainer(train_dataset=Dataset.from_list(rows), no_duplicates=True, max_steps=2)
    for epoch in range(10):
        sampler = trainer.get_train_dataloader().batch_sampler
        sampler.set_epoch(epoch)
        assert not any({2, 5} <= set(batch) for batch in sampler)
    trainer.train()


def test_texts_already_tokenised_are_taken_as_they_are(make_trainer):
    first = make_trainer(max_steps=2)
    first.train()
    again = make_trainer(max_steps=2, name="again", train_dataset=first.train_dataset)
    again.train()
    assert_identical(weights(first), weights(again))


def test_several_devices_in_one_process_are_refused(make_trainer, monkeypatch):
    from modeling_layerpool.training import ContrastiveTrainingArguments

    monkeypatch.setattr(ContrastiveTrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(InputError, match="accelerate launch"):
        make_trainer()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 1}, "without negatives"),
        ({"max_seq_length": 513}, "max_seq_length=513 is beyond the 512 positions"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": -1.0}, "must be above 0"),
        ({"temperature_learning_rate": 0.1}, "does nothing without learn_temperature"),
        ({"max_seq_length": 2}, "max_seq_length=2 must be at least 3"),
        ({"pooler_learning_rate": -0.1}, "pooler_learning_rate=-0.1 must be at least 0"),
        ({"freeze_encoder": True, "mlm_weight": 0.1}, "drop one of them"),
        ({"remove_unused_columns": True}, "must stay off"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_sentence(make_trainer, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(**options)


def test_the_library_may_write_the_card_if_nobody_else_does(make_trainer):
    written = []
    trainer = make_trainer(write_model_card=written.append)
    trainer.create_model_card()
    assert written == [trainer]


def test_the_trainer_is_the_librarys():
    from transformers import Trainer

    assert issubclass(ContrastiveTrainer, Trainer)
    for name in ("train", "_inner_training_loop", "_run_epoch"):
        assert getattr(ContrastiveTrainer, name) is getattr(Trainer, name)
