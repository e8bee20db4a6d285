"""
A training step never waits for its device, and leaves no tensor elsewhere.

The tensors of the meta device have no numbers: whatever needs one (`.item()`, `.tolist()`, a mask as an index) fails
there, and so does an operation with a tensor of the CPU. Padded input, which classifiers are trained on, is left out:
for it, transformers itself asks the device whether anything is padded.
"""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import send_to_device

from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.models.modeling_layerpool_poolers import POOLERS
from modeling_layerpool.training import OBJECTIVES, MaskedLanguageTrainer, TokenContrastArguments, base
from modeling_layerpool.training.contrastive.gradient_cache import cached_step
from modeling_layerpool.training.contrastive.objectives.base import EmbeddedBatch
from modeling_layerpool.training.loss_kernels import Classification
from modeling_layerpool.training.masking import predicted_index
from tests.conftest import ENCODERS
from tests.training.masked_lm.batches import Collator, blocks
from tests.training.masked_lm.test_trainer import make_model


SENTENCES = [[2, *range(5, 5 + length), 3] for length in (1, 7, 3, 4)]
OBJECTIVE_OPTIONS = [
    ("supervised", {}),
    ("supervised", {"learn_temperature": True, "symmetric": True, "hard_negative_weight": 1.0}),
    ("unsupervised", {}),
    *(("pairwise", {"pairwise_loss": loss}) for loss in ("bsc", "mse", "combined", "bce", "cosent")),
    ("pairwise", {"pairwise_loss": "bsc", "bsc_normalization": "coordinate"}),
    ("angle", {}),
    ("angle, triplets", {}),
    *(("distill", {"distill_loss": loss}) for loss in ("rows", "cosines", "vectors")),
]


# What a training step must not do with a tensor of its device.
READS = {
    "item": lambda x: x.mean().item(),
    "tolist": lambda x: x.tolist(),
    "boolean index": lambda x: x[x > 0],
    "tensor of the CPU": lambda x: x + torch.ones(x.shape),
}


def packed_on_meta(model):
    packed = pack_sentences(SENTENCES, model.config.pad_token_id, 16)
    return send_to_device(packed, "meta") | {"sequence_lengths": [len(sentence) for sentence in SENTENCES]}


def take_step(trainer, step):
    """
    A whole step of a trainer's own batch, of which `step` makes the loss and the gradients. The optimizer is not the
    fused one, which exists for real devices only.
    """
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.to("meta").train()
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    loss = step(trainer, model, send_to_device(batch, "meta"))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert loss.is_meta
    assert all(parameter.grad is None or parameter.grad.is_meta for parameter in model.parameters())


def plain_step(trainer, model, batch):
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return loss


# MPNet and DeBERTa-v2 have no sdpa.
ATTENTIONS = [
    *((encoder, "eager") for encoder in ENCODERS),
    *((encoder, "sdpa") for encoder in ENCODERS if encoder not in ("mpnet", "deberta_v2")),
]


@pytest.mark.parametrize("pooler_type", POOLERS)
@pytest.mark.parametrize(("encoder", "attention"), ATTENTIONS)
def test_a_model_is_trained_without_a_number_from_its_device(tiny, encoder, pooler_type, attention):
    model = tiny(encoder, pooler_type=pooler_type, attn_implementation=attention).train()
    inputs = packed_on_meta(model)
    model.to("meta")
    optimizer = torch.optim.AdamW(model.parameters())
    output = model(**inputs)
    assert output.pooler_output.is_meta
    output.pooler_output.square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(("name", "options"), OBJECTIVE_OPTIONS)
def test_an_objective_computes_its_loss_without_a_number_from_its_device(name, options):
    objective = OBJECTIVES[name.removesuffix(", triplets")](**options).to("meta")
    texts = 3 if name in ("supervised", "angle, triplets") else 2
    embeddings = torch.empty(4, texts, 8, device="meta", requires_grad=True)
    ids, values = torch.empty(4, texts, dtype=torch.long, device="meta"), torch.empty(4, device="meta")
    others = {"teacher": torch.empty(4, texts, 8, device="meta")}
    if name == "supervised":
        others["guide"] = others["teacher"]
    values = values if name in ("pairwise", "angle") else None
    batch = EmbeddedBatch.gather(embeddings, ids, values, [4], 0, others)
    objective(batch).backward()
    assert embeddings.grad.is_meta


@pytest.mark.parametrize(
    ("pooler_type", "step", "options"),
    [
        ("hire", plain_step, {}),
        ("hire", cached_step, {"gradient_cache": 16}),
        ("layer_attention", plain_step, {"mlm_weight": 0.1}),
        ("layer_attention", cached_step, {"gradient_cache": 16, "mlm_weight": 0.1, "learn_temperature": True}),
    ],
)
def test_a_whole_contrastive_step_waits_for_nothing(make_trainer, tiny_model, pooler_type, step, options):
    trainer = make_trainer(model=tiny_model(pooler_type=pooler_type), optim="adamw_torch", **options)
    trainer.extra_modules.to("meta")
    if trainer.mlm_term is not None:
        trainer.mlm_head.language_model.to("meta")  # other devices share its parameters with the module
    take_step(trainer, step)


def test_the_lengths_that_the_collator_counted_are_those_that_the_model_would_copy(make_trainer, tiny_model):
    """In each chunk, `hire` embeds the same with the lengths of the collator and without."""
    trainer = make_trainer(model=tiny_model(pooler_type="hire"), gradient_cache=16)
    chunks = next(iter(trainer.get_train_dataloader()))["chunks"]
    assert len(chunks) > 1
    for chunk in chunks:
        with torch.no_grad():
            expected = trainer.model(**{name: value for name, value in chunk.items() if name != "sequence_lengths"})
            assert torch.equal(trainer.model(**chunk).pooler_output, expected.pooler_output)


def test_a_step_of_masked_language_modeling_and_token_contrast_waits_for_nothing(tmp_path):
    args = TokenContrastArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=4, token_negatives=7, optim="adamw_torch"
    )
    trainer = MaskedLanguageTrainer(make_model(), args, data_collator=Collator(inside=True), train_dataset=blocks(12))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch)  # the first step reads numbers to check the model
    trainer._logged = trainer._logged.to("meta")
    index = send_to_device(predicted_index(batch["labels"]), "meta")
    take_step(trainer, lambda trainer, model, batch: plain_step(trainer, model, batch | {"predicted_index": index}))


def test_a_batch_is_copied_to_a_gpu_without_waiting_for_it(make_trainer, monkeypatch):
    trainer, copied = make_trainer(), []
    monkeypatch.setattr(base, "send_to_device", lambda inputs, device, **options: copied.append((device, options)))
    for kind in ("cuda", "cpu"):
        trainer.args = SimpleNamespace(device=torch.device(kind))
        trainer.to_device({})
    assert copied == [(torch.device(kind), {"non_blocking": kind == "cuda"}) for kind in ("cuda", "cpu")]


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_loss_that_waits_for_its_device_fails_here(make_trainer, monkeypatch, read):
    loss = Classification.mean_cross_entropy
    monkeypatch.setattr(Classification, "mean_cross_entropy", lambda self: (read(self.queries), loss(self))[1])
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        take_step(make_trainer(optim="adamw_torch"), plain_step)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("pooler_type", POOLERS)
def test_a_pooler_that_waits_for_its_device_fails_here(tiny_model, monkeypatch, pooler_type, read):
    model = tiny_model(pooler_type=pooler_type).to("meta")
    inputs, reduce = packed_on_meta(model), model.pooler.reduce
    monkeypatch.setattr(model.pooler, "reduce", lambda state, sentences: (read(state), reduce(state, sentences))[1])
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        model(**inputs)
