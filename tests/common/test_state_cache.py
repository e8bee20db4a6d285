"""States are computed once for each distinct text, and a file of others is never read."""

import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from modeling_layerpool.common.checksums import encoder_checksum
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.common.state_cache import StateCache, cached_states
from tests.conftest import SENTENCES


@pytest.fixture
def counted(tiny_model):
    """A model, and the list of the numbers of texts that its encoder computed, call by call."""
    model, calls = tiny_model(), []
    read = model.encode_states_of_token_ids

    def count(input_ids, *args, **kwargs):
        calls.append(len(input_ids))
        return read(input_ids, *args, **kwargs)

    model.encode_states_of_token_ids = count
    return model, calls


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("pooler_type", ["mean", "cls", "layer_attention", "weighted_layers", "concat_layers"])
def test_states_of_the_cache_are_those_of_the_model_up_to_rounding(
    tiny_model, tokenizer, tmp_path, dtype, pooler_type
):
    model = tiny_model(pooler_type=pooler_type)
    cache = cached_states(model, SENTENCES, tokenizer, tmp_path, dtype=dtype)
    expected = model.encode_states(SENTENCES, tokenizer)
    assert cache[:].dtype == dtype
    assert cache[:].shape == expected.shape == (len(SENTENCES), len(model.pooler.states), 2, 32)
    np.testing.assert_array_equal(cache[:], expected.astype(dtype))
    pooled = model.pool_states(torch.from_numpy(cache[:]))
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    torch.testing.assert_close(pooled, torch.from_numpy(model.encode(SENTENCES, tokenizer)), atol=tolerance, rtol=0)


def test_each_distinct_text_is_computed_once_and_read_ever_after(counted, tokenizer, tmp_path):
    model, calls = counted
    texts = ["a cat", "a dog", "a cat", "a tree", "a dog"]
    cache = cached_states(model, texts, tokenizer, tmp_path)
    assert calls == [3]
    np.testing.assert_array_equal(cache[0], cache[2])
    np.testing.assert_array_equal(cache[[1, 4]], cache[[4, 1]])
    again = cached_states(model, texts, tokenizer, tmp_path)
    assert calls == [3]
    np.testing.assert_array_equal(again[:], cache[:])
    assert len(list(tmp_path.iterdir())) == 1


def changed_weight(model, tokenizer):
    model.bert.embeddings.word_embeddings.weight.data[7, 0] += 1e-3


def changed_option(model, tokenizer):
    model.config.hidden_act = "relu"


def changed_length(model, tokenizer):
    tokenizer.model_max_length = 4


def changed_dtype(model, tokenizer):
    model.bfloat16()


@pytest.mark.parametrize("change", [changed_weight, changed_option, changed_length, changed_dtype])
def test_states_of_another_encoder_or_other_tokens_are_never_read(counted, tokenizer, tmp_path, change):
    model, calls = counted
    texts = ["the cat sleeps near the tree", "a dog"]
    cached_states(model, texts, tokenizer, tmp_path)
    change(model, tokenizer)
    cached_states(model, texts, tokenizer, tmp_path)
    assert calls == [2, 2]


@pytest.mark.parametrize("texts", [["a cat", "a tree"], ["a dog", "a cat"], ["a cat"], [("a cat", "a dog")]])
def test_states_of_other_texts_are_never_read(counted, tokenizer, tmp_path, texts):
    model, calls = counted
    cached_states(model, ["a cat", "a dog"], tokenizer, tmp_path)
    cached_states(model, texts, tokenizer, tmp_path)
    assert calls == [2, len(texts)]


def test_poolers_that_read_the_same_states_share_them(counted, tiny_model, tokenizer, tmp_path):
    model, _ = counted
    cached_states(model, ["a cat"], tokenizer, tmp_path)
    other = tiny_model(pooler_type="weighted_layers", pooler_residual="mean")
    other.bert.load_state_dict(model.bert.state_dict())
    cached_states(other, ["a cat"], tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    cached_states(tiny_model(pooler_type="mean"), ["a cat"], tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_was_cut_short_is_computed_again(counted, tokenizer, tmp_path):
    model, calls = counted
    expected = cached_states(model, SENTENCES, tokenizer, tmp_path)[:]
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    np.testing.assert_array_equal(cached_states(model, SENTENCES, tokenizer, tmp_path)[:], expected)
    assert len(calls) == 2


def test_a_full_disk_is_one_sentence_before_anything_is_computed(counted, tokenizer, tmp_path, monkeypatch):
    model, calls = counted
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**19))
    texts = [f"a cat sees {number}" for number in range(2000)]
    with pytest.raises(
        InputError, match=r"states of 2,000 texts \(1.0 MiB\) do not fit \(0.5 MiB are free\); name another"
    ):
        cached_states(model, texts, tokenizer, tmp_path / "new")
    assert calls == []
    assert not (tmp_path / "new").exists()


def test_an_interrupted_computation_leaves_nothing(counted, tokenizer, tmp_path):
    model, _ = counted

    def fail(*args):
        raise KeyboardInterrupt

    model.encode_states_of_token_ids = fail
    with pytest.raises(KeyboardInterrupt):
        cached_states(model, ["a cat"], tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_values_beyond_float16_are_refused_with_the_fix(tiny_model, tokenizer, tmp_path):
    model = tiny_model(pooler_type="mean")
    model.bert.encoder.layer[-1].output.LayerNorm.weight.data *= 1e5
    with pytest.raises(InputError, match="not finite in float16; use float32"):
        cached_states(model, ["a cat"], tokenizer, tmp_path)
    assert np.isfinite(cached_states(model, ["a cat"], tokenizer, tmp_path, dtype="float32")[:]).all()


def test_a_pooler_that_reads_every_token_has_no_states(tiny_model, tokenizer, tmp_path):
    with pytest.raises(InputError, match="pooler_type=hire reads every token"):
        cached_states(tiny_model(pooler_type="hire"), ["a cat"], tokenizer, tmp_path)


def test_a_pickled_cache_does_not_hold_the_states(tiny_model, tokenizer, tmp_path):
    cache = cached_states(tiny_model(), SENTENCES * 40, tokenizer, tmp_path)
    assert cache.states.nbytes > 1000
    data = pickle.dumps(StateCache(cache.path, [0, 1]))
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[:], cache[:2])


def test_scikit_learn_fits_the_states(tiny_model, tokenizer, tmp_path):
    texts = [f"the {animal} {verb}" for animal in ("cat", "dog") for verb in ("sleeps", "eats", "sees", "jumps")]
    labels = [text.split()[1] for text in texts]
    states = cached_states(tiny_model(), texts, tokenizer, tmp_path)[:]
    classifier = LogisticRegression(C=100).fit(states.reshape(len(texts), -1), labels)
    assert classifier.score(states.reshape(len(texts), -1), labels) == 1


def test_the_checksum_of_an_encoder_leaves_out_its_head_and_the_layers_above(tiny_model):
    model, below = tiny_model(), tiny_model(pooler_layers=[0, 2])
    below.bert.load_state_dict(model.bert.state_dict(), strict=False)
    below.pooler.query.weight.data += 1
    assert encoder_checksum(below) == encoder_checksum(model, 2) != encoder_checksum(model)
    below.bert.encoder.layer[1].attention.self.query.weight.data[0, 0] += 1e-3
    assert encoder_checksum(below) != encoder_checksum(model, 2)
