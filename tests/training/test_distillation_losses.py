"""Distillation, and the mask of a guide, against slow float64 references that follow the formulas term by term."""

import pytest
import torch

from modeling_layerpool.training import info_nce, loss_kernels
from modeling_layerpool.training.distillation_losses import distill_similarities, distill_vectors
from tests.training.test_losses import cosine, same_values_and_gradients


def unit_vectors(count, width, seed):
    drawn = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


@pytest.fixture
def student():
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 6), (9, 6))
    return [torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


@pytest.fixture
def teacher():
    return [unit_vectors(4, 5, seed=1), unit_vectors(9, 5, seed=2)]


TEXT_IDS = [torch.tensor([7, 8, 9, 10]), torch.tensor([8, 1, 2, 7, 7, 3, 4, 5, 6])]


def divergence_reference(queries, candidates, teacher_queries, teacher_candidates, text_ids, temperature):
    """KL(teacher || student) of each row over the candidates with another text, one number at a time."""
    total = 0
    for i, query in enumerate(queries):
        kept = [j for j in range(len(candidates)) if text_ids is None or text_ids[0][i] != text_ids[1][j]]
        ours = torch.stack([torch.exp(cosine(query, candidates[j]) / temperature) for j in kept])
        theirs = [torch.exp(cosine(teacher_queries[i], teacher_candidates[j]) / temperature) for j in kept]
        for own, goal in zip(ours / ours.sum(), theirs, strict=True):
            goal = goal / sum(theirs)
            total = total + goal * torch.log(goal / own)
    return total / len(queries)


def error_reference(queries, candidates, teacher_queries, teacher_candidates, text_ids):
    total = 0
    for i, query in enumerate(queries):
        kept = [j for j in range(len(candidates)) if text_ids is None or text_ids[0][i] != text_ids[1][j]]
        errors = [
            (cosine(query, candidates[j]) - cosine(teacher_queries[i], teacher_candidates[j])) ** 2 for j in kept
        ]
        total = total + sum(errors) / len(kept)
    return total / len(queries)


@pytest.mark.parametrize("block", [1, 12, 10_000])
@pytest.mark.parametrize("text_ids", [None, TEXT_IDS])
def test_the_divergence_of_the_rows_equals_the_formula(student, teacher, text_ids, block, monkeypatch):
    monkeypatch.setattr(loss_kernels, "BLOCK_LOGITS", block)
    fast = distill_similarities(*student, *teacher, *(text_ids or ()), temperature=0.2)
    slow = divergence_reference(*student, *teacher, text_ids, 0.2)
    same_values_and_gradients(fast, slow, student)


@pytest.mark.parametrize("block", [1, 12, 10_000])
@pytest.mark.parametrize("text_ids", [None, TEXT_IDS])
def test_the_squared_error_of_the_cosines_equals_the_formula(student, teacher, text_ids, block, monkeypatch):
    monkeypatch.setattr(loss_kernels, "BLOCK_LOGITS", block)
    fast = distill_similarities(*student, *teacher, *(text_ids or ()), temperature=None)
    same_values_and_gradients(fast, error_reference(*student, *teacher, text_ids), student)


def test_the_distance_of_the_vectors_equals_the_formula():
    student = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = unit_vectors(5, 4, seed=1)
    slow = sum(((own / own.norm() - goal) ** 2).sum() for own, goal in zip(student, teacher, strict=True)) / 5
    same_values_and_gradients(distill_vectors(student, teacher), slow, [student])


@pytest.mark.parametrize("temperature", [0.05, None])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(teacher, temperature):
    student = [embeddings.clone().requires_grad_() for embeddings in teacher]
    loss = distill_similarities(*student, *teacher, *TEXT_IDS, temperature=temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert all(embeddings.grad.abs().max() < 1e-12 for embeddings in student)


@pytest.mark.parametrize("temperature", [0.05, None])
def test_a_row_that_has_nothing_to_be_compared_with_adds_nothing(student, teacher, temperature):
    """All texts of the batch are the same text."""
    same = [torch.zeros(len(embeddings), dtype=torch.long) for embeddings in student]
    loss = distill_similarities(*student, *teacher, *same, temperature=temperature)
    loss.backward()
    assert loss.item() == 0
    assert all(embeddings.grad.abs().max() == 0 for embeddings in student)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("negatives", [0, 2])
def test_texts_that_the_guide_finds_nearer_than_the_positive_are_no_negatives(negatives, margin, symmetric):
    generator = torch.Generator().manual_seed(3)
    rows, width, temperature = 5, 6, 0.1
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()  # noqa: E731
    anchors, positives, further = make(rows, width), make(rows, width), make(rows, negatives, width)
    guide_anchors, guide_columns = unit_vectors(rows, 4, 5), unit_vectors(rows * (1 + negatives), 4, 6)
    columns = torch.cat([positives, further.flatten(0, 1)])

    def row_loss(query, candidates, own, of_query, of_candidates):
        limit = guide_anchors[own] @ guide_columns[own] - margin
        kept = [j for j in range(len(candidates)) if j == own or of_query @ of_candidates[j] <= limit]
        terms = {j: torch.exp(cosine(query, candidates[j]) / temperature) for j in kept}
        return -torch.log(terms[own] / sum(terms.values())), len(kept) < len(candidates)

    slow, masks = 0, []
    for i in range(rows):
        loss, masked = row_loss(anchors[i], columns, i, guide_anchors[i], guide_columns)
        masks.append(masked)
        if symmetric:
            loss = (loss + row_loss(positives[i], anchors, i, guide_columns[i], guide_anchors)[0]) / 2
        slow = slow + loss / rows
    assert any(masks)
    fast = info_nce(
        *(anchors, positives, further if negatives else None),
        temperature=temperature,
        symmetric=symmetric,
        guide_anchors=guide_anchors,
        guide_columns=guide_columns,
        guide_margin=margin,
    )
    same_values_and_gradients(fast, slow, [anchors, positives, *([further] if negatives else [])])
