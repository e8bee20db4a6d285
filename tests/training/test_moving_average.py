"""`ema`: the average is what is evaluated and saved, and the training goes on from the weights themselves."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import MaskedLanguageArguments, MaskedLanguageTrainer
from modeling_layerpool.training.moving_average import TRAINING_WEIGHTS
from tests.training.masked_lm.batches import Collator, blocks
from tests.training.masked_lm.test_trainer import make_model


OPTIONS = {"max_steps": 4, "ema": 0.5, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


class Recorder(TrainerCallback):
    """The weights after each step, before they are averaged."""

    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append(weights_of(model))


def averages_by_formula(start, steps, decay):
    average, found = {name: weight.double() for name, weight in start.items()}, []
    for number, weights in enumerate(steps, 1):
        share = min(decay, (1 + number) / (10 + number))
        average = {name: share * average[name] + (1 - share) * weights[name] for name in weights}
        found.append(average)
    return found


def test_the_model_at_the_end_and_in_every_checkpoint_is_the_average(make_trainer, tmp_path):
    seen = []

    def evaluator(model, tokenizer):
        seen.append(weights_of(model))
        return {"score": 1.0}

    recorder = Recorder()
    options = OPTIONS | {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(callbacks=[recorder], evaluator=evaluator, **options)
    start = weights_of(trainer.model)
    trainer.train()
    expected = averages_by_formula(start, recorder.steps, 0.5)
    kept = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    for found, average in ((seen[0], expected[1]), (kept, expected[1]), (weights_of(trainer.model), expected[3])):
        for name, weight in average.items():
            torch.testing.assert_close(found[name].double(), weight, atol=1e-6, rtol=1e-5, msg=name)
    assert_equal(load_file(tmp_path / "run" / "checkpoint-2" / TRAINING_WEIGHTS), recorder.steps[1])
    trainer.evaluate()
    assert_equal(seen[-1], weights_of(trainer.model))


def test_the_training_itself_is_the_same_with_an_average(make_trainer):
    recorders = [Recorder(), Recorder()]
    make_trainer(name="a", callbacks=[recorders[0]], **OPTIONS).train()
    make_trainer(name="b", callbacks=[recorders[1]], **OPTIONS | {"ema": None}).train()
    assert_equal(recorders[0].steps[-1], recorders[1].steps[-1])


@pytest.mark.parametrize("options", [{}, {"freeze_encoder": True}])
def test_a_run_with_an_average_resumes_bit_identical(make_trainer, tmp_path, options):
    options = OPTIONS | {"save_strategy": "steps", "save_steps": 2} | options
    unbroken = make_trainer(name="a", **options)
    unbroken.train()
    resumed = make_trainer(name="b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_equal(weights_of(resumed.model), weights_of(unbroken.model))


def test_the_best_checkpoint_is_loaded_as_it_was_measured(make_trainer, tmp_path):
    scores = iter([0.9, 0.1, 0.1])
    seen = []

    def evaluator(model, tokenizer):
        seen.append(weights_of(model))
        return {"score": next(scores)}

    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(evaluator=evaluator, **OPTIONS | best | steps)
    trainer.train()
    assert_equal(weights_of(trainer.model), seen[0])
    trainer.evaluate()
    assert_equal(seen[-1], seen[0])


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        (0.5, None, "its model is an average of --ema, from which training cannot go on; give --ema"),
        (None, 0.5, "was saved without --ema, and has no average to go on with; leave --ema out"),
    ],
)
def test_a_checkpoint_with_an_average_and_one_without_are_not_mixed_up(
    make_trainer, tmp_path, saved, resumed, message
):
    options = OPTIONS | {"save_strategy": "steps", "save_steps": 2}
    make_trainer(name="a", **options | {"ema": saved}).train()
    with pytest.raises(InputError, match=message):
        make_trainer(name="b", **options | {"ema": resumed}).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
        )


@pytest.mark.parametrize("decay", [0, 1, -0.5, True])
def test_a_decay_outside_its_range_is_one_sentence(make_trainer, decay):
    with pytest.raises(InputError, match=f"ema={decay}"):
        make_trainer(ema=decay)


def test_the_card_says_that_the_weights_are_an_average(make_trainer):
    assert make_trainer(ema=0.9).card_facts().schedule["weights"] == "exponential moving average, decay 0.9"


def test_weights_in_half_precision_are_refused(make_trainer, tiny_model):
    with pytest.raises(InputError, match=r"ema needs weights in float32, and .* is in torch\.bfloat16"):
        make_trainer(model=tiny_model(pooler_type="mean").bfloat16(), ema=0.9)


def test_masked_language_modeling_keeps_an_average_too(tmp_path):
    """Its decoder shares the weights of the word embeddings."""

    def train(name, **options):
        recorder = Recorder()
        args = MaskedLanguageArguments(
            str(tmp_path / name), use_cpu=True, per_device_train_batch_size=4, save_steps=2, seed=1, **OPTIONS
        )
        trainer = MaskedLanguageTrainer(
            make_model(), args, data_collator=Collator(), train_dataset=blocks(24), callbacks=[recorder]
        )
        start = weights_of(trainer.model)
        trainer.train(**options)
        return trainer, start, recorder.steps

    unbroken, start, steps = train("a")
    for name, weight in averages_by_formula(start, steps, 0.5)[-1].items():
        torch.testing.assert_close(weights_of(unbroken.model)[name].double(), weight, atol=1e-6, rtol=1e-5, msg=name)
    resumed, *_ = train("b", resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_equal(weights_of(resumed.model), weights_of(unbroken.model))
