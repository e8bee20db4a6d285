"""The arguments of all scripts: one reader, one check of types and ranges."""

import json
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from modeling_layerpool.common.command_line import Range, check_arguments, check_used, read_arguments, write_arguments
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import ContrastiveTrainingArguments


@dataclass
class Arguments:
    RANGES: ClassVar = {"rate": Range(above=0, at_most=1), "steps": Range(at_least=1, or_equal_to=-1)}

    rate: float = 0.5
    steps: int = -1
    names: list[str] = field(default_factory=list)
    text: str | None = None

    def __post_init__(self):
        check_arguments(self)


@pytest.fixture
def read(monkeypatch):
    def start(*words):
        monkeypatch.setattr("sys.argv", ["script.py", *map(str, words)])
        [arguments] = read_arguments(Arguments, description="A script.")
        return arguments

    return start


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", 0.0, "rate=0.0 must be above 0 and at most 1"),
        ("rate", 1.5, "rate=1.5 must be above 0 and at most 1"),
        ("rate", float("nan"), "rate=nan must be a finite number"),
        ("rate", "0.5", "rate='0.5' must be a number"),
        ("steps", 0, "steps=0 must be at least 1, or -1"),
        ("steps", 2**40, "steps=1099511627776 is too large a number"),
        ("text", "a\0b", 'text="a\\\\u0000b" holds a character'),
        ("names", ["a", "\ud800"], 'names="\\\\ud800" holds a character'),
    ],
)
def test_a_value_outside_its_range_is_named_with_the_range(name, value, message):
    with pytest.raises(InputError, match=message):
        Arguments(**{name: value})


def test_the_bounds_themselves_are_allowed_where_the_range_says_so():
    assert Arguments(rate=1.0, steps=1).steps == 1
    assert Arguments(steps=-1).steps == -1


def test_an_option_without_effect_is_refused_unless_it_has_its_default():
    check_used(Arguments(), {"rate": False}, "without steps")
    with pytest.raises(InputError, match="rate does nothing without steps; leave it out"):
        check_used(Arguments(rate=0.1), {"rate": False}, "without steps")


def test_abbreviated_flags_are_refused(read, capsys):
    with pytest.raises((SystemExit, InputError)):
        read("--tex", "a")
    assert read("--text", "a").text == "a"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "a.json: expected names and values of arguments, got list"),
        ("a.json", '{"rate": ' + "[" * 100_000, "a.json: JSON that is nested too deeply"),
        ("a.yaml", "- " * 3000, "a.yaml: (YAML that is nested too deeply|expected|not valid YAML)"),
        ("a.yaml", "rate: 0.1\nrate: 0.2\n", "a.yaml: not valid YAML .*'rate' is given twice"),
        ("a.yaml", "rate: [0.1", "a.yaml: not valid YAML"),
        ("a.yaml", "names: [[a], [b]]", "a.yaml: names must be one value or a list of values"),
        ("a.yaml", "date: 2026-99-99", "a.yaml: not valid YAML"),
        ("a.yaml", "ratte: 1", "ratte"),
    ],
)
def test_a_broken_file_of_arguments_is_one_sentence(read, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_a_file_and_flags_give_the_same_arguments(read, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"rate": 0.25, "steps": 3, "names": ["x", "y"], "text": None}))
    (tmp_path / "a.yaml").write_text("rate: 0.25\nsteps: 3\nnames: [x, y]\n")
    expected = read("--rate", 0.25, "--steps", 3, "--names", "x", "y")
    assert read(tmp_path / "a.json") == read(tmp_path / "a.yaml") == expected


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_flags_after_a_file_replace_its_values_and_the_rest_stays(read, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps({"rate": 0.25, "steps": 3, "names": ["x", "y"], "text": "a"}))
    found = read(path, "--steps", 5, "--names=z", "--rate=0.5")
    assert found == Arguments(rate=0.5, steps=5, names=["z"], text="a")
    # The command that a model card shows needs no file.
    assert sys.argv[1:] == ["--text=a", "--steps", "5", "--names=z", "--rate=0.5"]


def test_a_list_that_flags_extend_is_replaced_as_a_whole_too(monkeypatch, tmp_path):
    @dataclass
    class Sets:
        sts: list[str] = field(default_factory=list, metadata={"action": "extend"})

    (tmp_path / "a.yaml").write_text("sts: [a, b]\n")
    monkeypatch.setattr("sys.argv", ["script.py", str(tmp_path / "a.yaml"), "--sts", "c", "--sts", "d"])
    assert read_arguments(Sets, description="A script.") == (Sets(sts=["c", "d"]),)


def test_what_was_given_can_be_written_and_read_again(read, tmp_path):
    first = read("--rate", 1e-5, "--names", "x", "-1", "--text", "no")
    assert first.given == {"rate": 1e-5, "names": ["x", "-1"], "text": "no"}
    write_arguments(first.given | {"hub_token": "hf_secret", "resume_from_checkpoint": "true"}, tmp_path / "b.yaml")
    assert read(tmp_path / "b.yaml") == first
    assert "hf_secret" not in (tmp_path / "b.yaml").read_text()
    assert "checkpoint" not in (tmp_path / "b.yaml").read_text()


def test_an_alias_and_a_flag_that_turns_off_replace_the_value_of_a_file_and_are_given(monkeypatch, tmp_path):
    @dataclass
    class Columns:
        columns: list[str] = field(default_factory=list, metadata={"aliases": ["--text_columns"], "action": "extend"})
        masks: bool = True

    (tmp_path / "a.yaml").write_text("columns: [a]\nmasks: true\n")
    monkeypatch.setattr("sys.argv", ["script.py", str(tmp_path / "a.yaml"), "--text_columns", "b", "--no-masks"])
    [found] = read_arguments(Columns, description="A script.")
    assert found == Columns(columns=["b"], masks=False)
    assert found.given == {"columns": ["b"], "masks": False}


def test_no_in_a_yaml_file_is_a_word(read, tmp_path):
    """YAML 1.1 takes it for a boolean, which `save_strategy: no` does not mean."""
    (tmp_path / "a.yaml").write_text("text: no\n")
    assert read(tmp_path / "a.yaml").text == "no"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ratte", "1"], "--ratte: unknown argument; did you mean --rate?"),
        (["--ratte=1"], "--ratte: unknown argument; did you mean --rate?"),
        (["--xyz", "1"], "--xyz: unknown argument; --help lists the arguments"),
        (["--rate", "1", "a.yaml"], "a.yaml: a file of arguments goes before the flags, which replace its values"),
    ],
)
def test_an_unknown_word_names_the_fix(read, words, message):
    with pytest.raises(InputError) as error:
        read(*words)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dry_run": True}, "dry_run does nothing without push_to_hub"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1, or -1"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be above 0"),
        ({"num_train_epochs": -1}, "num_train_epochs=-1 must be above 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps=-1 must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
        ({"learning_rate": -1e-5}, "learning_rate=-1e-05 must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a finite number"),
        ({"learn_temperature": True, "temperature_learning_rate": -1.0}, "temperature_learning_rate=-1.0 must be at"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"neftune_noise_alpha": 1e300}, r"neftune_noise_alpha=1e\+300 is too large a number"),
        ({"seed": 2**32}, "seed=4294967296 is too large a number"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers=-1 must be at least 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size=-1 must be at least 1"),
        ({"report_to": "wandb"}, "report_to=wandb is unknown or not installed; use one of none"),
        ({"optim": "adamw_bnb_8bit"}, "optim=adamw_bnb_8bit needs a package that is not installed"),
        ({"optim_args": "lr"}, r"optim=adamw_torch_fused: .*\(optim_args=lr\)"),
        ({"gradient_checkpointing_kwargs": "1"}, "gradient_checkpointing_kwargs=1 must be a JSON object"),
        ({"lr_scheduler_kwargs": {"bend": 2}}, "lr_scheduler_type=linear: .*'bend'"),
        (
            {"torch_compile_backend": "indoctor"},
            "torch_compile_backend=indoctor is unknown here; use one of aot_eager",
        ),
        ({"torch_compile": True, "torch_compile_mode": "quick"}, "torch_compile_mode=quick is unknown"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor does nothing in this kind of training"),
        (
            {"objective": "unsupervised", "hard_negative_weight": 1.0},
            "hard_negative_weight does nothing with objective",
        ),
        ({"pairwise_loss": "mse"}, "pairwise_loss does nothing with objective=supervised"),
        ({"objective": "pairwise", "combined_weight": 0.5}, "combined_weight does nothing without pairwise_loss=comb"),
        (
            {"objective": "pairwise", "pairwise_loss": "mse", "temperature": 0.1},
            "temperature does nothing with pairwi",
        ),
        ({"group_size": 3}, "group_size does nothing without shuffling"),
        ({"mlm_probability": 0.2}, "mlm_probability does nothing without mlm_weight"),
    ],
)
def test_training_refuses_what_it_cannot_do_before_it_begins(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_half_precision_that_a_cpu_does_not_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="fp16 does nothing on a CPU; use bf16"):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, fp16=True)


def test_an_evaluation_by_steps_comes_with_each_checkpoint_unless_its_steps_are_given(tmp_path):
    """transformers would evaluate as often as it logs, which is 20 times by default."""

    def steps(**options):
        args = ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="steps", **options)
        return args.eval_steps

    assert steps() == 500
    assert steps(save_steps=7) == 7
    assert steps(eval_steps=3) == 3
    assert steps(logging_steps=9) == 9  # as in transformers
