"""A piece of each text: which tokens it keeps, and that the same key draws the same one."""

import pytest
import torch
from datasets import Dataset

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training.cropping import Cropping
from tests.training.conftest import triplets


CLS, SEP, PROMPT = 2, 3, 50
SPECIAL = (0, CLS, SEP)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_a_piece_is_consecutive_tokens_of_that_share_between_the_special_ones(share, count):
    own = list(range(100, 100 + count))
    seen = set()
    for key in range(50):
        [piece] = Cropping(share, SPECIAL)([[CLS, *own, SEP]], [key])
        assert (piece[0], piece[-1]) == (CLS, SEP)
        inner = piece[1:-1]
        assert len(inner) == max(1, round(share * count))
        assert inner == own[inner[0] - 100 :][: len(inner)]
        seen.add(inner[0])
    places = count - max(1, round(share * count)) + 1
    assert seen <= set(range(100, 100 + places))
    assert len(seen) > 1 or places == 1


def test_the_tokens_of_a_prompt_stay():
    cropping = Cropping(0.5, SPECIAL)
    text = [CLS, PROMPT, PROMPT + 1, *range(100, 110), SEP]
    for key in range(20):
        [piece] = cropping([text], [key], leading=3)
        assert piece[:3] == text[:3]
        assert len(piece) == 3 + 5 + 1


def test_texts_without_own_or_special_tokens_stay_valid():
    assert Cropping(0.5, SPECIAL)([[CLS, SEP], [100, 101]], [0])[0] == [CLS, SEP]
    assert len(Cropping(0.5, SPECIAL)([[100, 101]], [0])[0]) == 1


def test_the_same_key_draws_the_same_pieces_and_another_one_others():
    texts = [[CLS, *range(100, 140), SEP] for _ in range(8)]
    cropping = Cropping(0.5, SPECIAL, seed=1)
    assert cropping(texts, [1, 2]) == cropping(texts, [1, 2])
    assert cropping(texts, [1, 2]) != cropping(texts, [1, 3])
    assert cropping(texts, [1, 2]) != Cropping(0.5, SPECIAL, seed=2)(texts, [1, 2])


def test_the_second_view_of_a_text_is_cropped_and_its_identity_is_that_of_the_whole(make_trainer):
    texts = Dataset.from_dict({"text": [row["anchor"] for row in triplets(8)]})
    trainer = make_trainer(train_dataset=texts, objective="unsupervised", crop=0.5, max_steps=2)
    rows = [trainer.train_dataset[i] for i in range(4)]
    batch = trainer.data_collator(rows)
    assert torch.equal(batch["text_ids"][:, 0], batch["text_ids"][:, 1])
    ids, owner = batch["input_ids"].flatten(), batch["sequence_ids"].flatten()
    for index, row in enumerate(rows):
        whole, piece = (ids[owner == 2 * index + view].tolist() for view in (0, 1))
        assert whole == row["text_input_ids"]
        assert len(piece) == 2 + max(1, round(0.5 * (len(whole) - 2)))
    trainer.train()
    assert "a piece of 50% of the tokens" in trainer.card_facts().settings["second view"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "unsupervised", "crop": 0.0}, "crop=0.0 must be above 0 and at most 1"),
        ({"crop": 0.5}, "crop does nothing with objective=supervised"),
    ],
)
def test_a_crop_without_sense_is_one_sentence(make_trainer, options, message):
    with pytest.raises(InputError, match=message):
        make_trainer(**options)
