"""
A training step never waits for its device, and leaves no tensor elsewhere.

The tensors of the meta device have no numbers: whatever needs one (`.item()`, `.tolist()`, a mask as an index) fails
there, and so does an operation with a tensor of the CPU.
"""

import pytest
import torch

from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.models.modeling_layerpool_poolers import POOLERS
from modeling_layerpool.training import OBJECTIVES
from modeling_layerpool.training.batching import PackingCollator, chunks_of, model_inputs
from modeling_layerpool.training.contrastive.objectives.base import EmbeddedBatch
from tests.conftest import ENCODERS


SENTENCES = [[2, *range(5, 5 + length), 3] for length in (1, 7, 3, 4)]
OBJECTIVE_OPTIONS = [
    ("supervised", {}),
    ("supervised", {"learn_temperature": True, "symmetric": True, "hard_negative_weight": 1.0}),
    ("unsupervised", {}),
    *(("pairwise", {"pairwise_loss": loss}) for loss in ("bsc", "mse", "combined", "bce", "cosent")),
    ("pairwise", {"pairwise_loss": "bsc", "bsc_normalization": "coordinate"}),
    ("angle", {}),
]


def on_meta(inputs):
    return {name: value.to("meta") for name, value in inputs.items()}


# MPNet and DeBERTa-v2 have no sdpa. With padded input, transformers itself asks whether anything is padded.
ATTENTIONS = [
    *((encoder, "eager") for encoder in ENCODERS),
    *((encoder, "sdpa") for encoder in ENCODERS if encoder not in ("mpnet", "deberta_v2")),
]


@pytest.mark.parametrize("pooler_type", [name for name in POOLERS if name != "hire"])
@pytest.mark.parametrize(("encoder", "attention"), ATTENTIONS)
def test_a_model_is_trained_without_a_number_from_its_device(tiny, encoder, pooler_type, attention):
    model = tiny(encoder, pooler_type=pooler_type, attn_implementation=attention).train()
    inputs = on_meta(pack_sentences(SENTENCES, model.config.pad_token_id, 16))
    model.to("meta")
    optimizer = torch.optim.AdamW(model.parameters())
    output = model(**inputs)
    assert output.pooler_output.is_meta
    output.pooler_output.square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(("name", "options"), OBJECTIVE_OPTIONS)
def test_an_objective_computes_its_loss_without_a_number_from_its_device(name, options):
    objective = OBJECTIVES[name](**options).to("meta")
    texts = 3 if name == "supervised" else 2
    embeddings = torch.empty(4, texts, 8, device="meta", requires_grad=True)
    ids, values = torch.empty(4, texts, dtype=torch.long, device="meta"), torch.empty(4, device="meta")
    batch = EmbeddedBatch.gather(embeddings, ids, None if texts == 3 or name == "unsupervised" else values, [4], 0)
    objective(batch).backward()
    assert embeddings.grad.is_meta


def test_a_whole_step_of_a_split_batch_waits_for_nothing(tiny):
    model = tiny("bert", pooler_type="layer_attention").train()
    columns = ("anchor", "positive")
    rows = [{"row_number": i} | {f"{name}_input_ids": SENTENCES[i] for name in columns} for i in range(4)]
    batch = PackingCollator(columns, model.config.pad_token_id, chunk_tokens=16)(rows)
    model.to("meta")
    optimizer = torch.optim.AdamW(model.parameters())
    chunks = [on_meta(model_inputs(chunk)) for chunk in chunks_of(batch)]
    embeddings = torch.cat([model(**chunk).pooler_output for chunk in chunks])
    embeddings = embeddings[batch["sentence_indices"].to("meta")].view(4, 2, -1)
    text_ids = batch["text_ids"].to("meta")
    OBJECTIVES["supervised"]()(EmbeddedBatch.gather(embeddings, text_ids, None, [4], 0)).backward()
    optimizer.step()


def test_a_loss_that_reads_a_number_from_its_device_fails_here():
    loss = torch.empty(4, device="meta").mean()
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()
