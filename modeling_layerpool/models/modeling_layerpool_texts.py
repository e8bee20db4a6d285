"""From sentences to token ids: the tokenizer that came with a model, and the prompts in its configuration."""

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase


# The arguments of `from_pretrained` that say which files are read. A token is not kept with a model.
_SOURCE_OPTIONS = ("revision", "subfolder", "cache_dir", "local_files_only")


class TextMixin:
    """
    The tokenizer and the prompts of a model. Comes before the class of transformers.

    Attributes:
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The tokenizer that `encode` uses if it is given none. `load_layerpool` sets it; otherwise it is loaded from
            where the model came from when it is first needed. It is not saved with the model.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    _source_options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any):
        """As in transformers. The model remembers the revision, from which its tokenizer has to come too."""
        result = super().from_pretrained(*args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        model._source_options = {name: kwargs[name] for name in _SOURCE_OPTIONS if name in kwargs}
        return result

    def own_tokenizer(self) -> PreTrainedTokenizerBase:
        """
        The tokenizer that came with the model: `tokenizer` if it is set, else that of the folder or Hub repository
        that the model was opened from. Raises a `ValueError` if there is none.
        """
        if self.tokenizer is None:
            name, fix = self.config._name_or_path, "pass one: encode(sentences, tokenizer)"
            if not name:
                raise ValueError(f"This model was not opened from a checkpoint, and so has no tokenizer; {fix}.")
            try:
                # A model that may run its own code does not allow a tokenizer to.
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **self._source_options)
            except (OSError, ValueError) as error:
                reason = str(error).strip().split("\n")[0].rstrip(".")
                raise ValueError(f"{name}: its tokenizer could not be opened ({reason}); {fix}.") from error
            # Without tokenizer files, transformers returns a tokenizer that knows no words.
            if len(tokenizer) <= len(tokenizer.all_special_ids):
                raise ValueError(f"{name}: has no tokenizer; {fix}.")
            self.tokenizer = tokenizer
        return self.tokenizer

    def find_prompt(self, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """
        The text that goes before each sentence: `prompt`, or the one of the configuration with this name, or its
        default one. Raises a `ValueError` for both at once and for an unknown name.
        """
        if prompt is not None and prompt_name is not None:
            raise ValueError("Pass a prompt or a prompt_name, not both.")
        if prompt is not None:
            return prompt
        name = self.config.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        prompts = self.config.prompts or {}
        if name not in prompts:
            known = f"those of this model are {', '.join(prompts)}" if prompts else "this model has no prompts"
            raise ValueError(f"prompt_name={name!r} is unknown: {known}.")
        return prompts[name]

    def prompt_length(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> int:
        """
        The number of tokens that a prompt takes at the beginning of a text, special tokens included, as in
        sentence-transformers: those of the prompt alone without a special token at its end.
        """
        [ids] = self.tokenize([prompt], tokenizer)["input_ids"]
        return len(ids) - (ids[-1] in tokenizer.all_special_ids)

    def tokenize(
        self,
        sentences: Sequence[str] | Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        prompt: str = "",
    ) -> dict[str, list[list[int]]]:
        """`input_ids` and, for pairs, `token_type_ids` if the encoder has them. The prompt goes before each text."""
        if prompt:
            sentences = [prompt + sentence for sentence in sentences]
        are_pairs = len(sentences) > 0 and not isinstance(sentences[0], str)
        return dict(
            tokenizer(
                *(map(list, zip(*sentences, strict=True)) if are_pairs else [list(sentences)]),
                truncation=True,
                max_length=min(tokenizer.model_max_length, self.max_tokens),
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=are_pairs and self.has_token_types,
                verbose=False,
            )
        )

    def _lengths_left_out(self, prompt: str, tokenizer: PreTrainedTokenizerBase, texts: int) -> list[int] | None:
        """The tokens at the beginning of each text that means leave out, or None if they leave out none."""
        if self.config.include_prompt or not prompt:
            return None
        return [self.prompt_length(prompt, tokenizer)] * texts
