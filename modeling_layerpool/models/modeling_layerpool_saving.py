"""Saving with all that transformers and sentence-transformers need to open the folder, and the push to the Hub."""

import json
import os
from typing import Any


_SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
        "unpad_inputs": False,
    },
}


class SavingMixin:
    """Saves a model with its code. Comes before the class of transformers."""

    @property
    def auto_map(self) -> dict[str, str]:
        """The classes with which the auto classes open a saved folder: every save names all models of the encoder."""
        stem = self.config_class.__name__.removesuffix("Config")
        module = self.config_class.__module__.rpartition(".")[2]
        models = module.replace("configuration", "modeling", 1)
        return {
            "AutoConfig": f"{module}.{stem}Config",
            "AutoModel": f"{models}.{stem}Model",
            "AutoModelForSequenceClassification": f"{models}.{stem}ForSequenceClassification",
        }

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as usual, with the code, and with all that the auto classes need to open any of our models."""
        self.config.projection_dim = self.embedding_dim  # sentence-transformers reads the width from here
        self.config.auto_map = self.auto_map
        super().save_pretrained(save_directory, *args, **kwargs)


class SentenceTransformersFilesMixin:
    """Adds the files of sentence-transformers. Comes before [`SavingMixin`]."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as usual, and add the two small files that sentence-transformers needs to open the folder."""
        # super() would upload before these files exist. `push_to_hub` saves once more, and uploads all files.
        names = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
        hub = {name: kwargs.pop(name) for name in names if push_to_hub and name in kwargs}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return
        for name, content in _SENTENCE_TRANSFORMERS_FILES.items():
            with open(os.path.join(save_directory, name), "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
                file.write("\n")
        if push_to_hub:
            hub.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(**hub, token=kwargs.get("token"))
