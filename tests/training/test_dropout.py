"""Dropout masks on a CPU: their distribution, the attention that uses them, and when they are used."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.training.dropout import ATTENTION, attention, dropout_noise, fast_dropout
from tests.conftest import assert_close_to


SENTENCES = [[2, *range(5, 5 + length), 3] for length in (1, 7, 3, 4)]
COUNT = 400_000


def is_share(values, expected):
    """Whether a share of independent draws is less than five standard deviations from what is expected."""
    deviation = (expected * (1 - expected) / values.numel()) ** 0.5
    return abs(values.double().mean() - expected) < 5 * deviation


@pytest.mark.parametrize("p", [0.1, 0.5, 2**-16, 1.0])
def test_a_mask_drops_the_share_that_was_asked_for_and_keeps_the_expectation(p):
    noise = dropout_noise(torch.empty(COUNT), p)
    rounded = round(p * 2**16) / 2**16
    assert is_share(noise == 0, rounded) if p < 1 else (noise == 0).all()
    assert p == 1 or noise.max().item() == pytest.approx(1 / (1 - rounded), rel=1e-6)


def test_each_of_the_four_elements_of_a_draw_is_dropped_as_often():
    dropped = dropout_noise(torch.empty(COUNT), 0.1).view(-1, 4) == 0
    assert all(is_share(dropped[:, place], 6554 / 2**16) for place in range(4))


@pytest.mark.parametrize("distance", [*range(1, 9), 384, 624])
def test_elements_are_dropped_independently_of_each_other(distance):
    dropped = dropout_noise(torch.empty(COUNT), 0.5) == 0
    assert is_share(dropped[distance:] & dropped[:-distance], 0.25)


def test_the_seed_decides_about_the_mask():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(dropout_noise(torch.empty(5, 7), 0.5))
    assert masks[0].equal(masks[1])
    assert not masks[0].equal(masks[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0)])
def test_a_mask_has_the_shape_and_dtype_of_its_tensor(shape, dtype):
    noise = dropout_noise(torch.empty(shape, dtype=dtype), 0.5)
    assert noise.shape == shape
    assert noise.dtype == dtype


def slow_attention(query, key, value, mask, noise):
    """Attention of each query, one after the other, with the factors of dropout given."""
    heads = torch.zeros_like(value)
    for b, head, t in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        scores = torch.stack([query[b, head, t] @ other for other in key[b, head]]) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask[b, 0, t], -torch.inf).softmax(dim=0) * noise[b, head, t]
        heads[b, head, t] = weights @ value[b, head]
    return heads.transpose(1, 2)


def test_attention_with_dropout_equals_its_definition_in_float64():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64).requires_grad_().unbind()
    owner = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, -1, -1]])
    mask = (owner.unsqueeze(1) == owner.unsqueeze(2)).unsqueeze(1)
    torch.manual_seed(1)
    noise = dropout_noise(torch.empty(2, 4, 5, 5, dtype=torch.float64), 0.3)
    expected = slow_attention(query, key, value, mask, noise)
    torch.manual_seed(1)
    actual, _ = attention(nn.Module(), query, key, value, mask, dropout=0.3)
    assert_close_to(actual.detach(), expected.detach(), 1e-12)
    weights = torch.randn_like(expected)
    for mine, slow in zip(
        *(torch.autograd.grad((out * weights).sum(), (query, key, value)) for out in (actual, expected)), strict=True
    ):
        assert_close_to(mine, slow, 1e-12)


@pytest.mark.parametrize(("heads_of_keys", "is_causal"), [(2, False), (4, True)])
def test_other_attention_with_dropout_stays_that_of_torch(heads_of_keys, is_causal):
    torch.manual_seed(0)
    query = torch.randn(2, 4, 5, 6)
    key, value = torch.randn(2, 2, heads_of_keys, 5, 6)
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 4 // heads_of_keys, is_causal
    outputs = []
    for function in (attention, sdpa_attention_forward):
        torch.manual_seed(1)
        outputs.append(function(module, query, key, value, None, dropout=0.3)[0])
    assert outputs[0].equal(outputs[1])


def embed(model):
    torch.manual_seed(3)
    return model(**pack_sentences(SENTENCES, model.config.pad_token_id, 16)).pooler_output


@pytest.mark.parametrize("encoder", ["bert", "mpnet", "distilbert"])
def test_only_masks_differ_and_only_while_it_lasts(tiny, encoder):
    model = tiny(encoder, pooler_type="layer_attention")
    in_evaluation, as_torch_drops = embed(model.eval()), embed(model.train())
    implementation = model.config._attn_implementation
    with fast_dropout(model):
        assert embed(model.eval()).equal(in_evaluation)
        dropped = embed(model.train())
        assert not dropped.equal(as_torch_drops)
        assert dropped.equal(embed(model))  # the same seed
        assert (model.config._attn_implementation == ATTENTION) == (implementation == "sdpa")
    assert embed(model).equal(as_torch_drops)
    assert model.config._attn_implementation == implementation
    assert not any("Fast" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize("options", [{}, {"torch_compile": True}, {"freeze_encoder": True}])
def test_a_trainer_leaves_dropout_to_torch_if_the_model_is_compiled_or_its_encoder_frozen(make_trainer, options):
    """A compiler cannot trace the draws: its graph would end at each of them."""
    trainer = make_trainer()
    for name, value in options.items():
        setattr(trainer.args, name, value)
    with trainer.drawing_masks():
        kinds = {type(module) for module in trainer.model.modules() if isinstance(module, nn.Dropout)}
    assert (kinds == {nn.Dropout}) == bool(options)


def test_dropout_is_that_of_torch_after_an_error_in_a_step(tiny):
    model = tiny("bert")
    with pytest.raises(RuntimeError, match="no memory"), fast_dropout(model):
        raise RuntimeError("no memory")
    assert model.config._attn_implementation == "sdpa"
    assert {type(module) for module in model.modules() if isinstance(module, nn.Dropout)} == {nn.Dropout}


def test_the_mean_over_many_masks_is_that_of_torch(tiny):
    """Of the hidden states: dropout is not linear, but its distribution is the same."""
    model = tiny("bert", pooler_type="mean").train()
    inputs = pack_sentences(SENTENCES * 50, model.config.pad_token_id, 16)

    def moments():
        drawn = torch.stack([model(**inputs).pooler_output.view(50, 4, -1) for _ in range(4)]).flatten(0, 1).detach()
        return drawn.mean(dim=0), drawn.std(dim=0)

    torch.manual_seed(0)
    mean, deviation = moments()
    with fast_dropout(model):
        fast_mean, fast_deviation = moments()
    error = deviation / 200**0.5
    assert ((fast_mean - mean).abs() < 7 * error).all()
    assert (fast_deviation / deviation).log().abs().mean() < 0.1
