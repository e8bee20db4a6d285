import pytest
import torch

from modeling_layerpool.checkpoints import load_layerpool
from modeling_layerpool.errors import InputError
from modeling_layerpool.training.arguments import ModelArguments


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    """A folder of a model with these options."""

    def save(**options):
        tiny_model(initializer_range=0.2, **options).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return save


@pytest.mark.parametrize(
    ("pooler_type", "option", "readers"),
    [
        ("mean", {"pooler_residual": "mean"}, "layer_attention and weighted_layers"),
        ("mean", {"pooler_scaling": "sqrt_hidden_size"}, "layer_attention"),
        ("hire", {"pooler_output_activation": "relu"}, "layer_attention"),
        ("weighted_layers", {"pooler_activation": "gelu"}, "layer_attention and hire"),
        ("cls", {"pooler_normalize_inputs": True}, "layer_attention and weighted_layers"),
        ("layer_attention", {"pooler_gru_size": 8}, "hire"),
        (None, {"pooler_gru_layers": 1}, "hire"),
    ],
)
def test_an_option_that_the_pooler_does_not_read_is_refused(saved, pooler_type, option, readers):
    given = {} if pooler_type is None else {"pooler_type": pooler_type}
    with pytest.raises(InputError) as error:
        load_layerpool(saved(), **given, **option)
    ((name, value),) = option.items()
    expected = f"{name}={value} does nothing with pooler_type={pooler_type or 'layer_attention'}; it is of {readers}"
    assert str(error.value) == expected


@pytest.mark.parametrize("pooler_type", ["mean", "hire"])
def test_another_pooler_leaves_what_only_the_former_reads(saved, pooler_type):
    options = {"pooler_residual": "cls", "pooler_normalize_inputs": True, "pooler_output_activation": "relu"}
    model, _ = load_layerpool(saved(**options), pooler_type=pooler_type)
    config = model.config
    assert (config.pooler_residual, config.pooler_normalize_inputs, config.pooler_output_activation) == (
        None,
        False,
        None,
    )


def test_another_pooler_keeps_what_both_read(saved):
    model, _ = load_layerpool(saved(pooler_residual="cls"), pooler_type="weighted_layers")
    assert model.config.pooler_residual == "cls"
    assert not model.pooler.layer_weights.any()


@pytest.mark.parametrize(("trained", "given"), [(None, "mean"), ("mean", "cls"), ("cls", None)])
@pytest.mark.parametrize("pooler_type", ["layer_attention", "weighted_layers"])
def test_the_weights_of_a_pooler_are_not_read_as_those_of_another_residual(saved, pooler_type, trained, given):
    folder = saved(pooler_type=pooler_type, pooler_residual=trained)
    with pytest.raises(InputError, match=f"its {pooler_type} was trained with pooler_residual={trained}"):
        load_layerpool(folder, pooler_residual=given)
    load_layerpool(folder, pooler_residual=trained)


def test_a_plain_encoder_takes_any_residual(minilm):
    model, _ = load_layerpool(minilm, pooler_type="weighted_layers", pooler_residual="mean")
    torch.testing.assert_close(model.pooler.layer_weights, torch.zeros(7), atol=0, rtol=0)


def test_no_residual_can_be_asked_for_by_a_flag():
    overrides = ModelArguments("folder", pooler_type="layer_attention", pooler_residual="none").config_overrides()
    assert overrides == {"pooler_type": "layer_attention", "pooler_residual": None}
    assert "pooler_residual" not in ModelArguments("folder").config_overrides()
