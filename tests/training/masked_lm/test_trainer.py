"""The trainer of masked language models, with and without token-level contrast."""

import math

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    TrainerCallback,
)

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import (
    MaskedLanguageTrainer,
    TokenContrastArguments,
    sample_token_pairs,
)
from tests.conftest import assert_close_to
from tests.processes import ROOT, launch
from tests.training.masked_lm.batches import VOCABULARY, Collator, blocks, draw_by_rows
from tests.training.masked_lm.test_token_contrast import reference


MODELS = {
    "bert": {},
    "roberta": {"max_position_embeddings": 40},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "electra": {"embedding_size": 8},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
}
NO_DROPOUT = {
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
    "modernbert": {},
}


def make_model(name="bert", noise=False, **options):
    torch.manual_seed(0)
    settings_ = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "pad_token_id": 1,
        "attn_implementation": "sdpa",
    }
    if name == "distilbert":
        settings_ = {key: settings_[key] for key in ("vocab_size", "pad_token_id", "attn_implementation")}
    if not noise:
        quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings_ |= NO_DROPOUT.get(name, quiet)
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **(settings_ | MODELS.get(name, {}) | options)))


@pytest.fixture
def make_trainer(tmp_path):
    def make(model=None, rows=12, inside=False, name="run", callbacks=None, eval_rows=0, train=None, **options):
        arguments = {
            "output_dir": str(tmp_path / name),
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "token_negatives": 7,
            "seed": 1,
        }
        return MaskedLanguageTrainer(
            model or make_model(),
            TokenContrastArguments(**(arguments | options)),
            data_collator=Collator(inside),
            train_dataset=blocks(rows) if train is None else train,
            eval_dataset=blocks(eval_rows, seed=5) if eval_rows else None,
            callbacks=callbacks,
        )

    return make


def terms_by_hand(model, batch, seed, index=0, anchors=None):
    """Both terms of the loss, from the model's own call and the pairs that this seed draws."""
    torch.manual_seed(seed)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    out = model(**inputs, output_hidden_states=True)
    states = out.hidden_states[-1] - (0 if index is None else out.hidden_states[index])
    positive, negative = sample_token_pairs(batch["sequence_ids"], batch["content"], anchors, negatives=7)
    kept = (positive >= 0).nonzero().squeeze(1)
    contrast = reference(states.flatten(0, 1), positive[kept], negative[kept], kept, 0.07)
    chosen = batch["labels"] != -100
    mlm_loss = -out.logits[chosen].log_softmax(dim=-1).gather(1, batch["labels"][chosen].unsqueeze(1)).mean()
    torch.testing.assert_close(out.loss.to(mlm_loss.dtype), mlm_loss, atol=1e-5, rtol=1e-5)
    return mlm_loss, contrast


def batch_of(trainer, rows=4):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_models_own_and_the_contrast(make_trainer, name):
    model = make_model(name).double()
    trainer = make_trainer(model, token_contrast_weight=0.5)
    batch = batch_of(trainer)
    mlm_loss, contrast = terms_by_hand(model, batch, 3)
    torch.manual_seed(3)
    loss = trainer.compute_loss(model, batch)
    torch.testing.assert_close(loss, mlm_loss + 0.5 * contrast, atol=1e-10, rtol=1e-10)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    expected = torch.autograd.grad(mlm_loss + 0.5 * contrast, list(model.parameters()), allow_unused=True)
    for got, want in zip(gradients, expected, strict=True):
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_the_head_is_computed_for_predicted_tokens_only(make_trainer, name):
    trainer = make_trainer(make_model(name))
    batch = batch_of(trainer)
    widths = []
    decoder = trainer.model.get_output_embeddings()
    decoder.register_forward_hook(lambda module, args, output: widths.append(output.shape.numel() // VOCABULARY))
    trainer.compute_loss(trainer.model, batch)
    predicted = (batch["labels"] != -100).sum().item()
    assert widths == [predicted]
    assert predicted < batch["labels"].numel() / 2


def test_all_logits_are_returned_to_whom_they_are_needed(make_trainer):
    trainer = make_trainer()
    batch = batch_of(trainer)
    torch.manual_seed(0)
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs["logits"].shape == (*batch["labels"].shape, VOCABULARY)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, trainer.compute_loss(trainer.model, batch))


@pytest.mark.parametrize(("state", "index"), [("none", None), ("1", 1), ("-3", 0)])
def test_the_subtracted_state_is_an_option(make_trainer, state, index):
    model = make_model()
    trainer = make_trainer(model, subtracted_state=state)
    batch = batch_of(trainer)
    expected = sum(terms_by_hand(model, batch, 3, index=index))
    torch.manual_seed(3)
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", ["masked", "unmasked"])
def test_anchors_may_be_the_masked_tokens_or_the_others(make_trainer, which):
    model = make_model()
    trainer = make_trainer(model, token_anchors=which)
    batch = batch_of(trainer)
    masked = batch["labels"] != -100
    expected = sum(terms_by_hand(model, batch, 3, anchors=masked if which == "masked" else ~masked))
    torch.manual_seed(3)
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_attention_inside_sequences_gives_the_states_of_the_sequences_alone(make_trainer, name, attention):
    model = make_model(name, attn_implementation=attention).eval()
    trainer = make_trainer(model, inside=True)
    batch = batch_of(trainer)
    states = model(**trainer._model_inputs(batch), output_hidden_states=True).hidden_states[-1]
    for number in range(11):
        places = batch["sequence_ids"] == number
        if places.any():
            alone = model(input_ids=batch["input_ids"][places].unsqueeze(0), output_hidden_states=True)
            assert_close_to(states[places], alone.hidden_states[-1][0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_it_trains(make_trainer, name, options):
    trainer = make_trainer(make_model(name, noise=True), max_steps=2, inside=name == "roberta", **options)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 2
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["mlm_loss"] + entry["token_contrast_loss"], rel=1e-3)
        assert math.isfinite(entry["loss"])


class Recorder(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("state", ["embeddings", "1"])
def test_gradient_checkpointing_changes_nothing(make_trainer, reentrant, state):
    gradients = []
    for options in ({}, {"gradient_checkpointing": True}):
        recorder = Recorder()
        model = make_model(noise=True).double()
        kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}} if options else {}
        make_trainer(
            model, callbacks=[recorder], max_steps=1, max_grad_norm=0.0, subtracted_state=state, **options, **kwargs
        ).train()
        gradients += recorder.gradients
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-9, rtol=1e-9)


def test_plain_masked_language_modelling_draws_nothing_and_adds_nothing(make_trainer):
    model = make_model()
    trainer = make_trainer(model, objective="mlm", token_negatives=50, max_steps=1)
    batch = batch_of(trainer)
    state = torch.get_rng_state()
    loss = trainer.compute_loss(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(loss, terms_by_hand(model, batch, 0)[0])
    trainer.train()
    assert "token_contrast_loss" not in trainer.state.log_history[0]


def test_a_batch_without_a_masked_token_or_an_anchor_has_a_loss_of_zero(make_trainer):
    model = make_model()
    trainer = make_trainer(model)
    batch = batch_of(trainer, rows=1)  # one document
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_accumulated_gradients_are_the_mean_over_the_batches(make_trainer):
    options = {"train_sampling_strategy": "sequential", "max_steps": 1, "max_grad_norm": 0.0}
    data, recorder, model = blocks(8), Recorder(), make_model().double()
    trainer = make_trainer(
        make_model().double(), train=data, gradient_accumulation_steps=2, callbacks=[recorder], **options
    )
    draw_by_rows(trainer)
    trainer.train()
    for rows in (range(4), range(4, 8)):
        (trainer.compute_loss(model, trainer.data_collator([data[i] for i in rows])) / 2).backward()
    (gradients,) = recorder.gradients
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-10, rtol=1e-10)
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["mlm_loss"] + entry["token_contrast_loss"], rel=1e-6)


@pytest.mark.parametrize("stop", [2, 3])  # within an epoch, and at its end
def test_a_resumed_run_ends_bit_identical_to_an_unbroken_one(make_trainer, stop):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
    unbroken = make_trainer(make_model(noise=True), name="unbroken", **options)
    unbroken.train()
    resumed = make_trainer(make_model(noise=True), name="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-{stop}")
    assert resumed.state.global_step == 4
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_evaluation_measures_over_all_tokens_and_draws_the_same_each_time(make_trainer):
    model = make_model()
    options = {"per_device_eval_batch_size": 4, "measure_similarity": True}
    trainer = make_trainer(model, eval_rows=6, **options)
    state = torch.get_rng_state()
    metrics = trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    loss, count, pairs = 0, 0, torch.zeros(4, dtype=torch.float64)
    for rows in (range(4), range(4, 6)):
        batch = trainer.data_collator([trainer.eval_dataset[i] for i in rows])
        with torch.no_grad():
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            out = model(**inputs, output_hidden_states=True)
        predicted = (batch["labels"] != -100).sum().item()
        loss, count = loss + out.loss.item() * predicted, count + predicted
        states = (out.hidden_states[-1] - out.hidden_states[0])[batch["content"]]
        ids = batch["sequence_ids"][batch["content"]]
        cosines = torch.nn.functional.cosine_similarity(states.unsqueeze(1), states.unsqueeze(0), dim=-1).double()
        same = ids.unsqueeze(1) == ids
        within = same & ~torch.eye(len(ids), dtype=torch.bool)
        pairs += torch.stack([cosines[within].sum(), within.sum(), cosines[~same].sum(), (~same).sum()])
    assert metrics["eval_mlm_loss"] == pytest.approx(loss / count, rel=1e-5)
    assert metrics["eval_similarity_within"] == pytest.approx((pairs[0] / pairs[1]).item(), rel=1e-5)
    assert metrics["eval_similarity_between"] == pytest.approx((pairs[2] / pairs[3]).item(), rel=1e-4, abs=1e-6)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_mlm_loss"] + metrics["eval_token_contrast_loss"])
    again = trainer.evaluate()
    assert again["eval_token_contrast_loss"] == metrics["eval_token_contrast_loss"]
    plain = make_trainer(model, eval_rows=6, objective="mlm", **options).evaluate()
    assert plain["eval_loss"] == plain["eval_mlm_loss"] == metrics["eval_mlm_loss"]
    assert plain["eval_token_contrast_loss"] == metrics["eval_token_contrast_loss"]
    unmeasured = make_trainer(
        model, eval_rows=6, objective="mlm", token_negatives=50, per_device_eval_batch_size=4
    ).evaluate()
    assert not {key for key in unmeasured if "contrast" in key or "similarity" in key}


def test_a_stream_is_trained_on(make_trainer):
    trainer = make_trainer(train=blocks(8).to_iterable_dataset(), max_steps=3)
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "clm"}, "objective='clm' is unknown; use one of mlm, taco"),
        ({"token_anchors": "some"}, "token_anchors='some' is unknown"),
        ({"token_temperature": 0.0}, "token_temperature=0.0 must be above 0"),
        ({"token_contrast_weight": -1.0}, "token_contrast_weight=-1.0 must be above 0"),
        ({"token_window": 1}, "token_window=1 must be at least 2"),
        ({"token_negatives": 0}, "token_negatives=0 must be at least 1"),
        ({"subtracted_state": "first"}, "subtracted_state='first' must be embeddings, none or the number"),
        ({"objective": "mlm", "token_window": 3}, "token_window does nothing under objective mlm"),
        ({"remove_unused_columns": True}, "remove_unused_columns must stay off"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        TokenContrastArguments(output_dir=str(tmp_path), **options)


def test_a_state_that_the_model_does_not_have_is_refused(make_trainer):
    with pytest.raises(InputError, match="the model has the hidden states 0 to 2"):
        make_trainer(subtracted_state="3")
    with pytest.raises(InputError, match="subtracting it leaves nothing"):
        make_trainer(subtracted_state="-1")


def test_attention_inside_sequences_is_refused_under_flash_attention(make_trainer):
    model = make_model()
    trainer = make_trainer(model, inside=True)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="does not work with flash attention"):
        trainer.compute_loss(model, batch_of(trainer))


@pytest.mark.parametrize("name", ["fnet", "convbert", "deberta-v2"])
def test_attention_inside_sequences_is_refused_for_a_model_that_cannot_keep_to_it(make_trainer, name):
    model = make_model(name, attn_implementation="eager")
    make_trainer(model, max_steps=1).train()  # over the whole row it can
    trainer = make_trainer(model, inside=True, name="inside", max_steps=1)
    with pytest.raises(InputError, match="cannot keep attention inside sequences that share a row"):
        trainer.train()


# --- two processes ---


@pytest.mark.long
@pytest.mark.parametrize("objective", ["mlm", "taco"])
def test_two_processes_give_the_gradient_of_the_mean_over_all_tokens_and_anchors(tmp_path, objective):
    script = ROOT / "tests" / "training" / "masked_lm" / "gradients_of_a_run.py"
    done = launch(script, tmp_path, 2, objective, processes=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    result = torch.load(tmp_path / "result.pt")
    assert len(result["gradients"]) == 2
    data, model = blocks(7), make_model().double()
    trainer = MaskedLanguageTrainer(
        model,
        TokenContrastArguments(output_dir=str(tmp_path), use_cpu=True, token_negatives=7),
        data_collator=Collator(),
        train_dataset=data,
    )
    draw_by_rows(trainer)
    # The batches of a step: 4 rows, and 3 that two processes cannot halve.
    for shares, got, entry in zip([[[0, 1], [2, 3]], [[4], [5, 6]]], result["gradients"], result["log"], strict=True):
        terms = []
        for rows in shares:
            batch = Collator()([data[i] for i in rows])
            trainer.args.objective = "mlm"
            mlm_loss = trainer.compute_loss(model, batch)
            trainer.args.objective = "taco"
            contrast = trainer.compute_loss(model, batch) - mlm_loss
            positive, _ = sample_token_pairs(batch["sequence_ids"], batch["content"])
            terms.append((mlm_loss, (batch["labels"] != -100).sum(), contrast, (positive >= 0).sum()))
        mlm_losses, predicted, contrasts, anchors = (torch.stack(column) for column in zip(*terms, strict=True))
        mlm_loss = (mlm_losses * predicted).sum() / predicted.sum()
        contrast = (contrasts * anchors).sum() / anchors.sum()
        loss = mlm_loss + contrast if objective == "taco" else mlm_loss
        model.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-10, rtol=1e-9)
        assert entry["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert entry["mlm_loss"] == pytest.approx(mlm_loss.item(), rel=1e-5)
        if objective == "taco":
            assert entry["token_contrast_loss"] == pytest.approx(contrast.item(), rel=1e-5)
