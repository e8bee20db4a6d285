"""
The contrastive loss on CUDA: its blocks are compiled. The compiler's kernels for a CPU, and the blocks of a GPU, are
compared here with the loss of a CPU and with the formula.
"""

import pytest
import torch

from modeling_layerpool.training import info_nce, loss_kernels
from modeling_layerpool.training.losses import batch_softmax_contrastive
from tests.training.test_losses import batch, reference, same_values_and_gradients


@pytest.fixture
def compiled(monkeypatch):
    """Takes the compiled function for all losses of more than one block, and blocks of at most 140 logits."""
    torch._dynamo.reset()
    loss_kernels.compiled_loss_to_gradient.cache_clear()
    monkeypatch.setattr(loss_kernels, "BLOCK_LOGITS", 140)
    function = loss_kernels.compiled_loss_to_gradient()
    monkeypatch.setattr(loss_kernels, "chosen_loss_to_gradient", lambda device: function)
    yield
    loss_kernels.compiled_loss_to_gradient.cache_clear()


@pytest.mark.long
def test_compiled_it_equals_the_formula_and_compiles_few_times(compiled):
    """With equal texts, hard negatives, a learned temperature, and a shorter last block; of batches of three sizes."""
    torch._dynamo.utils.counters.clear()
    for rows in (9, 11, 12):
        a, p, n = batch(rows=rows)
        anchors, positives = [0, 1, 2, 3, *range(4, rows)], [10, 11, 2, 13, 10, *range(15, 10 + rows)]
        negatives = [[20 + row, 40 + row] for row in range(rows)]
        negatives[1] = [1, 11]
        alpha = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
        fast = info_nce(
            a,
            p,
            n,
            temperature=1 / alpha,
            hard_negative_weight=1.0,
            anchor_text_ids=torch.tensor(anchors),
            column_text_ids=torch.tensor([*positives, *(text for row in negatives for text in row)]),
        )
        slow = reference(a, p, n, 1 / alpha, 1.0, texts=(anchors, positives, negatives))
        same_values_and_gradients(fast, slow, [a, p, n, alpha])
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_compiled_it_equals_the_loss_of_a_cpu_with_weights(compiled, monkeypatch):
    a, p, _ = batch(rows=16)
    labels = torch.tensor([1.0, 0.0, 0.5, 1.0] * 4, dtype=torch.float64)
    fast = batch_softmax_contrastive(a, p, labels, temperature=0.1)
    monkeypatch.setattr(loss_kernels, "BLOCK_LOGITS", 2**21)
    same_values_and_gradients(fast, batch_softmax_contrastive(a, p, labels, temperature=0.1), [a, p])


def test_without_a_compiler_the_loss_is_the_same_after_one_warning(compiled, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    loss_kernels.compiled_loss_to_gradient.cache_clear()
    function = loss_kernels.compiled_loss_to_gradient()
    monkeypatch.setattr(loss_kernels, "chosen_loss_to_gradient", lambda device: function)
    warnings = []
    monkeypatch.setattr(loss_kernels.logger, "warning", warnings.append)
    a, p, n = batch(rows=9)
    same_values_and_gradients(info_nce(a, p, n, temperature=0.1), reference(a, p, n, 0.1), [a, p, n])
    assert warnings == ["the contrastive loss is not compiled, which makes it slower: Failed to find C compiler"]


def test_a_device_out_of_memory_is_no_missing_compiler(monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fail)
    loss_kernels.compiled_loss_to_gradient.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        loss_kernels.compiled_loss_to_gradient()()
    loss_kernels.compiled_loss_to_gradient.cache_clear()


def test_it_is_compiled_on_cuda_with_triton_only(monkeypatch):
    for device, triton, is_compiled in (("cuda", True, True), ("cuda", None, False), ("cpu", True, False)):
        monkeypatch.setattr(loss_kernels, "find_spec", lambda name, found=triton: found)
        function = loss_kernels.chosen_loss_to_gradient(torch.device(device))
        assert (function is not loss_kernels.loss_to_gradient) == is_compiled


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_compiled_loss_is_that_of_a_cpu_in_float64(monkeypatch):
    monkeypatch.setattr(loss_kernels, "BLOCK_LOGITS_OF_ACCELERATOR", 2**14)
    expected = batch(rows=200, negatives=1, width=64)
    inputs = [x.detach().float().cuda().requires_grad_() for x in expected]
    losses = []
    for a, p, n in (inputs, expected):
        ids = torch.arange(400, device=a.device) % 390
        losses.append(
            info_nce(
                a, p, n, temperature=0.05, hard_negative_weight=1.0, anchor_text_ids=ids[:200], column_text_ids=ids
            )
        )
        losses[-1].backward()
    torch.testing.assert_close(losses[0].cpu().double(), losses[1], rtol=1e-5, atol=1e-5)
    for x, same in zip(inputs, expected, strict=True):
        torch.testing.assert_close(x.grad.cpu().double(), same.grad, rtol=1e-3, atol=1e-6)
