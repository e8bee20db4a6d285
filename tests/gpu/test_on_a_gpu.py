"""
What holds on a GPU. `benchmarks/gpu.py --only tests` runs these where the rest of the suite lacks its packages, and so
they use no fixture.
"""

import contextlib

import pytest
import torch
from torch.nn.functional import cosine_similarity

from modeling_layerpool.models.modeling_layerpool_bert import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.training.batching import PackingCollator, model_inputs
from modeling_layerpool.training.contrastive.gradient_cache import GradientCache
from modeling_layerpool.training.losses import info_nce


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SENTENCES = [[2, *range(5, 5 + length), 3] for length in (1, 7, 3, 12, 4, 30)]
COLUMNS = ("anchor", "positive")
# The attention of packed input that trainers choose on a GPU
ATTENTION = "layerpool_varlen"


class OneProcess:
    """What gradient caching asks of accelerate, for one process."""

    backward = staticmethod(torch.Tensor.backward)
    no_sync = staticmethod(contextlib.nullcontext)


def small_model(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 128, "attn_implementation": ATTENTION}
    return LayerPoolBertModel(LayerPoolBertConfig(**sizes, **options)).cuda()


def on_gpu(inputs):
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in inputs.items()}


@contextlib.contextmanager
def no_synchronization():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pooler_type", ["mean", "layer_attention", "residual_layers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_and_padded_input_have_the_same_embeddings(pooler_type, dtype):
    model = small_model(pooler_type=pooler_type).eval().to(dtype)
    ids = torch.zeros(len(SENTENCES), max(map(len, SENTENCES)), dtype=torch.long)
    for row, sentence in zip(ids, SENTENCES, strict=True):
        row[: len(sentence)] = torch.tensor(sentence)
    with torch.inference_mode():
        packed = model(**on_gpu(pack_sentences(SENTENCES, 0))).pooler_output
        padded = model(**on_gpu({"input_ids": ids, "attention_mask": (ids != 0).long()})).pooler_output
    assert cosine_similarity(packed.double(), padded.double()).min() > (0.999 if dtype == torch.bfloat16 else 0.999999)


@pytest.mark.parametrize("columns", [2, 3], ids=["pairs", "triplets"])
def test_a_loss_and_its_gradient_are_those_of_the_cpu(columns):
    torch.manual_seed(0)
    texts = torch.randn(columns, 300, 64)

    def loss_and_gradient(texts):
        texts = texts.detach().requires_grad_()
        loss = info_nce(*texts, temperature=0.05, symmetric=True)
        loss.backward()
        return loss.detach(), texts.grad

    on_cpu = loss_and_gradient(texts.double())
    for result, exact in zip(loss_and_gradient(texts.cuda()), on_cpu, strict=True):
        error = (result.cpu().double() - exact).norm() / exact.norm()
        assert error < 1e-5


@pytest.mark.parametrize("pooler_type", ["mean", "layer_attention", "residual_layers"])
@pytest.mark.parametrize("chunk_tokens", [None, 48], ids=["plain", "cached"])
@pytest.mark.parametrize("attention_dropout", [0.1, 0.0])
def test_a_training_step_does_not_wait_for_the_gpu(pooler_type, chunk_tokens, attention_dropout):
    model = small_model(pooler_type=pooler_type, attention_probs_dropout_prob=attention_dropout).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = [
        {"row_number": i, "anchor_input_ids": SENTENCES[i], "positive_input_ids": SENTENCES[i - 1]} for i in range(6)
    ]
    batch = PackingCollator(COLUMNS, 0, chunk_tokens=chunk_tokens)(rows)
    chunks = [on_gpu(model_inputs(chunk)) for chunk in batch.get("chunks", [batch])]
    order = batch.get("sentence_indices", torch.arange(12)).cuda()

    def embed(**inputs):
        with torch.autocast("cuda", torch.bfloat16):
            return model(**inputs)

    def step():
        if chunk_tokens is None:
            embeddings = embed(**chunks[0]).pooler_output
        else:
            cache = GradientCache(embed, OneProcess, chunks)
            embeddings = cache.represent()
        info_nce(*embeddings[order].view(6, 2, -1).unbind(1), temperature=0.05).backward()
        if chunk_tokens is not None:
            cache.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first one allocates and opens libraries
    with no_synchronization():
        step()
