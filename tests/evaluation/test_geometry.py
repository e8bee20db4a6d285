import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_layerpool.errors import InputError
from modeling_layerpool.evaluation import alignment, evaluate_geometry, geometry, mean_cosine, uniformity

from .data import VectorEncoder


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(2, 40), width=st.integers(1, 8), block=st.integers(1, 17), seed=st.integers(0, 1000))
def test_blocks_give_what_the_full_matrix_gives(rows, width, block, seed):
    embeddings = np.random.default_rng(seed).normal(size=(rows, width))
    normalized = torch.nn.functional.normalize(torch.from_numpy(embeddings), dim=1)
    squared = torch.stack([(a - b).square().sum() for i, a in enumerate(normalized) for b in normalized[:i]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "BLOCK", block)
        assert uniformity(embeddings) == pytest.approx(squared.mul(-2).exp().mean().log().item(), abs=1e-9)
    assert mean_cosine(embeddings) == pytest.approx((1 - squared / 2).mean().item(), abs=1e-9)


def test_uniformity_runs_from_0_collapsed_to_minus_8_opposite():
    assert uniformity(np.ones((5, 3))) == pytest.approx(0)
    assert uniformity(np.array([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)


def test_alignment_is_the_mean_squared_distance_on_the_unit_sphere():
    first, second = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[5.0, 0.0], [0.0, -1.0]])
    assert alignment(first, second) == pytest.approx((0 + 4) / 2)


def test_a_repeated_text_counts_once():
    encoder = VectorEncoder({"a": [1, 0], "b": [0, 1], "c": [-1, 0]})
    once = evaluate_geometry(encoder, ["a"], ["b"], ["a", "b", "c"])
    again = evaluate_geometry(encoder, ["a"], ["b"], ["a", "a", "b", "c", "b", "c"])
    assert once == again
    assert once == pytest.approx(
        {"alignment": 2.0, "uniformity": math.log((2 * math.exp(-4) + math.exp(-8)) / 3), "mean_cosine": -1 / 3}
    )


def test_many_texts_are_represented_by_a_sample_that_repeats():
    texts = [str(number) for number in range(50)]
    encoder = VectorEncoder({text: [int(text), 1] for text in texts})
    results = [evaluate_geometry(encoder, [], [], texts, max_texts=10) for _ in range(2)]
    assert [len(call) for call in encoder.calls] == [10, 10]
    assert results[0]["uniformity"] == results[1]["uniformity"]


def test_what_is_not_defined_is_nan():
    result = evaluate_geometry(VectorEncoder({"a": [1, 0]}), [], [], ["a"])
    assert all(math.isnan(value) for value in result.values())


def test_sides_of_different_length_are_refused():
    with pytest.raises(InputError, match="2 and 1 texts do not make pairs"):
        evaluate_geometry(VectorEncoder({}), ["a", "b"], ["a"], ["a"])
