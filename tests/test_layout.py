"""The layout of the package: nothing imports upwards, and documented imports keep working when a module moves."""

import ast
import importlib
from pathlib import Path

import pytest

import modeling_layerpool


PACKAGE = Path(modeling_layerpool.__file__).parent
# From the bottom to the top. Each may import itself and what is below it.
LAYERS = ("models", "common", "training", "evaluation", "publishing")


def imported_modules(path):
    """Absolute names of the modules of this package that a file imports, those inside functions included."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            yield node.module


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_imports_upwards(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    files = list((PACKAGE / layer).rglob("*.py"))
    assert files
    for path in files:
        for name in imported_modules(path):
            assert name.split(".")[1] not in above, f"{path.relative_to(PACKAGE)} imports {name}"


@pytest.mark.parametrize("layer", ["evaluation", "publishing"])
def test_evaluation_and_publishing_import_nothing_of_the_training(layer):
    """An evaluation knows an encoder, and a card is made from the facts that a trainer returns."""
    for path in (PACKAGE / layer).rglob("*.py"):
        for name in imported_modules(path):
            assert name.split(".")[1] != "training", f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("checkpoints", "load_layerpool"),
        ("errors", "InputError"),
        ("modeling_layerpool_packing", "pack_sentences"),
        ("publishing.plots", "EvaluationPlots"),
        ("training.losses", "info_nce"),
        ("training.mlm", "MaskedLanguageTrainer"),
        ("training.classification", "ClassificationTrainer"),
        ("training.contrastive", "SupervisedObjective"),
        ("training.neighbours", "FaissSearch"),
        ("training.objective", "EmbeddedBatch"),
        ("training.pairwise", "PairwiseObjective"),
    ],
)
def test_documented_imports_from_before_a_module_moved_still_work(module, name):
    assert hasattr(importlib.import_module(f"modeling_layerpool.{module}"), name)
