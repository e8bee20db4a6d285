"""
Packed input on a GPU: a kernel for sequences of variable length in place of the mask.

No GPU is at hand: a slow kernel with the arguments of the real ones takes their place on a CPU, and the real kernel of
torch is called on the meta device, where it has shapes only.
"""

import itertools
import sys
from types import ModuleType

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from modeling_layerpool import LayerPoolBertModel, load_layerpool
from modeling_layerpool.models import modeling_layerpool_attention
from modeling_layerpool.models.modeling_layerpool_attention import (
    VARLEN,
    VarlenKernel,
    describe_attention,
    installed_kernel,
    why_masked,
)
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from tests.conftest import SENTENCES, assert_close_to


ENCODERS = ("bert", "roberta", "distilbert", "electra", "modernbert")
needs_kernel = pytest.mark.skipif(installed_kernel() is None, reason="needs flash-attn, or torch 2.12 or newer")
TOKENS = [[2, *range(5, 5 + length), 3] for length in (1, 17, 3, 9, 4)]


def slow_kernel(query, key, value, borders, longest, dropout, scale, window):
    """Attention of one sequence after the other, by a mask of its window."""
    pieces = []
    for begin, end in itertools.pairwise(borders.tolist()):
        assert end - begin <= longest
        distance = torch.arange(end - begin) - torch.arange(end - begin).unsqueeze(1)
        left, right = (end - begin if size < 0 else size for size in window)
        parts = (states[begin:end].transpose(0, 1) for states in (query, key, value))
        near = (distance >= -left) & (distance <= right)
        pieces.append(scaled_dot_product_attention(*parts, near, dropout, scale=scale).transpose(0, 1))
    return torch.cat(pieces)


def without_dropout(encoder):
    names = {
        "distilbert": {"attention_dropout": 0.0, "dropout": 0.0},
        "modernbert": {},
    }
    return names.get(encoder, {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0})


@pytest.fixture
def kernel(monkeypatch):
    """Takes a device, a kernel and its dtypes for those that a GPU would have."""

    def use(device="cpu", compute=slow_kernel, has_dropout=False, dtypes=(torch.float32,)):
        kernel = VarlenKernel("slow", compute, has_dropout)
        # A checkpoint that was opened with its own code has registered its copy.
        AttentionInterface.register(VARLEN, modeling_layerpool_attention.attend)
        monkeypatch.setattr(modeling_layerpool_attention, "DEVICE", device)
        monkeypatch.setattr(modeling_layerpool_attention, "DTYPES", dtypes)
        monkeypatch.setattr(modeling_layerpool_attention, "installed_kernel", lambda: kernel)

    return use


def gradients(model, packed):
    model.zero_grad()
    output = model(**packed).pooler_output
    output.square().sum().backward()
    return output.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_kernel_gives_the_embeddings_and_gradients_of_the_mask(tiny, kernel, encoder):
    """ModernBERT also has windows, of fewer tokens than the longest sentence."""
    model = tiny(encoder, pooler_type="layer_attention")
    packed = pack_sentences(TOKENS, model.config.pad_token_id, 32)
    expected, expected_gradients = gradients(model, packed)
    kernel()
    model.set_attn_implementation(VARLEN)
    masks = []
    model.packed_mask = lambda ids: masks.append(ids)
    output, its_gradients = gradients(model, packed)
    assert masks == []
    assert_close_to(output, expected)
    for name, gradient in expected_gradients.items():
        assert_close_to(its_gradients[name], gradient, 1e-5)


def test_the_implementation_is_sdpa_where_there_is_a_reason_for_a_mask_and_for_padded_input(tiny):
    model = tiny("modernbert")
    packed = pack_sentences(TOKENS, model.config.pad_token_id)
    padded = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), "attention_mask": torch.ones(2, 4)}
    padded["attention_mask"][1, 3] = 0
    with torch.no_grad():
        expected = [model(**inputs).pooler_output for inputs in (packed, padded)]
        model.set_attn_implementation(VARLEN)
        for inputs, same in zip((packed, padded), expected, strict=True):
            assert torch.equal(model(**inputs).pooler_output, same)


def test_dropout_of_attention_weights_stays_in_training(tiny, kernel):
    """A kernel without dropout computes evaluation only; one that has dropout computes training too."""
    model = tiny("bert", attention_probs_dropout_prob=0.5)
    kernel()
    model.set_attn_implementation(VARLEN)
    device = torch.device("cpu")
    assert why_masked(model.config, device, torch.float32, training=False) is None
    reason = why_masked(model.config, device, torch.float32, training=True)
    assert reason == "slow has no dropout, and attention_probs_dropout_prob is 0.5"
    assert describe_attention(model.config, device, torch.float32) == f"sdpa with a mask ({reason})"
    seen = []
    kernel(compute=lambda *args: seen.append(args[5]) or slow_kernel(*args), has_dropout=True)
    assert describe_attention(model.config, device, torch.float32) == "slow, without a mask"
    packed = pack_sentences(TOKENS, 0)
    model(**packed)
    model.train()(**packed)
    assert set(seen) == {0.0, 0.5}


def test_layers_with_a_dropout_that_the_configuration_lacks_are_refused(tiny, kernel):
    model = tiny("bert").train()
    kernel()
    model.set_attn_implementation(VARLEN)
    model.config.attention_probs_dropout_prob = 0.0
    with pytest.raises(ValueError, match=r"the layers were built with 0\.1"):
        model(**pack_sentences(TOKENS, 0))


def test_half_precision_is_that_of_autocast_or_of_the_weights(tiny, kernel):
    model = tiny("modernbert")
    packed = pack_sentences(TOKENS, model.config.pad_token_id)
    dtypes = []
    kernel(compute=lambda q, k, v, *rest: dtypes.append({x.dtype for x in (q, k, v)}) or q, dtypes=(torch.bfloat16,))
    model.set_attn_implementation(VARLEN)
    with torch.no_grad():
        model(**packed)
        assert dtypes == []
        with torch.autocast("cpu", torch.bfloat16):
            model(**packed)
        model.bfloat16()(**packed)
    assert len(dtypes) == 2 * model.config.num_hidden_layers
    assert all(seen == {torch.bfloat16} for seen in dtypes)


@pytest.mark.parametrize(
    ("device", "dtype", "options", "reason"),
    [
        ("cpu", torch.bfloat16, {}, "the input is on cpu"),
        ("meta", torch.float32, {}, "this is float32"),
        ("meta", torch.bfloat16, {"hidden_size": 20}, "these are 5 wide"),
    ],
)
def test_a_reason_for_a_mask_is_a_sentence(tiny, kernel, device, dtype, options, reason):
    model = tiny("bert", **options)
    model.set_attn_implementation(VARLEN)
    kernel(device="meta", dtypes=(torch.bfloat16,))
    assert reason in why_masked(model.config, torch.device(device), dtype, training=False)


def test_a_gpu_gets_the_kernels_once_and_another_choice_stays(tiny):
    gpu = torch.device("cuda")
    model = tiny("bert")
    model.choose_attention(torch.device("cpu"))
    assert model.config._attn_implementation == "sdpa"
    model.choose_attention(gpu)
    assert model.config._attn_implementation == VARLEN
    model.set_attn_implementation("sdpa")
    model.choose_attention(gpu)
    assert model.config._attn_implementation == "sdpa"
    eager = tiny("bert", attn_implementation="eager")
    eager.choose_attention(gpu)
    assert eager.config._attn_implementation == "eager"
    for encoder in ("mpnet", "deberta_v2"):
        model = tiny(encoder)
        before = model.config._attn_implementation
        model.choose_attention(gpu)
        assert model.config._attn_implementation == before


def test_an_implementation_that_the_user_names_stays(tiny_folder):
    for name in ("sdpa", "eager"):
        model = LayerPoolBertModel.from_pretrained(tiny_folder, attn_implementation=name)
        model.choose_attention(torch.device("cuda"))
        assert model.config._attn_implementation == name
    model, _ = load_layerpool(tiny_folder, attn_implementation=None)
    model.choose_attention(torch.device("cuda"))
    assert model.config._attn_implementation == VARLEN


def test_the_choice_is_not_saved(tiny, tmp_path):
    model = tiny("bert")
    model.choose_attention(torch.device("cuda"))
    model.save_pretrained(tmp_path)
    assert VARLEN not in (tmp_path / "config.json").read_text()
    assert type(model).from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@needs_kernel
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_kernel_of_torch_takes_these_arguments_and_waits_for_nothing(tiny, kernel, encoder):
    compute = installed_kernel().compute
    calls = []
    model = tiny(encoder, **without_dropout(encoder)).train().to("meta")
    kernel(device="meta", compute=lambda *args: calls.append(args) or compute(*args))
    model.set_attn_implementation(VARLEN)
    packed = pack_sentences(TOKENS, model.config.pad_token_id, 32)
    model(**{name: value.to("meta") for name, value in packed.items()}).pooler_output.sum().backward()
    assert len(calls) == model.config.num_hidden_layers
    assert calls[0][3].dtype == torch.int32
    assert calls[0][4] == 32
    assert all(parameter.grad.is_meta for parameter in model.parameters())


def test_flash_attn_comes_first_and_gets_the_arguments_that_it_names(monkeypatch):
    seen = {}
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = lambda *args, **kwargs: seen.update(args=args, **kwargs)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr(modeling_layerpool_attention, "is_flash_attn_2_available", lambda: True)
    kernel = installed_kernel.__wrapped__()
    kernel.compute("q", "k", "v", "borders", 32, 0.1, 0.5, (3, 3))
    assert kernel.has_dropout
    assert seen == {
        "args": ("q", "k", "v", "borders", "borders", 32, 32),
        "dropout_p": 0.1,
        "softmax_scale": 0.5,
        "window_size": (3, 3),
    }


def test_encode_chooses(tiny_model, tokenizer, monkeypatch):
    model, devices = tiny_model(), []
    monkeypatch.setattr(type(model), "choose_attention", lambda self, device: devices.append(device.type))
    model.encode(list(SENTENCES), tokenizer)
    assert devices == ["cpu"]


@pytest.mark.gpu
@needs_kernel
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("encoder", ENCODERS)
def test_on_a_gpu_the_kernel_is_as_near_to_float32_as_the_mask_is(tiny, encoder):
    model = tiny(encoder, pooler_type="layer_attention").cuda()
    packed = pack_sentences(TOKENS, model.config.pad_token_id, 32)
    packed = {name: value.cuda() for name, value in packed.items()}
    exact, _ = gradients(model, packed)
    with torch.autocast("cuda", torch.bfloat16):
        masked, _ = gradients(model, packed)
        model.choose_attention(torch.device("cuda"))
        model.packed_mask = None  # would fail if it were called
        output, its_gradients = gradients(model, packed)
    assert (output - exact).abs().max() <= 2 * (masked - exact).abs().max() + 1e-4
    assert all(gradient.isfinite().all() for gradient in its_gradients.values())
