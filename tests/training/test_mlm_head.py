"""Masked language modeling beside the contrastive objective."""

import math
import os

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from modeling_layerpool import LayerPoolBertModel, LayerPoolRobertaModel
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import ContrastiveTrainer
from modeling_layerpool.training.mlm_head import MaskedLanguageHead
from tests.tiny import TINY_BERT
from tests.training.conftest import triplets
from tests.training.contrastive.test_trainer import Recorder, assert_identical, gradients_of, weights


NO_NOISE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_activation": "relu"}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
KINDS = {
    "bert": (BertForMaskedLM, BertConfig(**SMALL, vocab_size=99), LayerPoolBertModel),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SMALL, vocab_size=99), LayerPoolRobertaModel),
}


def batch_of(trainer, rows=4):
    return trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])


def reference(trainer, batch):
    """The mean cross-entropy of the masked tokens, sentence by sentence, from the formula."""
    head, words = trainer.mlm_head.language_model.cls.predictions, trainer.model.get_input_embeddings().weight
    labels = torch.full_like(batch["input_ids"], -100).flatten()
    labels[batch["mlm_indices"]] = batch["mlm_labels"]
    labels = labels.view_as(batch["input_ids"])
    terms = []
    for sentence in range(int(batch["sequence_ids"].max()) + 1):
        own = batch["sequence_ids"] == sentence
        states = trainer.model(input_ids=batch["mlm_input_ids"][own].unsqueeze(0)).last_hidden_state[0]
        for state, label in zip(states, labels[own].tolist(), strict=True):
            if label != -100:
                x = torch.nn.functional.gelu(head.transform.dense.weight @ state + head.transform.dense.bias)
                x = (x - x.mean()) / (x.var(correction=0) + 1e-12).sqrt()
                x = x * head.transform.LayerNorm.weight + head.transform.LayerNorm.bias
                terms.append(-(words @ x + head.bias).log_softmax(0)[label])
    return sum(terms) / len(terms)


def test_the_loss_is_the_objectives_and_the_weighted_masked_lm_loss(make_trainer, tiny_model):
    trainer = make_trainer(model=tiny_model(**NO_NOISE).double(), mlm_weight=0.15)
    trainer.mlm_head.double()
    plain = make_trainer(name="plain", model=trainer.model)
    batch = batch_of(trainer)
    loss = trainer.compute_loss(trainer.model.train(), batch)
    expected = plain.compute_loss(trainer.model, batch) + 0.15 * reference(trainer, batch)
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
    parameters = [*trainer.model.parameters(), *trainer.mlm_head.parameters()]
    got, want = torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_content_alone_is_masked_and_the_objective_sees_none_of_it(make_trainer):
    trainer = make_trainer(rows=200, mlm_weight=0.1)
    batch = batch_of(trainer, 200)
    special = torch.tensor(trainer.processing_class.all_special_ids)
    ids, masked = batch["input_ids"].flatten(), batch["mlm_input_ids"].flatten()
    indices = batch["mlm_indices"]
    assert not torch.isin(ids[indices], special).any()
    assert torch.equal(ids[indices], batch["mlm_labels"])
    unmasked = torch.ones_like(ids, dtype=torch.bool)
    unmasked[indices] = False
    assert torch.equal(ids[unmasked], masked[unmasked])
    content = (~torch.isin(ids, special)).sum().item()
    assert abs(len(indices) - 0.15 * content) < 5 * math.sqrt(0.15 * 0.85 * content)
    assert (masked == trainer.processing_class.mask_token_id).sum() > 0.7 * len(indices)


def test_the_two_views_of_a_text_are_masked_differently(make_trainer):
    texts = Dataset.from_list([{"text": row["anchor"]} for row in triplets(12)])
    trainer = make_trainer(mlm_weight=0.1, objective="unsupervised", train_dataset=texts)
    batch = batch_of(trainer, 8)
    views = [batch["mlm_input_ids"][batch["sequence_ids"] == number] for number in range(16)]
    assert any(not torch.equal(one, other) for one, other in zip(views[::2], views[1::2], strict=True))


def test_evaluation_is_of_the_objective_alone(make_trainer):
    trainer = make_trainer(mlm_weight=0.5)
    model = trainer.model.eval()
    loss = trainer.compute_loss(model, batch_of(trainer))
    torch.testing.assert_close(loss, make_trainer(name="plain", model=model).compute_loss(model, batch_of(trainer)))


def test_what_is_not_trained_gets_no_head(make_trainer):
    trainer = make_trainer(mlm_weight=0.5)
    measuring = ContrastiveTrainer(trainer.model, trainer.args, processing_class=trainer.processing_class)
    assert trainer.mlm_head is not None
    assert measuring.mlm_head is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoints_own_head_is_taken_and_gives_its_logits(kind, tmp_path):
    language_class, config, encoder_class = KINDS[kind]
    torch.manual_seed(0)
    language_model = language_class(config).eval()
    for parameter in language_model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # biases and norms, too
    language_model.save_pretrained(tmp_path)
    encoder = encoder_class.from_pretrained(tmp_path, pooler_type="mean").eval()
    head = MaskedLanguageHead.of_encoder(encoder, str(tmp_path))
    ids = torch.randint(5, 99, (2, 7))
    logits = head(encoder(input_ids=ids).last_hidden_state.flatten(0, 1))
    torch.testing.assert_close(logits, language_model(input_ids=ids).logits.flatten(0, 1))
    own = {name for name, _ in head.named_parameters()}
    assert len(own) == 5  # dense, norm, and the bias of the vocabulary
    assert sum(p.numel() for p in head.parameters()) == 32 * 32 + 3 * 32 + 99


def test_a_checkpoint_without_a_head_gets_a_new_one_and_says_so(tiny_folder, caplog):
    encoder = LayerPoolBertModel.from_pretrained(tiny_folder)
    head = MaskedLanguageHead.of_encoder(encoder, tiny_folder)
    assert "has no head for masked language modeling; a new one is initialized" in caplog.text
    assert head.language_model.get_output_embeddings().weight is encoder.get_input_embeddings().weight


def test_embeddings_that_are_not_tied_are_the_heads_own(tmp_path):
    language_model = BertForMaskedLM(BertConfig(**SMALL, vocab_size=99, tie_word_embeddings=False))
    torch.nn.init.normal_(language_model.cls.predictions.decoder.weight)
    language_model.save_pretrained(tmp_path)
    encoder = LayerPoolBertModel.from_pretrained(tmp_path)
    head = MaskedLanguageHead.of_encoder(encoder, str(tmp_path))
    own = dict(head.named_parameters())["cls_predictions_decoder_weight"]
    torch.testing.assert_close(own, language_model.cls.predictions.decoder.weight)


def test_a_checkpoint_that_cannot_be_read_is_one_sentence(tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: could not be loaded"):
        MaskedLanguageHead.of_encoder(tiny_model(), str(tmp_path / "nowhere"))


def test_the_head_is_trained_with_the_models_rate_and_decay(make_trainer):
    trainer = make_trainer(max_steps=3, mlm_weight=0.5, weight_decay=0.1, lr_scheduler_type="constant")
    before = {name: p.detach().clone() for name, p in trainer.mlm_head.named_parameters()}
    trainer.train()
    for name, parameter in trainer.mlm_head.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad is None
    groups = trainer.optimizer.param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    of_head = {name: decays[id(parameter)] for name, parameter in trainer.mlm_head.named_parameters()}
    assert {name for name, decay in of_head.items() if decay} == {"cls_predictions_transform_dense_weight"}
    assert len(decays) == sum(len(group["params"]) for group in groups)
    assert trainer.state.log_history[0]["mlm_loss"] == pytest.approx(math.log(TINY_BERT["vocab_size"]), rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("cache", [None, 48])
def test_a_run_with_it_resumes_bit_identical_and_keeps_its_head(make_trainer, cache):
    options = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 1,
        "mlm_weight": 0.3,
        "gradient_cache": cache,
        "learning_rate": 1e-3,
    }
    unbroken = make_trainer(name="unbroken", **options)
    unbroken.train()
    resumed = make_trainer(name="resumed", **options)
    resumed.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-2")
    assert_identical(weights(resumed), weights(unbroken))
    assert_identical(resumed.mlm_head.state_dict(), unbroken.mlm_head.state_dict())
    saved = load_file(f"{unbroken.args.output_dir}/checkpoint-5/mlm_head.safetensors")
    assert_identical(saved, unbroken.mlm_head.state_dict())
    model = load_file(f"{unbroken.args.output_dir}/checkpoint-5/model.safetensors")
    assert not any("cls" in name for name in model)


def test_resuming_without_the_head_is_refused(make_trainer):
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "mlm_weight": 0.3}
    trainer = make_trainer(**options)
    trainer.train()
    checkpoint = f"{trainer.args.output_dir}/checkpoint-1"
    os.remove(f"{checkpoint}/mlm_head.safetensors")
    with pytest.raises(InputError, match=r"mlm_head\.safetensors: no such file"):
        make_trainer(name="other", **options | {"max_steps": 2}).train(resume_from_checkpoint=checkpoint)


def test_gradient_caching_gives_the_gradients_of_the_uncut_batch(make_trainer, tiny_model):
    torch.manual_seed(0)
    head = None
    found = []
    for cache in (None, 64):
        model = tiny_model(**NO_NOISE).double()
        trainer = make_trainer(rows=12, model=model, mlm_weight=0.3, gradient_cache=cache, row_length=32)
        trainer.mlm_head.double()
        head = head or trainer.mlm_head.state_dict()
        trainer.mlm_head.load_state_dict(head)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        batch = batch_of(trainer, 12)
        assert cache is None or len(batch["chunks"]) > 2
        trainer.mlm_head.zero_grad()
        loss, gradients = gradients_of(trainer, lambda t=trainer, b=batch: t.training_step(t.model, b))
        gradients |= {name: parameter.grad for name, parameter in trainer.mlm_head.named_parameters()}
        found.append((loss, gradients))
    torch.testing.assert_close(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-10, rtol=1e-8, msg=name)


def test_accumulated_steps_log_the_mean_of_the_batches(make_trainer, tiny_model):
    logged = []
    for cache in (None, 64):
        trainer = make_trainer(
            model=tiny_model(**NO_NOISE),
            mlm_weight=0.3,
            gradient_cache=cache,
            gradient_accumulation_steps=2,
            max_steps=1,
            callbacks=[Recorder()],
        )
        trainer.train()
        logged.append(trainer.state.log_history[0]["mlm_loss"])
    assert logged == pytest.approx([math.log(TINY_BERT["vocab_size"])] * 2, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mlm_weight": -1.0}, "mlm_weight=-1.0"), ({"mlm_weight": 0.1, "mlm_probability": 1.0}, "mlm_probability=1.0")],
)
def test_options_that_make_no_sense_are_refused(make_trainer, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(**options)
