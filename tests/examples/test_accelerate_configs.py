"""The files of examples/accelerate/: read by accelerate itself, and launched as far as a CPU allows."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from transformers import AutoModel, AutoTokenizer

from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.common.errors import InputError
from modeling_layerpool.training import ContrastiveTrainer
from tests.processes import ROOT, Running, start_accelerate
from tests.scripts.test_run_contrastive import SCRIPT, arguments, flags, read_json, write_rows
from tests.tiny import TINY_BERT, make_tokenizer
from tests.training.conftest import make_trainer, triplets  # noqa: F401 (a fixture)


FOLDER = ROOT / "examples" / "accelerate"
EXPECTED = {
    "one_gpu": DistributedType.NO,
    "many_gpus": DistributedType.MULTI_GPU,
    "many_nodes": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "cpu_processes": DistributedType.MULTI_GPU,
}
# Accelerate shards on GPUs only and takes processes on a CPU for plain data parallelism, without a word. Torch does
# shard on a CPU. So this is not as a user has it: accelerate is told that the processes have GPUs. And torch 2.8 sums
# where `reduce_scatter_tensor` shall average on a CPU (gloo; on GPUs it does average), so that it is done here.
SHARD_ON_A_CPU = """
import runpy
import sys
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

plain_init, plain_scatter = PartialState.__init__, torch.distributed.reduce_scatter_tensor

def averaging_scatter(output, input, op=torch.distributed.ReduceOp.SUM, group=None, async_op=False):
    if op == torch.distributed.ReduceOp.AVG and not async_op:
        plain_scatter(output, input, group=group)
        output.div_(torch.distributed.get_world_size(group))
        return None
    return plain_scatter(output, input, op, group, async_op)

if torch.__version__.startswith("2.8."):
    torch.distributed.reduce_scatter_tensor = averaging_scatter

def init(self, *args, **kwargs):
    plain_init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

PartialState.__init__ = init
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def finish(process):
    done = process.finish()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains with a configuration and returns the folder: 3 steps, the last one on 3 rows, which cannot be halved."""
    folder = tmp_path_factory.mktemp("accelerate")
    torch.manual_seed(0)
    config = LayerPoolBertConfig(
        **TINY_BERT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pooler_activation="relu",
        initializer_range=0.2,  # so that no two cosines are so near that rounding orders them
    )
    LayerPoolBertModel(config).save_pretrained(folder / "tiny")
    make_tokenizer().save_pretrained(folder / "tiny")
    pairs = [
        {"sentence1": row["anchor"], "sentence2": row["positive" if i % 2 else "negative"], "score": i % 2 + i / 50}
        for i, row in enumerate(triplets(12))
    ]
    files = {
        "train": write_rows(folder / "train.jsonl", triplets(11)),
        "sts": write_rows(folder / "sts.jsonl", pairs),
    }
    (folder / "shard_on_a_cpu.py").write_text(SHARD_ON_A_CPU)

    def train(config, processes=2, launchers=((),)):
        files["out"] = str(folder / (config or "one"))
        options = arguments(str(folder / "tiny"), files, per_device_train_batch_size=4 // processes) | {
            # Plain gradient descent: what is wrong with a gradient is as wrong with the weights.
            "optim": "sgd",
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "save_steps": 2,
            "validation_file": files["sts"],
            "do_eval": True,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_on_start": True,
        }
        script = [folder / "shard_on_a_cpu.py", SCRIPT] if config == "fsdp2" else [SCRIPT]
        words = [*script, *flags(options)]
        file = ("--config_file", FOLDER / f"{config}.yaml")
        started = (
            [start_accelerate(*file, *launcher, *words) for launcher in launchers] if config else [Running(*words)]
        )
        outputs = [finish(process) for process in started]
        assert f"rows a step           4 on {processes} process(es)" in outputs[0], outputs[0]
        return Path(files["out"])

    return train


@pytest.fixture(scope="module")
def one(run):
    """The folder of a run on one process, without a launcher."""
    return run(None, processes=1)


def assert_same_training(folder, one):
    start, expected = (AutoModel.from_pretrained(path).state_dict() for path in (one.parent / "tiny", one))
    changes = {name: (weight - start[name]).abs().max() for name, weight in expected.items()}
    assert max(changes.values()) > 1e-3
    for name, weight in AutoModel.from_pretrained(folder).state_dict().items():
        # The last term is for biases of keys, which softmax makes no use of: their gradients are rounding alone.
        tolerance = 1e-3 * changes[name] + 1e-5 * max(changes.values())
        assert (weight - expected[name]).abs().max() < tolerance, name
    evaluations, of_one = (
        [
            entry["eval_spearman"]
            for entry in read_json(path / "trainer_state.json")["log_history"]
            if "eval_spearman" in entry
        ]
        for path in (folder, one)
    )
    assert len(of_one) == 4  # before the first step and after each
    assert evaluations == pytest.approx(of_one)


def test_every_file_is_listed_here():
    assert {path.stem for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_file_and_its_launcher_knows_every_key(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # refuses unknown keys at the top
    assert config.distributed_type == EXPECTED[name]
    parser = launch_command_parser()
    known = vars(parser.parse_args(["script.py"]))
    for key in [*config.fsdp_config, *config.deepspeed_config]:
        assert key in known  # further down they would be passed over
    launched, _, _ = _validate_launch_command(
        parser.parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "script.py"])
    )
    assert (launched.multi_gpu, launched.use_fsdp, launched.use_deepspeed) == tuple(
        EXPECTED[name] == kind for kind in (DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED)
    )
    assert launched.mixed_precision == "no"  # the run decides


def test_two_processes_train_and_evaluate_like_one(run, one):
    assert_same_training(run("cpu_processes"), one)


def test_processes_on_gpus_are_launched_like_those_on_a_cpu():
    def launched(name):
        words = ["--config_file", str(FOLDER / f"{name}.yaml"), "--num_processes", "2", "script.py"]
        arguments = vars(_validate_launch_command(launch_command_parser().parse_args(words))[0])
        return {key: value for key, value in arguments.items() if key not in ("config_file", "use_cpu", "gpu_ids")}

    assert launched("many_gpus") == launched("cpu_processes")


def test_two_machines_train_and_evaluate_like_one(run, one):
    # Two launchers, as on two machines, that meet at one address.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = ("--num_processes", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    assert_same_training(run("many_nodes", launchers=[(*shared, "--machine_rank", rank) for rank in (0, 1)]), one)


def test_two_processes_with_sharded_weights_train_and_evaluate_like_one(run, one):
    folder = run("fsdp2", launchers=[("--num_processes", 2)])
    assert (folder / "checkpoint-2" / "pytorch_model_fsdp.bin").is_file()  # it was FSDP indeed
    assert_same_training(folder, one)
    # The checkpoint is whole, and carries the code of the model, not that of FSDP.
    for checkpoint in ("checkpoint-2", "."):
        assert {path.name for path in (folder / checkpoint).glob("*.py")} == {
            path.name for path in (one / checkpoint).glob("*.py")
        }
        for name in ("config.json", "modules.json"):
            assert read_json(folder / checkpoint / name) == read_json(one / checkpoint / name)
    model = AutoModel.from_pretrained(folder / "checkpoint-2")
    assert model.encode(["a text"], AutoTokenizer.from_pretrained(folder / "checkpoint-2")).shape == (1, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gradient_cache": 64}, "gradient_cache"), ({"learn_temperature": True}, "learn_temperature")],
)
def test_what_deepspeed_cannot_do_is_refused(make_trainer, monkeypatch, options, message):  # noqa: F811
    plain = ContrastiveTrainer.create_accelerator_and_postprocess

    def with_deepspeed(self):
        plain(self)
        self.is_deepspeed_enabled = True

    monkeypatch.setattr(ContrastiveTrainer, "create_accelerator_and_postprocess", with_deepspeed)
    make_trainer()
    with pytest.raises(InputError, match=f"{message} does not work under .*DeepSpeed"):
        make_trainer(**options)


@pytest.mark.parametrize(
    ("plugin", "options", "message"),
    [
        ({"fsdp_version": 1}, {}, "FSDP 1 is not supported"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, {}, "fsdp_state_dict_type: FULL_STATE_DICT"),
        ({}, {"learn_temperature": True}, "learn_temperature does not work under FSDP"),
        ({}, {"gradient_cache": 64}, "gradient_cache does not work under FSDP"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(make_trainer, monkeypatch, plugin, options, message):  # noqa: F811
    plain = ContrastiveTrainer.create_accelerator_and_postprocess

    def with_fsdp(self):
        plain(self)
        self.is_fsdp_enabled = True
        settings = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"} | plugin
        monkeypatch.setattr(self.accelerator.state, "fsdp_plugin", SimpleNamespace(**settings), raising=False)

    monkeypatch.setattr(ContrastiveTrainer, "create_accelerator_and_postprocess", with_fsdp)
    with pytest.raises(InputError, match=message):
        make_trainer(**options)
