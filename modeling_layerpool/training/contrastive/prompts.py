"""Prompts of a contrastive run: the text that goes before each column, and the prompts that the model keeps."""

import json
from collections.abc import Mapping, Sequence

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ...common.errors import InputError
from ...common.prompts import DOCUMENT, QUERY, prompts_of
from ...common.rows import check_unicode, parse_json, shown
from ..batching import text_id


NO_PROMPTS = "none"


def parse_prompts(given: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """
    Prompts by column, from `NAME=TEXT` words, from the one word `none`, or from a mapping (in Python, or in YAML and
    JSON files, from where it comes as JSON). Raises an `InputError` for a word of another form and for an empty text.
    """
    if list(given) == [NO_PROMPTS]:
        return {}
    if not isinstance(given, Mapping) and len(given) == 1 and given[0].startswith("{"):
        given = parse_json(given[0], "prompts")
    if isinstance(given, Mapping):
        items = list(given.items())
    else:
        items = [word.partition("=")[::2] for word in given]
        wrong = next((word for word in given if "=" not in word), None)
        if wrong is not None:
            raise InputError(f"prompts: {shown(wrong)} must be NAME=TEXT, such as anchor='query: '")
    prompts: dict[str, str] = {}
    for column, text in items:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"prompts: the prompt of {shown(column)} must be a text, got {shown(text)}; leave it out")
        if column in prompts:
            raise InputError(f"prompts: {shown(column)} is given twice")
        prompts[column] = check_unicode(text, "prompts", column)
    return prompts


def prompts_by_column(prompts: Mapping[str, str], columns: Sequence[str]) -> dict[str, str]:
    """
    The prompt of each column that has one. All negatives have the prompt `negative`, or that of the positives: without
    it, a negative could be told from a positive by its prompt alone.

    Raises:
        InputError: a prompt is for a column that is not read.
    """
    negatives = [column for column in columns if column.startswith("negative")]
    known = list(dict.fromkeys([*columns, *(["negative"] if negatives else [])]))
    unread = next((column for column in prompts if column not in known), None)
    if unread is not None:
        raise InputError(f"prompts: the column {shown(unread)} is not read; the columns here are {', '.join(known)}")
    shared = prompts.get("negative", prompts.get("positive", ""))
    by_column = {column: prompts.get(column, shared if column in negatives else "") for column in columns}
    return {column: prompt for column, prompt in by_column.items() if prompt}


def kept_prompts(by_column: Mapping[str, str], columns: Sequence[str]) -> tuple[dict[str, str] | None, str | None]:
    """
    The prompts that a model keeps, and the name of its default one: `query` is the prompt of the first column, and
    `document` that of the second. If both are the same, or there is one column only, it is the default prompt, too.
    """
    if not by_column:
        return None, None
    first, second = (by_column.get(column, "") for column in (*columns, *columns)[:2])
    return {QUERY: first, DOCUMENT: second}, QUERY if first == second else None


class RunPrompts:
    """
    The prompts of a run, known once its columns are: those of `args.prompts`, or else those that the model has.

    Attributes:
        by_column: the prompt of each column that has one.
        leading: with prompts, the number of tokens before the text of each column, special ones included. The space
            at the end of a prompt may be a part of the text's first token, and does not count.
        left_out: the number of tokens of each column that the means of the pooler leave out, if they leave out any.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments):
        self.model, self.tokenizer, self.args = model, tokenizer, args
        self.by_column: dict[str, str] = {}
        self.leading: dict[str, int] = {}
        self.left_out: dict[str, int] = {}

    def choose(self, columns: Sequence[str]) -> None:
        """
        Set the prompts of the columns, and those that the model keeps.

        Raises:
            InputError: a prompt is for a column that is not read, or leaves no token for the text, or `include_prompt`
                does not fit the model.
        """
        config, args = self.model.config, self.args
        if args.prompts is None:
            self.by_column = self._of_model(columns)
        else:
            self.by_column = prompts_by_column(args.prompts, columns)
            config.prompts, config.default_prompt_name = kept_prompts(self.by_column, columns)
        if args.include_prompt is not None:
            if not self.by_column:
                raise InputError("include_prompt does nothing without prompts; leave it out")
            config.include_prompt = args.include_prompt
            try:
                config.validate_architecture()
            except ValueError as error:
                raise InputError(str(error)) from error
        if not self.by_column:
            return
        lengths = {name: self._length(prompt) for name, prompt in self.by_column.items()}
        self.leading = {name: self._length(self.by_column.get(name, "").rstrip()) for name in dict.fromkeys(columns)}
        if not config.include_prompt:
            self.left_out = lengths

    def _of_model(self, columns: Sequence[str]) -> dict[str, str]:
        prompts = prompts_of(self.model.config)
        if columns[0] == "anchor":
            by_column = dict.fromkeys(columns, prompts.documents) | {"anchor": prompts.queries}
        else:
            by_column = dict.fromkeys(columns, prompts.sentences)
        return {column: prompt for column, prompt in by_column.items() if prompt}

    def _length(self, prompt: str) -> int:
        length, limit = self.model.prompt_length(prompt, self.tokenizer), self.tokenizer.model_max_length
        if length + 1 >= limit:
            raise InputError(
                f"prompts: {shown(prompt)} takes {length} of the {limit} tokens of a text, and leaves none for the "
                "text itself; raise max_seq_length"
            )
        return length

    def text_ids(self, dataset: Dataset, column: str) -> list[int | None]:
        """The identities of the tokenized texts of a column, without their prompts; None where a row has no text."""
        leading = self.leading.get(column, 0)
        return [None if ids is None else text_id(ids[leading:]) for ids in dataset[f"{column}_input_ids"]]

    def lengths(self, column: str, texts: int) -> list[int] | None:
        """The `prompt_lengths` of some texts of a column for `encode_token_ids`."""
        return [self.left_out[column]] * texts if column in self.left_out else None

    def check_chosen(self) -> None:
        """Raise an `InputError` for prompts that were given where no rows are read."""
        if not self.leading and (self.args.prompts or self.args.include_prompt is not None):
            raise InputError("prompts and include_prompt do nothing without rows to train or evaluate on")

    def settings(self) -> dict[str, str]:
        """The prompts in words, for the plan of a run and for the model card; nothing if there are none."""
        if not self.by_column:
            return {}
        texts = [f"{name} {json.dumps(text, ensure_ascii=False)}" for name, text in self.by_column.items()]
        others = "; none for other texts" if self.model.config.default_prompt_name is None else ""
        left_out = "; left out of the token means" if self.left_out else ""
        return {"prompts": ", ".join(texts) + others + left_out}
