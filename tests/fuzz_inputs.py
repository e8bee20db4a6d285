"""Small valid inputs for each of the four scripts, and seeded ways to break them: flags, JSON, texts and files."""

import gzip
import json
import random
import runpy
import struct
import typing
from functools import cache
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import BertConfig, BertForMaskedLM, BertModel, HfArgumentParser, PreTrainedTokenizerFast
from transformers.hf_argparser import string_to_bool
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertForSequenceClassification, LayerPoolBertModel


ROOT = Path(__file__).parent.parent
WORDS = [
    "red",
    "blue",
    "green",
    "big",
    "small",
    "cat",
    "dog",
    "house",
    "tree",
    "runs",
    "sleeps",
    "over",
    "near",
    "good",
]

# --- valid inputs ---


def build(folder: Path) -> None:
    """Models, data and odd links that the runs below name, in the folder that a run starts in."""
    special = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, "[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 40}
    classes = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "pooler_type": "hire"}
    torch.manual_seed(0)
    models = {
        "layerpool": LayerPoolBertModel(LayerPoolBertConfig(**sizes)),
        "classifier": LayerPoolBertForSequenceClassification(LayerPoolBertConfig(**sizes, **classes)),
        "bert": BertModel(BertConfig(**sizes)),
        "mlm": BertForMaskedLM(BertConfig(**sizes)),
        "st": BertModel(BertConfig(**sizes)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    (folder / "models/st/2_Normalize").mkdir()
    parts = enumerate({"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}.items())
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in parts
    ]
    write(folder / "models/st/modules.json", json.dumps(modules))
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    write(folder / "models/st/1_Pooling/config.json", json.dumps(pooling))
    write(folder / "models/st/sentence_bert_config.json", json.dumps({"max_seq_length": 30, "do_lower_case": False}))

    texts = [" ".join(WORDS[(r * 5 + i * (r % 4 + 1)) % len(WORDS)] for i in range(r % 6 + 2)) for r in range(20)]
    pairs = [{"sentence1": texts[r], "sentence2": texts[r + 4]} for r in range(10)]
    labelled = [{"sentence": text, "label": ("no", "yes")["good" in text]} for text in texts[:10]]
    tables = {
        "triplets.jsonl": [{"anchor": texts[r], "positive": texts[r + 9], "negative": "no"} for r in range(10)],
        "triplets.csv": [{"anchor": texts[r], "positive": texts[r + 9]} for r in range(10)],
        "sts.jsonl": [pair | {"score": r / 2} for r, pair in enumerate(pairs)],
        "sts.tsv": [pair | {"score": r % 4} for r, pair in enumerate(pairs)],
        "subsets.csv": [pair | {"score": r, "subset": "ab"[r % 2]} for r, pair in enumerate(pairs)],
        "pairs.jsonl.gz": [pair | {"label": r % 2} for r, pair in enumerate(pairs)],
        "labelled.jsonl": labelled,
        "labelled.csv": labelled,
        "several.jsonl": [{"text": text, "label": ["good", "long"][: r % 3]} for r, text in enumerate(texts[:10])],
        "unlabelled.jsonl": [{"sentence": text} for text in texts[:10]],
        "texts.jsonl": [{"text": text} for text in texts[:10]],
        "beir/corpus.jsonl": [{"_id": f"d{r}", "title": "a cat", "text": texts[r]} for r in range(10)],
        "beir/queries.jsonl": [{"_id": f"q{r}", "text": texts[r]} for r in range(3)],
        "beir/qrels/test.tsv": [{"query-id": f"q{r}", "corpus-id": f"d{r}", "score": 1} for r in range(2)],
    }
    for name, rows in tables.items():
        lines = [json.dumps(row) for row in rows]
        if not name.endswith((".jsonl", ".jsonl.gz")):
            mark = "\t" if name.endswith(".tsv") else ","
            lines = [mark.join(map(str, row)) for row in [rows[0], *(row.values() for row in rows)]]
        write(folder / "data" / name, "".join(f"{line}\n" for line in lines))
    for name in ("texts.txt", "texts.txt.gz"):
        write(folder / "data" / name, "".join(f"{text}\n" for text in texts[:10]))
    write(folder / "data/evaluation.json", json.dumps({"geometry": {"alignment": 0.5, "uniformity": -1.5}}))
    (folder / "links").mkdir()
    (folder / "links/dangling").symlink_to("nowhere")
    (folder / "links/loop").symlink_to("loop")


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode(), mtime=0) if path.suffix == ".gz" else content.encode())


TRAINING = {
    "output_dir": "out",
    "use_cpu": True,
    "disable_tqdm": "true",
    "report_to": "none",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
}
LAYERPOOL, CLASSIFIER, MLM = ({"model_name_or_path": f"models/{name}"} for name in ("layerpool", "classifier", "mlm"))
BERT, ST = ({"model_name_or_path": f"models/{name}"} for name in ("bert", "st"))
TRIPLETS, TEXTS = {"train_file": "data/triplets.jsonl"}, {"train_file": ["data/texts.txt"], "max_seq_length": 16}
LABELLED = {f"{part}_file": "data/labelled.jsonl" for part in ("train", "validation", "test")}
NEW = {"model_type": "bert", "config_overrides": "hidden_size=16,num_hidden_layers=1,num_attention_heads=2"}
# The first of each script also makes the checkpoint that another run resumes from.
RUNS = {
    "run_contrastive.py": [
        LAYERPOOL | TRIPLETS,
        BERT | {"train_file": "data/triplets.csv", "validation_file": "data/sts.jsonl", "pooler_type": "hire"},
        BERT | {"train_file": "data/texts.txt.gz", "objective": "unsupervised", "validation_file": "data/beir"},
        LAYERPOOL | {"train_file": "data/sts.tsv", "objective": "pairwise", "validation_file": "data/pairs.jsonl.gz"},
        MLM | TRIPLETS | {"mlm_weight": "0.1", "streaming": True},
        LAYERPOOL | TRIPLETS | {"use_lora": True, "gradient_cache": "64", "shuffling": "neighbours"},
        LAYERPOOL | {"validation_file": "data/triplets.jsonl"},
    ],
    "run_mlm.py": [
        MLM | TEXTS | {"objective": "mlm"},
        MLM | TEXTS | {"train_file": ["data/texts.jsonl", "data/texts.txt.gz"], "probe_file": "data/sts.jsonl"},
        NEW
        | TEXTS
        | {"objective": "taco", "vocab_size": "60", "validation_file": ["data/texts.txt"], "measure_similarity": True},
        NEW
        | TEXTS
        | {"tokenizer_name": "models/bert", "streaming": True, "attend_within_documents": True, "objective": "taco"},
        MLM | {"validation_file": ["data/texts.jsonl"], "max_seq_length": 16},
    ],
    "run_classification.py": [
        CLASSIFIER | LABELLED,
        BERT | {"train_file": "data/labelled.csv", "validation_file": "data/labelled.jsonl"},
        LAYERPOOL | {"train_file": "data/sts.tsv", "test_file": "data/sts.tsv", "pooler_type": "weighted_layers"},
        LAYERPOOL | {"train_file": "data/several.jsonl", "validation_file": "data/several.jsonl"},
        CLASSIFIER | {"test_file": "data/unlabelled.jsonl"},
        CLASSIFIER | {"validation_file": "data/labelled.csv"},
    ],
    "run_evaluation.py": [
        LAYERPOOL | {"sts": ["a=data/sts.jsonl", "b=data/sts.tsv"], "retrieval": ["r=data/beir"]},
        BERT | {"pairs": ["a=data/pairs.jsonl.gz"], "pairs_dev": ["a=data/pairs.jsonl.gz"], "pooling": "cls"},
        ST | {"sts": ["a=data/subsets.csv"], "max_seq_length": "12"},
        LAYERPOOL | {"sts": ["a=data/sts.jsonl"], "plots": True, "compare": ["c=data/evaluation.json"]},
        CLASSIFIER | {"retrieval": ["r=data/beir"], "max_tokens_per_batch": "64"},
    ],
}


def runs(script: str) -> list[dict]:
    """Flags and their values of each valid run, the one that resumes last."""
    if script == "run_evaluation.py":
        return [{"output_dir": "out", "device": "cpu"} | run for run in RUNS[script]]
    resumed = RUNS[script][0] | {"output_dir": "resumed", "resume_from_checkpoint": "true", "save_steps": 1}
    return [TRAINING | run for run in [*RUNS[script], resumed]]


# --- flags ---

INTEGERS = ["0", "-1", "-5", "1", "2", "3", "64", "2147483648", str(2**63), "9" * 400, "1.5", "nan", "", "x", "\u0661"]
FLOATS = ["nan", "inf", "-inf", "-1", "0", "-0.0", "0.5", "1", "2", "1e300", "1e400", "1e-320", "9" * 400, "", "x"]
PATHS = ["data/triplets.jsonl/under", "links/dangling", "links/loop", "a" * 300, "/dev/null", "/dev/null/x", "/proc/x",
         "..", ".", "data", "models/bert", "data/sts.jsonl", "data/beir", "empty/../x", "ab/" * 2000]  # fmt: skip
TEXTS_OF_FLAGS = ["", " ", "x", "x" * 5000, "é中\U0001f600", "a\nb", "\x1b[0m", "\udcff", "None", "{}", "%s{0}", "--",
                  "-1", "true", "data/sts.jsonl", "../.."]  # fmt: skip
MAPPINGS = ["{}", "[]", "null", "1", '"x"', "{", '{"a": 1}', '{"a": {"b": []}}', "nowhere.json", "data/sts.jsonl",
            "data/evaluation.json", "", "x", '{"zero_optimization": {"stage": 3}}', '{"split_batches": true}',
            '{"use_reentrant": false}', '{"num_cycles": "x"}', '{"num_cycles": 1e400}']  # fmt: skip
# Values that get further than a random text would.
PROMISING = {
    "report_to": ["all", "tensorboard", "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive",
                  "flyte", "mlflow", "neptune", "swanlab", "trackio", "wandb", "tensorboard none"],
    "optim": [optimizer.value for optimizer in OptimizerNames],
    "lr_scheduler_type": [scheduler.value for scheduler in SchedulerType],
    "fsdp": ["true", "full_shard", "full_shard auto_wrap", "full_shard offload", "shard_grad_op", "no"],
    "debug": ["underflow_overflow", "tpu_metrics_debug", "underflow_overflow tpu_metrics_debug"],
    "torch_compile_backend": ["eager", "aot_eager", "nonsense"],
    "device": ["cpu", "cpu:0", "cpu:1", "cuda", "cuda:99", "meta", "mps", "xpu", "mkldnn", "vulkan", "0"],
    "attn_implementation": ["eager", "sdpa", "flash_attention_2", "flex_attention", "paged|sdpa", "owner/kernel"],
    "pooler_type": ["layer_attention", "hire", "weighted_layers", "cls", "mean", "mean_first_last", "mean_last_two"],
    "pooler_residual": ["mean", "cls", "none"],
    "pooler_layers": ["0", "-1", "0 1 2", "2 1", "1 1", "3", "-4"],
    "lora_target_modules": ["query", "query value", "nothing", "pooler", "LayerNorm", "embeddings"],
    "optim_args": ["a", "a=b", "a=1,b", "betas=1", "rank=x", "="],
    "optim_target_modules": ["all-linear", "all_linear", "query", "["],
    "config_overrides": ["hidden_size=0", "hidden_size=-1", "num_attention_heads=0", "num_attention_heads=3", "x=1",
                         "hidden_act=x", "vocab_size=0", "num_hidden_layers=0", "num_hidden_layers=-1", "=", "x", ",",
                         "hidden_size=99999999999", "layer_norm_eps=nan", "initializer_range=-1", "dtype=float16",
                         "pad_token_id=-5", "type_vocab_size=0", "max_position_embeddings=0", "is_decoder=true",
                         "hidden_dropout_prob=2", "id2label=3", "model_type=x", "architectures=x", "use_cache=x"],
    "model_type": ["bert", "roberta", "modernbert", "deberta-v2", "albert", "electra", "bart", "t5", "gpt2", "mpnet",
                   "layerpool_bert", "distilbert", "xlm", "reformer", "esm", "perceiver", "funnel", "tapas"],
    "objective": ["supervised", "unsupervised", "pairwise", "mlm", "taco"],
    "subtracted_state": ["embeddings", "none", "0", "1", "-1", "2", "-9", "1.0"],
    "metric_for_best_model": ["loss", "spearman", "accuracy", "eval_loss", "eval_", "runtime", "eval_runtime"],
    "score_range": ["0 5", "5 0", "nan nan", "0 inf", "-inf inf", "0", "0 1 2", "0 1e-320", "-1e308 1e308"],
    "prompts": ["anchor=a: positive=b:", "none", "none none", "text=a:", "negative=", "=a:", "x=a:", "anchor", "{}",
                '{"anchor":"a:"}', '{"anchor":"\\ud800"}', '{"anchor":1}', "{", "anchor=" + "word" * 600],
    "text_columns": ["sentence", "sentence sentence", "label", "sentence label", "nothing", "a b c"],
    "sts": ["stsb", "x", "=", "a=", "=data/sts.jsonl", "../x=data/sts.jsonl", "a\nb=data/sts.jsonl",
            "a=data/beir", "a=b=c", "é=data/sts.jsonl", f"{'n' * 300}=data/sts.jsonl", "\udcff=data/sts.jsonl"],
    "retrieval": ["x", "a=data", "a=data/sts.jsonl", "../a=data/beir", "a=links/dangling"],
    "compare": ["a=data/evaluation.json", "a=data/sts.jsonl", "../a=data/evaluation.json", "a=data"],
    "sts_subset_column": ["", "subset", "score", "sentence1", "nothing"],
    "dataset_name": ["nobody/nothing", "data", "data/sts.jsonl", "json", "csv", "a/b/c"],
    "dataloader_multiprocessing_context": ["fork", "spawn", "forkserver", "x"],
}  # fmt: skip
FILES = ("_file", "_dir", "_path", "_checkpoint", "tokenizer_name")


@cache
def flags_of(script: str) -> dict:
    """The argparse action of each flag of a script, by its name."""
    names = runpy.run_path(str(ROOT / script), run_name="read")
    if script == "run_evaluation.py":
        types = (names["EvaluationArguments"],)
    else:
        types = typing.get_args(names["parse_arguments"].__annotations__["return"])
    return {action.dest: action for action in HfArgumentParser(types)._actions if action.dest != "help"}


def draw_value(rng: random.Random, name: str, action) -> object:
    """A nasty value of a flag as a text, a list of texts, or True for a flag without value."""
    if action.choices and rng.random() < 0.9:
        choice = rng.choice(list(action.choices))
        return choice if rng.random() < 0.7 else rng.choice([choice.upper(), choice[:-1], f" {choice}", choice + "s"])
    if name in PROMISING and rng.random() < 0.7:
        value = rng.choice(PROMISING[name])
        return value.split(" ") if action.nargs in ("+", "*") else value
    values = TEXTS_OF_FLAGS
    if action.type is string_to_bool:
        values = [True, True, True, True, "true", "false", "no", "maybe", "", "2"]
    elif action.type in (int, float):
        values = INTEGERS if action.type is int else FLOATS
    elif name.endswith(("_kwargs", "_config")) or name == "deepspeed":
        values = MAPPINGS
    elif name.endswith(FILES):
        values = PATHS + TEXTS_OF_FLAGS
    elif rng.random() < 0.2:
        values = INTEGERS + FLOATS + PATHS + MAPPINGS
    if action.nargs in ("+", "*") and rng.random() < 0.5:
        return [str(rng.choice(values)) for _ in range(rng.randint(0, 3))]
    return rng.choice(values)


def command_line(options: dict) -> list[str]:
    words = []
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words


def break_words(rng: random.Random, words: list[str]) -> tuple[list[str], str]:
    """A command line of another form: flags shortened, repeated, unknown or without their value."""
    place, words = rng.randrange(len(words)), list(words)
    how = rng.choice(["shortened", "repeated", "unknown", "without value", "one more word", "no_", "no dashes", "-h"])
    word = words[place]
    if how == "shortened":
        name, equals, value = word.partition("=")
        words[place] = name[: rng.randint(2, max(2, len(name) - 1))] + equals + value
    elif how == "without value":
        words[place] = word.partition("=")[0]
    elif how == "no dashes":
        words[place] = word.lstrip("-")
    else:
        more = {"repeated": word, "unknown": "--nothing=1", "one more word": "x", "-h": "-h"}
        words.insert(place, more.get(how, word.partition("=")[0].replace("--", "--no_")))
    return words, f"{how}: {word[:40]}"


# --- JSON, YAML and texts ---

DEEP, DIGITS, HUGE = '"@deep@"', '"@digits@"', '"@huge@"'  # what json.dumps would not write
ODD = [None, True, False, 0, -1, 3, 1.5, 2**31, 2**63, -(10**400), float("nan"), float("inf"), "", " ", "x" * 5000,
       "\ud800", "a\0b", "a\nb", "é中", [], [[]], [None], [1, "a"], {}, {"a": {"b": []}}, "@deep@", "@digits@",
       "@huge@", "true", "1", "[PAD]", "../../x", "/dev/null"]  # fmt: skip


def dump(value: object) -> str:
    text = json.dumps(value)
    return text.replace(DEEP, "[" * 20_000 + "]" * 20_000).replace(DIGITS, "9" * 5000).replace(HUGE, "1e400")


def positions(value: object) -> list[tuple]:
    """Every `(container, key)` in a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [position for key in keys for position in ((value, key), *positions(value[key]))]


def break_json(rng: random.Random, value: object) -> tuple[object, str]:
    """A JSON value with one thing in it retyped, dropped, renamed, repeated or swapped, and how."""
    value = json.loads(json.dumps(value))
    places = positions(value)
    if not places or rng.random() < 0.05:
        odd = rng.choice(ODD)
        return odd, f"all of it {odd!r:.40}"
    container, key = rng.choice(places)
    how = rng.choice(["retyped", "retyped", "retyped", "dropped", "renamed", "swapped"])
    if how == "retyped":
        container[key] = rng.choice(ODD)
        return value, f"{key!r:.40} is {container[key]!r:.40}"
    if how == "dropped":
        del container[key]
    elif how == "renamed" and isinstance(container, dict):
        container[rng.choice(["", "x", key + " ", key.upper()])] = container.pop(key)
    else:
        other, other_key = rng.choice([place for place in places if place[0] is container])
        container[key], other[other_key] = other[other_key], container[key]
    return value, f"{key!r:.40} {how}"


def break_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Bytes that were cut, flipped, repeated or written in another encoding, and how."""
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    text = data.decode("utf-8", "replace")
    ways = {
        "cut off": data[:begin],
        "empty": b"",
        "a piece missing": data[:begin] + data[end:],
        "a piece twice": data[:end] + data[begin:],
        "NUL": data[:begin] + b"\0\0" + data[begin:],
        "not UTF-8": data[:begin] + b"\xff\xfe" + data[begin:],
        "BOM": b"\xef\xbb\xbf" + data,
        "UTF-16": text.encode("utf-16"),
        "line ends": data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\n\n", b" ", b"\x85"])),
        "a mark": data[:begin] + rng.choice([b'"', b"'", b",", b"\t", b"\\", b"{", b"]", b"\n"]) + data[begin:],
        "only white space": rng.choice([b"\n\n", b" \t\n", b"\xc2\xa0\n"]),
        "bytes": bytes(byte ^ (rng.random() < 0.02) << rng.randrange(8) for byte in data),
    }
    how = rng.choice(list(ways))
    return ways[how], how


YAML = ["a: &a [x]\nb: [*a, *a]", "[1, 2]", "text", "", "a: b: c", "? [a]\n: b", "1: 2", "null: 1", "a: 2020-01-01",
        "a: !!python/object:os.system x", "a: !!binary aGk=", "a: !!set {x}", "---\na: 1\n---\nb: 2", "\t", "a: *b",
        "&a [*a]", "a: &a {b: *a}", "<<: 1", "a: .nan", "a: 0o17", "a: 1_000", "{a: 1, a: 2}", "true: 1"]  # fmt: skip


def break_configuration(rng: random.Random, options: dict, suffix: str) -> tuple[bytes, str]:
    """The arguments of a run as a broken JSON or YAML file, and how it is broken."""
    roll = rng.random()
    if roll < 0.6:
        changed, how = break_json(rng, options)
        return dump(changed).encode(), how
    text = json.dumps(options, indent=0) if suffix == ".json" else yaml.safe_dump(options)
    if roll < 0.8:
        return break_bytes(rng, text.encode())
    extra = rng.choice(YAML)
    return (extra if rng.random() < 0.5 else f"{yaml.safe_dump(options)}\n{extra}").encode(), f"YAML {extra!r}"


# --- files ---


def break_file(rng: random.Random, path: Path) -> str:
    """Break one file on the disk according to what it is, and say how."""
    if rng.random() < 0.1:
        how = rng.choice(["gone", "a folder", "dangling", "a loop", "empty"])
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how != "gone" and how != "empty":
            path.symlink_to("nowhere" if how == "dangling" else path.name)
        elif how == "empty":
            path.touch()
        return how
    data = path.read_bytes()
    is_gzip = path.suffix == ".gz" and rng.random() < 0.6
    if is_gzip:
        data = gzip.decompress(data)
    suffix = Path(path.stem).suffix if is_gzip else path.suffix
    within = {".jsonl": _break_lines, ".csv": _break_table, ".tsv": _break_table, ".safetensors": _break_tensors}
    if suffix == ".json" and rng.random() < 0.8:
        changed, how = break_json(rng, json.loads(data))
        data = dump(changed).encode()
    elif suffix in within and rng.random() < 0.7:
        data, how = within[suffix](rng, data)
    else:
        data, how = break_bytes(rng, data)
    path.write_bytes(gzip.compress(data, mtime=0) if is_gzip else data)
    return how


def _break_lines(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    rows = [json.loads(line) for line in data.decode().splitlines()]
    if rng.random() < 0.3:
        return _move_lines(rng, data)
    columns = list(rows[0])
    if rng.random() < 0.3:  # a whole column
        column, odd = rng.choice(columns), rng.choice(ODD)
        rows = [row | {column: odd} for row in rows]
        how = f"every {column} is {odd!r:.40}"
    else:
        place = rng.randrange(len(rows))
        rows[place], how = break_json(rng, rows[place])
        how = f"row {place}: {how}"
    return "".join(f"{dump(row)}\n" for row in rows).encode(), how


def _move_lines(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    lines = data.splitlines(keepends=True)
    how = rng.choice(["one line left", "two lines left", "lines dropped", "lines repeated", "one line only, repeated"])
    kept = {"one line left": lines[:1], "two lines left": lines[:2], "lines dropped": lines[:: rng.randint(2, 5)],
            "lines repeated": lines * 2, "one line only, repeated": lines[:1] + lines[1:2] * 8}  # fmt: skip
    return b"".join(kept[how]), how


def _break_table(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return _move_lines(rng, data)
    mark = "\t" if b"\t" in data else ","
    rows = [line.split(mark) for line in data.decode().splitlines()]
    place, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    how = rng.choice(
        ["a field gone", "a field more", "a column twice", "a field replaced", "a column replaced", "swapped"]
    )
    odd = rng.choice(
        ["", " ", "x" * 200_000, "\0", '"', '"a', "nan", "inf", "1e400", "9" * 5000, "é", "\x85", "x", "2"]
    )
    if how == "a field gone":
        del rows[place][column]
    elif how == "a field more":
        rows[place].insert(column, odd)
    elif how == "a column twice":
        rows[0][column] = rows[0][column - 1]
    elif how == "a field replaced":
        rows[place][column] = odd
    elif how == "a column replaced":
        rows[1:] = [[*row[:column], odd, *row[column + 1 :]] for row in rows[1:]]
    else:
        rows[place] = rows[place][::-1]
    return "".join(f"{mark.join(row)}\n" for row in rows).encode(), f"row {place}, column {column}: {how} {odd!r:.20}"


def _break_tensors(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    size = struct.unpack("<Q", data[:8])[0]
    header, tensors = data[8 : 8 + size], data[8 + size :]
    how = rng.choice(["header", "header", "length", "nan", "inf", "zeros"])
    if how == "header":
        changed, how = break_json(rng, json.loads(header))
        header = dump(changed).encode()
    elif how == "length":
        return struct.pack("<Q", rng.choice([0, 1, size + 1, 2**40, 2**64 - 1])) + data[8:], "length of the header"
    else:
        pattern = {"nan": b"\x00\x00\xc0\x7f", "inf": b"\x00\x00\x80\x7f", "zeros": bytes(4)}[how]
        begin = 0 if rng.random() < 0.7 else 4 * rng.randrange(len(tensors) // 4)
        tensors = tensors[:begin] + pattern * ((len(tensors) - begin) // 4)
    return struct.pack("<Q", len(header)) + header + tensors, f"tensors: {how}"


def files_of(options: dict, folder: Path) -> list[Path]:
    """The files that a run reads: those that its arguments name, and those in the folders that they name."""
    values = [value for given in options.values() for value in (given if isinstance(given, list) else [given])]
    paths = [folder / str(value).rpartition("=")[2] for value in values if value is not True and str(value)]
    files = []
    for path in paths:
        if path.is_file():
            files.append(path)
        elif path.is_dir() and path != folder:
            files += sorted(file for file in path.rglob("*") if file.is_file())
    return files


def use_output_folder(rng: random.Random, path: Path) -> str:
    """Put something where the output is to go, and say what."""
    if path.exists():
        return ""
    how = rng.choice(["an empty folder", "a folder in use", "a file", "dangling", "a link to a folder"])
    if how == "a file":
        path.write_text("mine")
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "a link to a folder":
        path.with_name("other").mkdir()
        path.symlink_to("other")
    else:
        path.mkdir()
        if how == "a folder in use":
            (path / "mine.txt").write_text("mine")
            (path / "evaluation.json").write_text("{}")
    return f"; {path.name} is {how}"
