"""The files of examples/recipes/: each trains, with a tiny encoder and a file of rows in place of the Hub's."""

import runpy

import pytest
import yaml

from modeling_layerpool.common.checkpoints import load_layerpool
from tests.files import write_rows
from tests.processes import ROOT, flags
from tests.training.conftest import triplets


RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(recipe, tiny_folder, tmp_path, monkeypatch):
    options = yaml.safe_load(recipe.read_text())
    assert options.pop("dataset_name") == ["sentence-transformers/all-nli:triplet"]
    options["train_file"] = str(write_rows(tmp_path / "rows.jsonl", triplets(16)))
    options["model_name_or_path"] = str(tiny_folder)
    options["teacher"] = [name if name == "self" else str(tiny_folder) for name in options["teacher"]]
    options["output_dir"] = str(tmp_path / "out")
    if "embedding_cache_dir" in options:
        options["embedding_cache_dir"] = str(tmp_path / "embeddings")
    if "pooler_layers" in options:
        options["pooler_layers"] = [0, 1]
    arguments = tmp_path / "recipe.yaml"
    arguments.write_text(yaml.safe_dump(options))
    small = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True}
    if "group_size" in options:
        small["group_size"] = 2
    script = str(ROOT / "run_contrastive.py")
    monkeypatch.setattr("sys.argv", [script, str(arguments), *flags(small)])
    runpy.run_path(script, run_name="__main__")
    model, tokenizer = load_layerpool(tmp_path / "out")
    assert model.encode(["a text"], tokenizer).shape == (1, 32)
