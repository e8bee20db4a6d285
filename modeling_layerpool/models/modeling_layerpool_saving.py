"""Saving with all that transformers and sentence-transformers need to open the folder, and the push to the Hub."""

import contextlib
import json
import os
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

_SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
        "unpad_inputs": False,
    },
}
_PROMPTS_FILE = "config_sentence_transformers.json"


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
        """
        Save as usual, and add the small files that sentence-transformers needs to open the folder, and those of the
        prompts if the model has any.
        """
        # super() would upload before these files exist. `push_to_hub` saves once more, and uploads all files.
        names = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
        hub = {name: kwargs.pop(name) for name in names if push_to_hub and name in kwargs}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return
        for name, content in (_SENTENCE_TRANSFORMERS_FILES | self._pooling_files()).items():
            _write_json(os.path.join(save_directory, name), content)
        self._save_prompts(os.path.join(save_directory, _PROMPTS_FILE))
        if push_to_hub:
            hub.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(**hub, token=kwargs.get("token"))

    def _save_prompts(self, path: str) -> None:
        """Write the prompts where sentence-transformers reads them, and keep its other settings in that file."""
        content = {}
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file, contextlib.suppress(ValueError):  # a broken file is replaced
                content = json.load(file)
            if "__version__" in content:  # sentence-transformers is saving this model, with its own prompts
                return
        settings = {"prompts": self.config.prompts, "default_prompt_name": self.config.default_prompt_name}
        content = {name: value for name, value in content.items() if name not in settings}
        if self.config.prompts:
            content |= settings
        if content:
            _write_json(path, content)
        elif os.path.isfile(path):
            os.remove(path)  # of a model with prompts that was saved here before

    def _pooling_files(self) -> dict[str, Any]:
        """
        The files with which sentence-transformers leaves the prompt out of the mean: its own Pooling in place of our
        pooler, which it cannot tell the length of the prompt.
        """
        if self.config.include_prompt:
            return {}
        if self.config.pooler_type != "mean" or self.embedding_dim != self.config.hidden_size:
            logger.warning_once(
                "sentence-transformers counts the tokens of a prompt in the embeddings of this folder, in spite of "
                "include_prompt=False: it can leave them out for pooler_type='mean' only. `encode` leaves them out."
            )
            return {}
        pooling = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
        transformer = dict(_SENTENCE_TRANSFORMERS_FILES["sentence_bert_config.json"])
        transformer["modality_config"] = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
        transformer["module_output_name"] = "token_embeddings"
        return {
            "modules.json": [*_SENTENCE_TRANSFORMERS_FILES["modules.json"], pooling],
            "sentence_bert_config.json": transformer,
            os.path.join("1_Pooling", "config.json"): {
                "word_embedding_dimension": self.config.hidden_size,
                "pooling_mode_mean_tokens": True,
                "include_prompt": False,
            },
        }


def _write_json(path: str, content: Any) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
