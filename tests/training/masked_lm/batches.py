"""Packed blocks of made-up documents, and a collator for them, for the tests of token contrast."""

import torch
from datasets import Dataset


VOCABULARY = 60
PAD, CLS, MASK = 1, 2, 3  # padding is 1, as RoBERTa has it
LENGTH = 24


def blocks(count, seed=0):
    """Rows of `LENGTH` places, each with 1 to 3 documents that begin with a special token, and padding at the end."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(count):
        lengths = [[18], [9, 12], [6, 5, 7]][row % 3]
        ids, owners = [], []
        for document, length in enumerate(lengths):
            ids += [CLS, *torch.randint(4, VOCABULARY, (length - 1,), generator=generator).tolist()]
            owners += [document] * length
        padding = LENGTH - len(ids)
        rows.append(
            {"input_ids": ids + [PAD] * padding, "documents": owners + [-1] * padding, "row_number": row},
        )
    return Dataset.from_list(rows)


class Collator:
    """Masks 15 % of the content, the same tokens of a row each time."""

    def __init__(self, inside=False):
        self.inside = inside

    def __call__(self, rows):
        input_ids = torch.tensor([row["input_ids"] for row in rows])
        documents = torch.tensor([row["documents"] for row in rows])
        sequence_ids = torch.where(documents < 0, -1, documents + 3 * torch.arange(len(rows)).unsqueeze(1))
        content = (input_ids != PAD) & (input_ids != CLS)
        chosen = torch.stack(
            [torch.rand(LENGTH, generator=torch.Generator().manual_seed(row["row_number"])) < 0.15 for row in rows]
        )
        chosen &= content
        batch = {
            "input_ids": input_ids.masked_fill(chosen, MASK),
            "labels": input_ids.masked_fill(~chosen, -100),
            "sequence_ids": sequence_ids,
            "content": content,
            "row_numbers": [row["row_number"] for row in rows],
        }
        if not self.inside:
            return batch | {"attention_mask": (sequence_ids >= 0).long()}
        starts = torch.ones_like(content)
        starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
        place = torch.arange(LENGTH).expand_as(input_ids)
        return batch | {"position_ids": place - torch.where(starts, place, 0).cummax(dim=1).values}


def draw_by_rows(trainer):
    """Make the pairs of a batch depend on its rows, and on nothing that was drawn before."""
    compute_loss = trainer.compute_loss

    def seeded(model, inputs, *args, **kwargs):
        torch.manual_seed(inputs["row_numbers"][0])
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = seeded
