"""Training on the stored states of a frozen encoder gives what training through the encoder gives."""

import logging
import os

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertForSequenceClassification
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.state_cache import cached_states
from modeling_layerpool.evaluation.development import development_evaluator
from modeling_layerpool.training import ContrastiveTrainingArguments
from modeling_layerpool.training.classification import (
    ClassificationTrainer,
    ClassificationTrainingArguments,
    LabelledTexts,
    tokenize_part,
)
from modeling_layerpool.training.frozen import describe_frozen
from tests.evaluation.data import write_lines
from tests.processes import launch
from tests.tiny import TINY_BERT
from tests.training.conftest import triplets
from tests.training.test_moving_average import Recorder, averages_by_formula
from tests.training.test_moving_average import weights_of as weights_of_parameters


# Adam would make steps of full size from gradients that are zero but for rounding.
STEPS = {"num_train_epochs": 2, "learning_rate": 0.1, "optim": "sgd", "freeze_encoder": True}
FLOAT16 = {"atol": 1e-2, "rtol": 1e-2}  # numbers of 10 bits, in ten steps
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}


def weights_of(trainer):
    torch.manual_seed(1)  # for the dropout of the classifier and the slopes of RReLU
    trainer.train()
    return {name: weight for name, weight in trainer.model.state_dict().items() if not name.startswith("bert.")}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class StopAfter(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.steps


@pytest.fixture
def make_classifier(tokenizer, tmp_path):
    def make(name="run", pairs=True, pooler_type="layer_attention", rows=20, **options):
        torch.manual_seed(0)
        config = LayerPoolBertConfig(**TINY_BERT, num_labels=3, pooler_type=pooler_type)
        made = triplets(rows)
        texts = tuple([row[column] for row in made] for column in ("anchor", "positive")[: 1 + pairs])
        part = LabelledTexts("made", "row", list(range(rows)), ("a", "b")[: 1 + pairs], texts, "label", None)
        dataset = tokenize_part(part, [row % 3 for row in range(rows)], tokenizer)
        arguments = {"save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 4, "seed": 1}
        return ClassificationTrainer(
            LayerPoolBertForSequenceClassification(config),
            ClassificationTrainingArguments(
                output_dir=str(tmp_path / name), use_cpu=True, disable_tqdm=True, **arguments | STEPS | options
            ),
            train_dataset=dataset,
            eval_dataset=dataset,
            processing_class=tokenizer,
        )

    return make


@pytest.fixture
def make_encoder(make_trainer, tiny_model):
    def make(name="run", pooler_type="layer_attention", **options):
        torch.manual_seed(0)
        return make_trainer(name=name, model=tiny_model(pooler_type=pooler_type), **STEPS | options)

    return make


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", FLOAT16), ("float32", FLOAT32)])
@pytest.mark.parametrize("pooler_type", ["layer_attention", "weighted_layers"])
def test_contrastive_training_on_stored_states_equals_training_through_the_encoder(
    make_encoder, pooler_type, dtype, tolerance
):
    eval_dataset = Dataset.from_list(triplets(8))
    cached = make_encoder("a", pooler_type, state_cache=dtype, eval_dataset=eval_dataset)
    direct = make_encoder("b", pooler_type, state_cache="off", eval_dataset=eval_dataset)
    assert direct.frozen is None
    torch.testing.assert_close(weights_of(cached), weights_of(direct), **tolerance)
    assert losses(cached) == pytest.approx(losses(direct), rel=tolerance["rtol"])
    loss = direct.evaluate()["eval_loss"]
    assert cached.evaluate()["eval_loss"] == pytest.approx(loss, rel=tolerance["rtol"])
    other = Dataset.from_list(triplets(5))  # texts without stored states
    assert cached.evaluate(other)["eval_loss"] == pytest.approx(direct.evaluate(other)["eval_loss"], rel=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", FLOAT16), ("float32", FLOAT32)])
@pytest.mark.parametrize(("pairs", "pooler_type"), [(True, "layer_attention"), (False, "mean"), (True, "cls")])
def test_classification_on_stored_states_equals_training_through_the_encoder(
    make_classifier, pairs, pooler_type, dtype, tolerance
):
    cached = make_classifier("a", pairs, pooler_type, state_cache=dtype)
    direct = make_classifier("b", pairs, pooler_type, state_cache="off")
    torch.testing.assert_close(weights_of(cached), weights_of(direct), **tolerance)
    assert losses(cached) == pytest.approx(losses(direct), rel=tolerance["rtol"])
    assert cached.evaluate()["eval_loss"] == pytest.approx(direct.evaluate()["eval_loss"], rel=tolerance["rtol"])


def test_the_states_of_a_classifier_are_those_of_the_same_texts_in_python(make_classifier, tokenizer):
    trainer = make_classifier(pairs=False)
    texts = [row["anchor"] for row in triplets(20)]
    cached_states(trainer.model, texts, tokenizer, f"{trainer.args.output_dir}/_states")
    # The evaluation rows are in the order of their lengths.
    assert len(os.listdir(f"{trainer.args.output_dir}/_states")) == 2


def test_predictions_from_stored_states_are_in_the_order_of_the_rows(make_classifier, tokenizer):
    cached, direct = make_classifier("a"), make_classifier("b", state_cache="off")
    rows = triplets(7)
    texts = ([row["negative"] for row in rows], [row["anchor"] for row in rows])
    part = LabelledTexts("made", "row", list(range(7)), ("a", "b"), texts, None, None)
    dataset = tokenize_part(part, None, tokenizer)
    np.testing.assert_allclose(cached.predict(dataset).predictions, direct.predict(dataset).predictions, atol=1e-2)


def test_a_frozen_encoder_is_in_evaluation_mode_and_does_not_change(make_encoder):
    trainer = make_encoder(state_cache="off", pooler_type="weighted_layers")
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    trainer.model.train()
    assert trainer.compute_loss(trainer.model, batch) == trainer.compute_loss(trainer.model, batch)
    before = {name: weight.clone() for name, weight in trainer.model.bert.state_dict().items()}
    trainer.train()
    for name, weight in trainer.model.bert.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_the_encoder_computes_each_distinct_text_once_in_a_run_and_never_in_the_next(make_encoder, tmp_path, caplog):
    rows = triplets(6)
    rows[4] = rows[1]
    options = {"train_dataset": Dataset.from_list(rows), "state_cache_dir": str(tmp_path / "shared")}
    with caplog.at_level(logging.INFO):
        make_encoder("a", **options).train()
        trainer = make_encoder("b", **options)
    assert len(trainer.frozen) == 15
    first, second = (record.message for record in caplog.records if "states of" in record.message)
    assert first.startswith("The encoder computes the states of 15 texts (0.0 MiB) into")
    assert second.startswith("The states of 15 texts (0.0 MiB) are read from")
    trainer.model.bert.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    trainer.train()


def test_a_resumed_run_equals_one_that_was_not_interrupted(make_encoder):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1}
    whole = make_encoder("whole", **options)
    whole.train()
    make_encoder("half", **options, callbacks=[StopAfter(2)]).train()
    resumed = make_encoder("half", **options)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-2")
    for (name, weight), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, other), name


@pytest.mark.parametrize("shuffling", ["neighbours", "clusters", "words"])
def test_rows_are_grouped_by_the_stored_states(make_encoder, shuffling):
    plans = []
    for name, cache in (("a", "float32"), ("b", "off")):
        options = {"shuffling": shuffling, "group_size": 3, "eval_dataset": Dataset.from_list(triplets(8))}
        trainer = make_encoder(name, state_cache=cache, **options)
        loader = trainer.get_train_dataloader()
        plans.append(list(loader.batch_sampler))
    assert plans[0] == plans[1]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_workers_read_the_states(make_encoder, context):
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": context, "num_train_epochs": 1}
    torch.testing.assert_close(
        weights_of(make_encoder("a", **options)), weights_of(make_encoder("b", num_train_epochs=1))
    )


def test_hire_and_streams_run_the_encoder_and_say_so(make_encoder, make_classifier):
    trainer = make_classifier(pooler_type="hire")
    assert trainer.frozen is None
    assert describe_frozen(trainer) == {"frozen encoder": "runs in every step (hire reads every token)"}
    trainer.train()
    rows = Dataset.from_list(triplets(8)).to_iterable_dataset()
    assert isinstance(rows, IterableDataset)
    trainer = make_encoder(train_dataset=rows, max_steps=1)
    assert describe_frozen(trainer) == {"frozen encoder": "runs in every step"}
    trainer.train()
    assert describe_frozen(make_encoder()) == {"frozen encoder": "read from the states of 42 texts"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_cache": 64}, "gradient_cache does nothing with the stored states of freeze_encoder"),
        ({"row_length": 64}, "row_length does nothing with the stored states of freeze_encoder"),
        ({"state_cache": "bfloat16"}, "state_cache='bfloat16' is unknown; use one of float16, float32, off"),
        ({"state_cache": "off", "state_cache_dir": "d"}, "state_cache_dir does nothing with state_cache=off"),
        ({"freeze_encoder": False, "state_cache_dir": "d"}, "state_cache_dir does nothing without freeze_encoder"),
        ({"freeze_encoder": False, "state_cache": "off"}, "state_cache does nothing without freeze_encoder"),
        ({"objective": "unsupervised"}, "freeze_encoder turns off the dropout that objective=unsupervised"),
    ],
)
def test_options_without_effect_are_refused(make_encoder, options, message):
    with pytest.raises(InputError, match=message):
        make_encoder(**options)


@pytest.mark.parametrize("argument_class", [ClassificationTrainingArguments, ContrastiveTrainingArguments])
def test_the_learning_rate_of_a_head_is_higher_than_that_of_an_encoder(tmp_path, argument_class):
    for freezes, rate in ((True, 1e-3), (False, 5e-5)):
        arguments = argument_class(output_dir=str(tmp_path), use_cpu=True, freeze_encoder=freezes)
        assert arguments.learning_rate == rate


def test_development_data_is_encoded_once_while_the_encoder_is_frozen(make_encoder, tmp_path):
    rows = [
        {"sentence1": row["anchor"], "sentence2": row["positive"], "score": number % 5}
        for number, row in enumerate(triplets(9))
    ]
    evaluator, _ = development_evaluator(write_lines(tmp_path / "dev.jsonl", rows))
    trainer, direct = make_encoder(evaluator=evaluator), make_encoder("b", freeze_encoder=False, evaluator=evaluator)
    computed = []
    trainer.model.bert.register_forward_hook(lambda *_: computed.append(1))
    before = trainer.evaluate()
    passes = len(computed)
    assert passes > 0
    assert before["eval_spearman"] == pytest.approx(direct.evaluate()["eval_spearman"])
    trainer.train()
    after = trainer.evaluate()
    assert len(computed) == passes
    assert after["eval_pearson"] != before["eval_pearson"]
    direct.model.load_state_dict(trainer.model.state_dict())
    assert after["eval_pearson"] == pytest.approx(direct.evaluate()["eval_pearson"], rel=1e-4)


def test_development_states_of_other_layers_or_another_length_are_not_mixed_up(tiny_model, tokenizer, tmp_path):
    rows = [
        {"sentence1": row["anchor"], "sentence2": row["positive"], "score": number % 5}
        for number, row in enumerate(triplets(9))
    ]
    evaluator, _ = development_evaluator(write_lines(tmp_path / "dev.jsonl", rows))
    weights = tiny_model().bert.state_dict()
    for layers, length in (([0, 3], 512), ([3], 512), ([3], 4)):
        model = tiny_model(pooler_type="concat_layers", pooler_layers=layers)
        model.bert.load_state_dict(weights)
        tokenizer.model_max_length = length
        expected = evaluator(model, tokenizer)  # trains its encoder
        model.base_model.requires_grad_(False)
        assert evaluator(model, tokenizer) == pytest.approx(expected, rel=1e-4)


def test_two_processes_compute_the_states_together_and_train_as_one(tmp_path):
    results = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        done = launch("-m", "tests.training.frozen_run", folder, processes, processes=processes)
        assert done.returncode == 0, done.stderr
        results.append((torch.load(folder / "weights.pt"), np.load(next((folder / "out" / "_states").glob("*.npy")))))
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-5)
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-5)


def test_a_classifier_keeps_a_moving_average_too(make_classifier):
    trainer, recorder = make_classifier(ema=0.5), Recorder()
    trainer.add_callback(recorder)
    start = weights_of_parameters(trainer.model)
    trainer.train()
    found = weights_of_parameters(trainer.model)
    for name, weight in averages_by_formula(start, recorder.steps, 0.5)[-1].items():
        torch.testing.assert_close(found[name].double(), weight, atol=1e-6, rtol=1e-5, msg=name)
    assert not torch.equal(found["classifier.weight"], recorder.steps[-1]["classifier.weight"])
