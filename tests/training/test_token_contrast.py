"""Token-level contrast: the loss against its formula, the draw of pairs, and the trainer."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
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
    semantic_similarity,
)
from modeling_layerpool.training.loss_kernels import BLOCK_ELEMENTS
from modeling_layerpool.training.losses import token_contrast
from tests.conftest import assert_close_to
from tests.processes import ROOT, launch
from tests.training.token_batches import VOCABULARY, Collator, blocks, draw_by_rows


# --- the loss ---


def cosine(x, y):
    return (x @ y) / (x.norm() * y.norm())


def reference(states, positive_index, negative_index, anchor_index, temperature):
    """The formula, one position after the other."""
    total = 0
    for i, anchor in enumerate(anchor_index):
        positive = torch.exp(cosine(states[anchor], states[positive_index[i]].detach()) / temperature)
        negatives = [torch.exp(cosine(states[anchor], states[n].detach()) / temperature) for n in negative_index[i]]
        total = total - torch.log(positive / (positive + sum(negatives)))
    return total / len(anchor_index)


def make_pairs(states=9, anchors=6, negatives=4, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(states, shape, generator=generator)  # noqa: E731
    vectors = torch.randn(states, width, dtype=torch.float64, generator=generator).requires_grad_()
    return vectors, draw(anchors), draw(anchors, negatives), draw(anchors)


def same_value_and_gradient(fast, slow, states):
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-10)
    (got,), (expected,) = torch.autograd.grad(fast, states), torch.autograd.grad(slow, states)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), negatives=st.integers(1, 5), temperature=st.sampled_from([0.07, 0.5, 1.0]))
def test_it_equals_the_formula(seed, negatives, temperature):
    states, positives, negatives, anchors = make_pairs(negatives=negatives, seed=seed)
    fast = token_contrast(states, positives, negatives, anchors, temperature=temperature)
    same_value_and_gradient(fast, reference(states, positives, negatives, anchors, temperature), states)


@pytest.mark.parametrize("elements", [1, 70])  # one anchor a block, and blocks of two
def test_computed_in_blocks_it_is_the_same(monkeypatch, elements):
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", elements)
    states, positives, negatives, anchors = make_pairs(anchors=7)
    fast = token_contrast(states, positives, negatives, anchors, temperature=0.07)
    same_value_and_gradient(fast, reference(states, positives, negatives, anchors, 0.07), states)


def test_without_anchors_named_every_state_is_one():
    states, positives, negatives, _ = make_pairs(states=6, anchors=6)
    fast = token_contrast(states, positives, negatives, temperature=0.07)
    same_value_and_gradient(fast, reference(states, positives, negatives, range(6), 0.07), states)


def test_an_anchor_without_positive_is_left_out():
    states, positives, negatives, anchors = make_pairs()
    some = torch.tensor([0, 2, 3, 5])
    expected = reference(states, positives[some], negatives[some], anchors[some], 0.07)
    positives[[1, 4]] = -1
    same_value_and_gradient(token_contrast(states, positives, negatives, anchors, temperature=0.07), expected, states)


def test_positives_and_negatives_get_no_gradient():
    states, _, _, _ = make_pairs()
    loss = token_contrast(states, torch.tensor([1]), torch.tensor([[2, 3, 3]]), torch.tensor([0]), temperature=0.07)
    loss.backward()
    assert states.grad[0].abs().sum() > 0
    assert torch.equal(states.grad[1:], torch.zeros_like(states.grad[1:]))


@pytest.mark.parametrize("anchors", [None, torch.empty(0, dtype=torch.long)])
def test_without_anchors_the_loss_is_zero_and_has_a_graph(anchors):
    states = torch.randn(3, 4, requires_grad=True)
    count = 3 if anchors is None else 0
    loss = token_contrast(
        states, torch.full((count,), -1), torch.zeros(count, 2, dtype=torch.long), anchors, temperature=0.07
    )
    loss.backward()
    assert loss == 0
    assert torch.equal(states.grad, torch.zeros_like(states))


def test_half_precision_states_are_compared_in_float32_also_under_autocast():
    states, positives, negatives, anchors = make_pairs()
    states = states.detach().bfloat16()
    expected = token_contrast(states.float(), positives, negatives, anchors, temperature=0.07)
    assert token_contrast(states, positives, negatives, anchors, temperature=0.07) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert token_contrast(states.float(), positives, negatives, anchors, temperature=0.07) == expected


def test_wrong_arguments_are_named():
    states, positives, negatives, anchors = make_pairs()
    with pytest.raises(ValueError, match="must be positive"):
        token_contrast(states, positives, negatives, anchors, temperature=0)
    with pytest.raises(ValueError, match="9 anchors, but positive_index of shape \\(6,\\)"):
        token_contrast(states, positives, negatives, temperature=1)


# --- the draw ---


@st.composite
def batches(draw):
    """Rows of sequences with padding and special tokens anywhere; numbers in no order."""
    length = draw(st.integers(1, 12))
    rows, number = [], 0
    for _ in range(draw(st.integers(1, 4))):
        row = []
        while len(row) < length:
            size = draw(st.integers(1, length - len(row)))
            is_padding = draw(st.integers(0, 3)) == 0
            row += [-1 if is_padding else 97 * number % 101] * size
            number += not is_padding
        rows.append(row)
    content = draw(
        st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=len(rows), max_size=len(rows))
    )
    ids = torch.tensor(rows)
    return ids, torch.tensor(content) & (ids >= 0)


@settings(max_examples=300)
@given(
    batch=batches(), window=st.integers(2, 9), negatives=st.integers(1, 4), seed=st.integers(0, 1000), data=st.data()
)
def test_pairs_keep_to_sequences_and_content(batch, window, negatives, seed, data):
    sequence_ids, content = batch
    chosen = None
    if data.draw(st.booleans()):
        chosen = torch.rand(content.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    generator = torch.Generator().manual_seed(seed)
    options = {"window": window, "negatives": negatives}
    positive, negative = sample_token_pairs(sequence_ids, content, chosen, **options, generator=generator)
    ids, is_content, length = sequence_ids.flatten(), content.flatten(), sequence_ids.shape[1]
    assert positive.shape == ids.shape
    assert negative.shape == (len(ids), negatives)
    for place in range(len(ids)):
        others = [j for j in range(len(ids)) if is_content[j] and ids[j] == ids[place] and j != place]
        foreign = [j for j in range(len(ids)) if is_content[j] and ids[j] != ids[place]]
        is_anchor = is_content[place] and others and foreign and (chosen is None or chosen.flatten()[place])
        if not is_anchor:
            assert positive[place] == -1
            continue
        assert positive[place] in others
        assert positive[place] // length == place // length
        assert set(negative[place].tolist()) <= set(foreign)
    again = sample_token_pairs(sequence_ids, content, chosen, **options, generator=generator.manual_seed(seed))
    assert torch.equal(again[0], positive)
    assert torch.equal(again[1], negative)
    assert negative.min() >= 0
    assert negative.max() < len(ids)


def counts_of(values, size):
    return torch.bincount(values, minlength=size).tolist()


def test_offsets_are_uniform_and_leave_out_the_token_itself():
    sequence_ids = torch.arange(2).unsqueeze(1).expand(2, 4000)
    positive, _ = sample_token_pairs(
        sequence_ids, torch.ones_like(sequence_ids, dtype=torch.bool), generator=torch.Generator().manual_seed(1)
    )
    inner = torch.arange(10, 3990)
    offsets = positive[inner] - inner
    assert set(offsets.tolist()) == {-2, -1, 1, 2}
    assert chisquare([(offsets == o).sum().item() for o in (-2, -1, 1, 2)]).pvalue > 1e-3


def test_a_positive_that_would_be_outside_or_special_is_any_other_token_of_its_sequence():
    # Two sequences in a row, with a special token in the middle of the first: places 0 to 10, and 11 to 14.
    sequence_ids = torch.tensor([[0] * 11 + [1] * 4 + [-1]])
    content = sequence_ids >= 0
    content[0, 5] = False
    draws = 12000
    positive = sample_token_pairs(
        sequence_ids.repeat(draws, 1) + 2 * torch.arange(draws).unsqueeze(1) * (sequence_ids >= 0),
        content.repeat(draws, 1),
        negatives=1,
        generator=torch.Generator().manual_seed(2),
    )[0].view(draws, 16) - 16 * torch.arange(draws).unsqueeze(1)

    def expected(place, first, last):
        # Each of the four offsets has a quarter; what hits nothing is spread over the other content tokens.
        valid = [j for j in range(first, last + 1) if content[0, j] and j != place]
        shares = dict.fromkeys(valid, 0.0)
        for offset in (-2, -1, 1, 2):
            if place + offset in shares:
                shares[place + offset] += 1 / 4
            else:
                shares = shares | {j: shares[j] + 1 / 4 / len(valid) for j in valid}
        return shares

    for place, first, last in ((0, 0, 10), (4, 0, 10), (10, 0, 10), (11, 11, 14), (13, 11, 14)):
        shares = expected(place, first, last)
        found = counts_of(positive[:, place], 16)
        assert sum(found[j] for j in shares) == draws
        assert chisquare([found[j] for j in shares], [draws * share for share in shares.values()]).pvalue > 1e-3


def test_negatives_are_uniform_over_the_content_of_the_other_sequences():
    sequence_ids = torch.tensor([[7, 7, 7, 2, 2, 2], [5, 5, 5, 5, -1, -1]])
    content = sequence_ids >= 0
    content[0, 0] = content[1, 2] = False
    _, negative = sample_token_pairs(
        sequence_ids, content, negatives=20000, generator=torch.Generator().manual_seed(3)
    )
    for place, foreign in ((1, [3, 4, 5, 6, 7, 9]), (4, [1, 2, 6, 7, 9]), (9, [1, 2, 3, 4, 5])):
        found = counts_of(negative[place], 12)
        assert sum(found[j] for j in foreign) == 20000
        assert chisquare([found[j] for j in foreign]).pvalue > 1e-3


def test_a_batch_of_one_sequence_has_no_anchors():
    content = torch.ones(1, 6, dtype=torch.bool)
    positive, _ = sample_token_pairs(torch.zeros(1, 6, dtype=torch.long), content)
    assert (positive == -1).all()


# --- the analysis ---


@settings(max_examples=30)
@given(batch=batches(), seed=st.integers(0, 1000))
def test_similarities_are_means_over_all_pairs(batch, seed):
    sequence_ids, content = batch
    states = torch.randn(*content.shape, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    flat, ids, is_content = states.flatten(0, 1), sequence_ids.flatten(), content.flatten()
    within, between = [], []
    for i in range(len(ids)):
        for j in range(len(ids)):
            if i != j and is_content[i] and is_content[j]:
                (within if ids[i] == ids[j] else between).append(cosine(flat[i], flat[j]).item())
    found = semantic_similarity(states, sequence_ids, content)
    for value, pairs in zip(found, (within, between), strict=True):
        if pairs:
            assert value.item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
        else:
            assert math.isnan(value)


# --- the trainer ---


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


@pytest.mark.parametrize("objective", ["mlm", "taco"])
def test_two_processes_give_the_gradient_of_the_mean_over_all_tokens_and_anchors(tmp_path, objective):
    script = ROOT / "tests" / "training" / "token_gradients_of_a_run.py"
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
