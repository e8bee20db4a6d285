import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation import (
    alignment,
    effective_rank,
    evaluate_geometry,
    geometry,
    isotropy,
    mean_cosine,
    spectrum,
    top_direction_share,
    uniformity,
)
from tests.evaluation.data import VectorEncoder


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
    # around their mean (0, 1/3) the texts have the variance 2/3 along one axis and 2/9 along the other
    shares = np.array([math.sqrt(3), 1]) / (math.sqrt(3) + 1)
    assert once == pytest.approx(
        {
            "alignment": 2.0,
            "uniformity": math.log((2 * math.exp(-4) + math.exp(-8)) / 3),
            "mean_cosine": -1 / 3,
            "effective_rank": math.exp(-(shares * np.log(shares)).sum()),
            "top_direction_share": 0.75,
            "isotropy": 0.6,
        }
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


def of_spectrum(embeddings):
    values = spectrum(embeddings)
    return effective_rank(values), top_direction_share(values), isotropy(values)


def random_embeddings(rows, width, seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, width)) * random.uniform(0.1, 2, size=width) + random.normal(size=width)


def iso_score(variances):
    """The steps of the paper, one after the other, from the variances along the principal directions."""
    d = len(variances)
    normalized = math.sqrt(d) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(normalized - 1) / math.sqrt(2 * (d - math.sqrt(d)))
    dimensions = (d - defect**2 * (d - math.sqrt(d))) ** 2 / d**2
    return (d * dimensions - 1) / (d - 1)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(3, 30), width=st.integers(2, 12), seed=st.integers(0, 1000))
def test_the_spectrum_is_that_of_the_covariance(rows, width, seed):
    embeddings = random_embeddings(rows, width, seed)
    normalized = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    variances = np.linalg.eigvalsh(np.cov(normalized.T, bias=True))[::-1].clip(min=0)
    variances[min(rows - 1, width) :] = 0  # of rounding
    values = spectrum(embeddings)
    assert values.dtype == np.float64
    assert values.shape == (width,)
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values**2 / rows, variances, atol=1e-10)
    deviations = np.sqrt(variances[variances > 0])
    shares = deviations / deviations.sum()
    assert effective_rank(values) == pytest.approx(math.prod(shares**-shares), rel=1e-4)
    assert top_direction_share(values) == pytest.approx(variances[0] / variances.sum())
    assert isotropy(values) == pytest.approx(iso_score(variances), abs=1e-8)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(3, 30),
    width=st.integers(2, 12),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_rotation_scale_and_order_leave_the_spectrum_as_it_is(rows, width, scale, seed):
    random = np.random.default_rng(seed)
    embeddings = random_embeddings(rows, width, seed)
    rotation, _ = np.linalg.qr(random.normal(size=(width, width)))
    moved = scale * random.uniform(0.5, 2, size=(rows, 1)) * random.permutation(embeddings) @ rotation
    np.testing.assert_allclose(spectrum(moved), spectrum(embeddings), atol=1e-9)


def test_isotropy_runs_from_1_over_all_directions_to_0_along_one():
    axes = np.concatenate([np.eye(4), -np.eye(4)])
    assert of_spectrum(axes) == pytest.approx((4, 1 / 4, 1))
    assert of_spectrum(np.array([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx((1, 1, 0))
    # two of four directions: IsoScore's (2 - 1) / (4 - 1)
    assert of_spectrum(axes[[0, 1, 4, 5]]) == pytest.approx((2, 1 / 2, 1 / 3))


def test_the_mean_of_the_texts_is_no_direction():
    axes = np.concatenate([np.eye(4), -np.eye(4)])
    shifted = np.concatenate([axes, np.full((8, 1), 5.0)], axis=1)
    assert top_direction_share(spectrum(shifted)) == pytest.approx(1 / 4)


@pytest.mark.parametrize("embeddings", [np.ones((1, 3)), np.zeros((0, 0)), np.full((7, 3), 0.1)])
def test_without_any_spread_nothing_of_the_spectrum_is_defined(embeddings):
    assert not spectrum(embeddings).any()
    assert all(math.isnan(value) for value in of_spectrum(embeddings))


def test_rounding_is_no_spread():
    noise = 1 + 1e-7 * np.random.default_rng(0).normal(size=(50, 8))
    assert not spectrum(noise.astype(np.float32)).any()


def test_a_space_of_one_dimension_has_no_isotropy():
    values = of_spectrum(np.array([[1.0], [-1.0]]))
    assert values[:2] == pytest.approx((1, 1))
    assert math.isnan(values[2])


def test_a_collapsed_encoder_has_a_geometry_but_no_spectrum():
    result = evaluate_geometry(VectorEncoder({"a": [1, 2], "b": [1, 2]}), ["a"], ["b"], ["a", "b"])
    defined = {name for name, value in result.items() if not math.isnan(value)}
    assert defined == {"alignment", "uniformity", "mean_cosine"}
