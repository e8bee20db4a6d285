"""
Shared code of the parts of gpu.py: the shapes, random sentences and models, and how time and memory are measured.

Weights and token ids are random (seed 0), in the shape of BERT-base. Lengths are drawn as those of tokenized NLI
triplets are distributed.
"""

import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


COLUMNS = ("anchor", "positive", "negative")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLS, SEP, FIRST_WORD = 2, 3, 5
# Mean and standard deviation of the logarithm of the number of tokens without [CLS] and [SEP], measured on 3,000
# random triplets with the tokenizer of all-MiniLM-L6-v2.
LENGTHS = {"anchor": (2.98, 0.57), "positive": (2.33, 0.44), "negative": (2.38, 0.46)}
# The attention of packed input that trainers choose on a GPU
DEFAULT_ATTENTION = "layerpool_varlen"


@dataclass(frozen=True)
class Shapes:
    """What is measured. The defaults are those of a GPU."""

    model: dict[str, int] = field(default_factory=dict)  # other than BERT-base
    max_length: int = 64
    equal_lengths: tuple[int, ...] = (64, 256)
    chunk_tokens: int = 32768  # with gradient caching
    plain_batches: tuple[int, ...] = (256, 1024)  # without it
    cached_batches: tuple[int, ...] = (1024, 4096, 16384, 65536)
    compared_batches: tuple[int, ...] = (128, 512)
    compared_cached_batch: int = 4096
    loss_batches: tuple[int, ...] = (4096, 16384, 65536)
    exact_batch: int = 6144  # several blocks of the loss on a GPU
    texts: int = 16384
    encode_batches: tuple[int, ...] = (32, 256)  # of sentence-transformers, whose default is 32
    matrix: int = 8192
    rounds: int = 20


FULL = Shapes()
TINY = Shapes(
    model={
        "vocab_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    max_length=16,
    equal_lengths=(16,),
    chunk_tokens=256,
    plain_batches=(8,),
    cached_batches=(8, 16),
    compared_batches=(8,),
    compared_cached_batch=16,
    loss_batches=(64,),
    exact_batch=32,
    texts=64,
    encode_batches=(32,),
    matrix=64,
    rounds=2,
)


@dataclass
class Timing:
    """Times of the rounds, and the memory that the first call needed in addition to what was allocated."""

    seconds: list[float] = field(default_factory=list)
    gib: float | None = None
    outcome: str = ""  # why it could not be measured

    @property
    def columns(self) -> dict[str, Any]:
        """Median and range, or the outcome."""
        if self.outcome:
            return {"median ms": self.outcome}
        times = [1000 * second for second in self.seconds]
        return {"median ms": statistics.median(times), "range, ms": f"{min(times):.4g} to {max(times):.4g}"}


class Bench:
    """The device, the shapes and the results of a part."""

    def __init__(self, device: str, shapes: Shapes, results):
        self.device, self.shapes, self.results = torch.device(device), shapes, results
        self.is_gpu = self.device.type == "cuda"
        torch.manual_seed(0)

    def seconds(self, way: Callable[[int], Any], number: int = 0) -> float:
        if not self.is_gpu:
            begin = time.perf_counter()
            way(number)
            return time.perf_counter() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        way(number)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def measure(self, ways: dict[str, Callable[[int], Any]], rounds: int | None = None) -> dict[str, Timing]:
        """
        Call every way with the number of the round, in turns, after two calls that warm up. A way that runs out of
        memory or fails has that as its outcome, and the others go on.
        """
        timings = {name: Timing() for name in ways}
        for name, way in ways.items():
            with self._noting(timings[name], name):
                timings[name].gib = self.added_gib(way)
                if self.results.has_time:
                    way(0)
        for number in range(rounds or self.shapes.rounds):
            if number > 0 and not self.results.has_time:
                break
            for name, way in ways.items():
                if not timings[name].outcome:
                    with self._noting(timings[name], name):
                        timings[name].seconds.append(self.seconds(way, number))
        return timings

    @contextmanager
    def _noting(self, timing: Timing, name: str) -> Iterator[None]:
        """Note why a measurement could not be made."""
        try:
            yield
            return
        except torch.cuda.OutOfMemoryError:
            timing.outcome = "out of memory"
        except Exception as error:
            traceback.print_exc()
            timing.outcome = f"failed: {first_line(error)}"
            self.results.fail(f"{name}: {first_line(error)}")
        if self.is_gpu:
            torch.cuda.empty_cache()

    def added_gib(self, way: Callable[[int], Any]) -> float | None:
        """Memory that a call needs in addition to what is allocated; None on a CPU."""
        if not self.is_gpu:
            way(0)
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way(0)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**30

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """The largest rate of a plain product of matrices, in FLOP/s: square, and of the shapes of a layer."""
        size, rates = self.shapes.matrix, []
        for rows, inner, columns in ((size, size, size), (2 * size, 768, 3072), (2 * size, 3072, 768)):
            one = torch.randn(rows, inner, device=self.device, dtype=dtype)
            other = torch.randn(inner, columns, device=self.device, dtype=dtype)
            times = [self.seconds(lambda _, one=one, other=other: one @ other) for _ in range(10)]
            rates.append(2 * rows * inner * columns / min(times[3:]))
        return max(rates)

    def model(self, pooler_type: str, attention: str = DEFAULT_ATTENTION, **options: Any) -> torch.nn.Module:
        from modeling_layerpool.models.modeling_layerpool_bert import LayerPoolBertConfig, LayerPoolBertModel

        torch.manual_seed(0)
        options = {"pooler_type": pooler_type, "pad_token_id": 0, "attn_implementation": attention} | options
        return LayerPoolBertModel(LayerPoolBertConfig(**self.shapes.model, **options)).to(self.device)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16)

    def sentences(self, count: int, seed: int, lengths: list[int] | None = None) -> list[list[int]]:
        """Random token ids: triplet after triplet with drawn lengths, unless the lengths are given."""
        draw = torch.Generator().manual_seed(seed)
        if lengths is None:
            means, deviations = torch.tensor([LENGTHS[column] for column in COLUMNS]).T
            drawn = torch.exp(means + deviations * torch.randn(-(-count // 3), 3, generator=draw)).round().long() + 2
            lengths = drawn.clamp(3, self.shapes.max_length).flatten()[:count].tolist()
        size = self.shapes.model.get("vocab_size", 30522)
        words = torch.randint(FIRST_WORD, size, (sum(lengths),), generator=draw).tolist()
        sentences, begin = [], 0
        for length in lengths:
            sentences.append([CLS, *words[begin : begin + length - 2], SEP])
            begin += length
        return sentences

    def arithmetic(self, sentences: list[list[int]], forwards: int) -> float:
        """FLOP of the encoder's matrix products for the real tokens. A backward pass counts as two forward passes."""
        sizes = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072} | self.shapes.model
        h, layers, inner = (sizes[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size"))
        return forwards * encoder_flop(list(map(len, sentences)), h, layers, inner)


def encoder_flop(lengths: list[int], h: int, layers: int, inner: int) -> int:
    """FLOP of a forward pass: products with the weights of the layers, and attention inside each sentence."""
    return layers * (2 * sum(lengths) * (4 * h * h + 2 * h * inner) + 4 * h * sum(length**2 for length in lengths))


def share(flops: list[float], seconds: list[float], rate: float) -> dict[str, float]:
    """The rate of a computation, and its share of the rate of a plain product, as medians."""
    own = statistics.median(flop / second for flop, second in zip(flops, seconds, strict=False))
    return {"TFLOP/s": own / 1e12, "plain matrix product, TFLOP/s": rate / 1e12, "share of it, %": 100 * own / rate}


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
