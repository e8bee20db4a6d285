import pytest
from transformers import AutoConfig, BertConfig, RobertaConfig

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel


def test_defaults_are_the_papers():
    config = LayerPoolBertConfig()
    assert config.pooler_type == "layer_attention"
    assert config.pooler_activation is None  # the paper's, whichever the pooler
    assert config.pooler_gru_layers == 2
    assert config.pooler_scaling == "num_states"
    assert (config.pooler_residual, config.pooler_normalize_inputs, config.pooler_output_activation) == (
        None,
        False,
        None,
    )
    assert config.pooled_states == list(range(13))


def test_the_pooled_width_is_that_of_the_encoder_but_for_poolers_that_concatenate():
    assert LayerPoolBertConfig(pooler_type="attentive_layers", pooler_queries=3).pooled_width == 3 * 768
    assert LayerPoolBertConfig(pooler_type="cls").pooled_width == 768
    assert LayerPoolBertConfig(pooler_type="hire").pooled_width == 1536
    assert LayerPoolBertConfig(pooler_type="hire", pooler_gru_size=100).pooled_width == 200


def test_pooler_layers_count_from_both_ends():
    assert LayerPoolBertConfig(pooler_layers=[-1, 0, 6]).pooled_states == [0, 6, 12]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooler_type": "attention"}, "pooler_type='attention' is unknown; use one of layer_attention"),
        ({"pooler_layers": [13]}, "hidden state 13, but this encoder has 13, numbered 0"),
        ({"pooler_layers": [-14]}, "hidden state -14"),
        ({"pooler_layers": []}, "at least one integer"),
        ({"pooler_layers": [1.5]}, "at least one integer"),
        ({"pooler_layers": [-1, 12]}, "twice"),
        ({"pooler_activation": "swoosh"}, "pooler_activation='swoosh' is unknown"),
        ({"pooler_scaling": "none"}, "pooler_scaling='none' is unknown"),
        ({"projection_dim": 0}, "projection_dim=0 must be a positive integer"),
        ({"pooler_gru_size": -1}, "pooler_gru_size=-1 must be a positive integer"),
        ({"pooler_residual": "max"}, "pooler_residual='max' is unknown; use one of mean, cls"),
        (
            {"pooler_residual": "mean", "pooler_type": "hire"},
            "residual_layers, weighted_layers, not for hire",
        ),
        ({"pooler_residual": "cls", "pooler_type": "mean"}, "not for mean: set it to None"),
        ({"pooler_normalize_inputs": "false"}, "pooler_normalize_inputs='false' must be True or False"),
        ({"pooler_residual": "mean", "projection_dim": 64}, "as wide as the encoder, 768, not projection_dim=64"),
        ({"pooler_output_activation": "swoosh"}, "pooler_output_activation='swoosh' is unknown"),
        ({"pooler_gru_layers": 0}, "pooler_gru_layers=0 must be a positive integer"),
        ({"pooler_queries": 5}, "pooler_queries=5 must be an integer from 1 to 4"),
        ({"pooler_queries": 0}, "pooler_queries=0 must be an integer from 1 to 4"),
        ({"pooler_layer_dropout": 1.0}, "pooler_layer_dropout=1.0 must be a number that is at least 0 and below 1"),
        ({"pooler_layer_dropout": -0.1}, "pooler_layer_dropout=-0.1 must be a number"),
        ({"pooler_type": "mean_last_two", "pooler_layers": [0]}, "mean_last_two"),
    ],
)
def test_a_bad_option_is_named_in_one_sentence(options, words):
    with pytest.raises(ValueError, match=r"pooler|projection") as error:
        LayerPoolBertConfig(**options)
    assert words in str(error.value)


def test_an_option_set_later_is_checked_when_the_model_is_built(tiny_config):
    config = LayerPoolBertConfig(**tiny_config)
    config.pooler_layers = [7]
    with pytest.raises(ValueError, match="hidden state 7"):
        LayerPoolBertModel(config)


def test_a_bert_configuration_opens_and_keeps_its_fields(tmp_path):
    BertConfig(hidden_size=96, num_attention_heads=4).save_pretrained(tmp_path)
    config = LayerPoolBertConfig.from_pretrained(tmp_path, pooler_layers=[0, -1])
    assert (config.hidden_size, config.pooler_layers, config.model_type) == (96, [0, -1], "layerpool_bert")


def test_another_encoder_is_refused_by_name(tmp_path):
    RobertaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model of type 'roberta', but LayerPoolBertConfig opens 'bert'"):
        LayerPoolBertConfig.from_pretrained(tmp_path)


def test_a_saved_configuration_comes_back_through_autoconfig(tmp_path):
    LayerPoolBertConfig(pooler_layers=[0, -1], pooler_scaling="sqrt_hidden_size", projection_dim=64).save_pretrained(
        tmp_path
    )
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LayerPoolBertConfig
    assert (config.pooler_layers, config.pooler_scaling, config.projection_dim) == ([0, -1], "sqrt_hidden_size", 64)
