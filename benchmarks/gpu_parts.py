"""The parts of gpu.py. Each imports only what it needs, so that it runs where the others cannot."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from gpu_bench import Bench, Timing, first_line, share
from gpu_steps import TEMPERATURE, as_texts, on_device, open_theirs, our_step, save_plain_bert, their_step


# Rows, attention, and dropout of the attention weights, which some kernels do not have
ATTENTIONS = (
    ("padded", "sdpa", 0.1),
    ("padded", "sdpa", 0.0),
    ("packed", "sdpa", 0.1),
    ("packed", "sdpa", 0.0),
    ("packed", "layerpool_varlen", 0.0),
    ("packed", "flash_attention_2", 0.0),
)
# What transformers raises where an attention needs a package that is not here, or downloads a kernel
UNAVAILABLE = (ImportError, OSError, ValueError)


class Part(NamedTuple):
    what: str
    measure: Callable[["Bench"], None]
    needs: tuple[str, ...]  # modules and releases without which the part is skipped


def measure_step(bench: Bench) -> None:
    rate = bench.matrix_rate(torch.bfloat16)
    model = bench.model("layer_attention")
    sizes = [(size, False) for size in bench.shapes.plain_batches]
    sizes += [(size, True) for size in bench.shapes.cached_batches]
    for size, is_cached in sizes:
        row = {"batch": size, "gradient caching": "yes" if is_cached else "no"}
        if not bench.results.has_time:
            bench.results.add(**row, **Timing(outcome="not run: the time of the part is over").columns)
            continue
        prepare, step = our_step(bench, model, is_cached)
        # About as many rows for every batch size, in at least 3 batches
        count = max(3, min(bench.shapes.rounds, 32 * 1024 // size))
        texts = [bench.sentences(3 * size, seed) for seed in range(count)]
        begin = time.perf_counter()
        batches = [prepare(sentences) for sentences in texts]
        packing = (time.perf_counter() - begin) / count
        weights = torch.cuda.memory_allocated() / 2**30 if bench.is_gpu else None
        timing = bench.measure({"step": lambda number, step=step, batches=batches: step(batches[number])}, count)[
            "step"
        ]
        if timing.outcome:
            bench.results.add(**row, **timing.columns)
            continue
        flops = [bench.arithmetic(sentences, 4 if is_cached else 3) for sentences in texts]
        bench.results.add(
            **row,
            **timing.columns,
            **share(flops, timing.seconds, rate),
            **{
                "rows/s": size / statistics.median(timing.seconds),
                "peak GiB": timing.gib and timing.gib + weights,
                "packing on one core, ms": 1000 * packing,
            },
        )


def measure_against(bench: Bench) -> None:
    sizes = [(size, False) for size in bench.shapes.compared_batches] + [(bench.shapes.compared_cached_batch, True)]
    theirs = {"padded": "sdpa", "unpadded": "flash_attention_2"}
    with tempfile.TemporaryDirectory() as folder:
        save_plain_bert(bench, folder)
        models = {f"here, {pooler}": bench.model(pooler) for pooler in ("mean", "layer_attention")}
        # Some kernels for packed input have no dropout, and a model with dropout then attends with a mask.
        models["here, mean, no attention dropout"] = bench.model("mean", attention_probs_dropout_prob=0.0)
        missing = {}
        for name, attention in theirs.items():
            try:
                models[f"sentence-transformers, {name}"] = open_theirs(bench, folder, attention)
            except UNAVAILABLE as error:
                missing[f"sentence-transformers, {name}"] = f"not run: {first_line(error)[:100]}"
    for size, is_cached in sizes:
        count = max(3, min(bench.shapes.rounds, 32 * 1024 // size))
        texts = [bench.sentences(3 * size, seed) for seed in range(count)]
        ways = {}
        for name, model in models.items():
            prepare, step = (our_step if name.startswith("here") else their_step)(bench, model, is_cached)
            batches = [prepare(sentences) for sentences in texts]
            ways[name] = lambda number, step=step, batches=batches: step(batches[number])
        timings = bench.measure(ways, count)
        first = timings["here, mean"].seconds
        for name, timing in timings.items():
            row = {"batch": size, "gradient caching": "yes" if is_cached else "no", "way": name, **timing.columns}
            if timing.seconds:
                ratios = [seconds / own for seconds, own in zip(timing.seconds, first, strict=False)]
                row["rows/s"] = size / statistics.median(timing.seconds)
                row["time relative to the first"] = statistics.median(ratios) if ratios else None
            bench.results.add(**row, **{"added GiB": timing.gib})
    for name, outcome in missing.items():
        bench.results.add(**{"batch": "any", "gradient caching": "-"}, way=name, **Timing(outcome=outcome).columns)


def measure_attention(bench: Bench) -> None:
    from modeling_layerpool.models.modeling_layerpool_packing import pack_sentences

    models, missing = {}, {}
    for _, attention, dropout in ATTENTIONS:
        try:
            model = bench.model("mean", attention, attention_probs_dropout_prob=dropout)
            models[attention, dropout] = model.train()
        except UNAVAILABLE as error:
            missing[attention, dropout] = f"not run: {first_line(error)[:100]}"

    def step(attention: tuple[str, float], batch: dict[str, torch.Tensor]) -> None:
        with bench.autocast():
            embeddings = models[attention](**batch).pooler_output
        embeddings.float().square().mean().backward()
        models[attention].zero_grad()

    tokens = bench.shapes.chunk_tokens
    inputs = {"drawn": bench.sentences(tokens // 16, 0)}
    for length in bench.shapes.equal_lengths:
        inputs[f"all {length}"] = bench.sentences(tokens // length, 0, [length] * (tokens // length))
    for lengths, sentences in inputs.items():
        longest, real = max(map(len, sentences)), sum(map(len, sentences))
        ids = torch.tensor([sentence + [0] * (longest - len(sentence)) for sentence in sentences])
        batches = {
            "padded": on_device({"input_ids": ids, "attention_mask": (ids != 0).long()}, bench.device),
            "packed": on_device(pack_sentences(sentences, 0), bench.device),
        }
        timings = bench.measure(
            {
                way: lambda _, way=way, batches=batches: step(way[1:], batches[way[0]])
                for way in ATTENTIONS
                if way[1:] in models
            }
        )
        for way in ATTENTIONS:
            rows, attention, dropout = way
            timing = timings.get(way, Timing(outcome=missing.get(way[1:], "")))
            row = {"lengths": lengths, "rows": rows, "attention": attention, "attention dropout": dropout}
            row |= {"tokens computed/real": batches[rows]["input_ids"].numel() / real, **timing.columns}
            if timing.seconds:
                row["real tokens/s"] = real / statistics.median(timing.seconds)
            bench.results.add(**row, **{"added GiB": timing.gib})


def measure_loss(bench: Bench) -> None:
    from modeling_layerpool.training.losses import info_nce

    def whole_matrix(anchors, positives):
        logits = F.normalize(anchors, dim=-1) @ F.normalize(positives, dim=-1).T / TEMPERATURE
        return F.cross_entropy(logits, torch.arange(len(anchors), device=anchors.device))

    losses = {"in blocks": lambda *texts: info_nce(*texts, temperature=TEMPERATURE), "whole matrix": whole_matrix}
    if bench.is_gpu:  # on a CPU, compiling takes longer than all parts together
        losses["whole matrix, compiled"] = torch.compile(whole_matrix, dynamic=False)
    for size in bench.shapes.loss_batches:
        width = bench.shapes.model.get("hidden_size", 768)
        texts = [torch.randn(size, width, device=bench.device, requires_grad=True) for _ in range(2)]
        timings = bench.measure(
            {name: lambda _, loss=loss, texts=texts: loss(*texts).backward() for name, loss in losses.items()}
        )
        for name, timing in timings.items():
            bench.results.add(batch=size, loss=name, **timing.columns, **{"added GiB": timing.gib})


def measure_encode(bench: Bench) -> None:
    sentences = bench.sentences(bench.shapes.texts, 0)
    texts, dtypes = as_texts(sentences), (torch.float32, torch.bfloat16, torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = save_plain_bert(bench, folder)
        theirs = None
        with contextlib.suppress(ImportError):
            theirs = open_theirs(bench, folder, "sdpa")
    exact = None
    for dtype in dtypes:
        model = bench.model("mean").to(dtype)
        ways = {"here": lambda _, model=model: model.encode(texts, tokenizer)}
        if theirs is not None:
            theirs.to(dtype)
            for size in bench.shapes.encode_batches:
                ways[f"sentence-transformers, batches of {size}"] = lambda _, size=size: theirs.encode(
                    texts, batch_size=size, show_progress_bar=False
                )
        embeddings = torch.from_numpy(model.encode(texts, tokenizer)).double()
        exact = embeddings if exact is None else exact
        rate = bench.matrix_rate(dtype)
        for name, timing in bench.measure(ways, min(5, bench.shapes.rounds)).items():
            row = {"dtype": str(dtype).removeprefix("torch."), "way": name, **timing.columns}
            if timing.seconds:
                row["texts/s"] = len(texts) / statistics.median(timing.seconds)
                row |= share([bench.arithmetic(sentences, 1)] * len(timing.seconds), timing.seconds, rate)
            if name == "here":
                row["smallest cosine to float32"] = f"{F.cosine_similarity(embeddings, exact).min().item():.6f}"
            bench.results.add(**row, **{"added GiB": timing.gib})


def measure_exactness(bench: Bench) -> None:
    from modeling_layerpool.training import losses

    b, h = bench.shapes.exact_batch, bench.shapes.model.get("hidden_size", 768)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(b, h, generator=draw, dtype=torch.float64) for _ in range(3)]
    ids = torch.randint(b // 2, (2 * b,), generator=draw)  # each text about four times
    scores = torch.rand(b, generator=draw, dtype=torch.float64)
    negatives = torch.randint(b, (b, 10), generator=draw)
    functions = {
        "info_nce": lambda a, p, n, on: losses.info_nce(a, p, n, temperature=TEMPERATURE),
        "info_nce, symmetric, weighted, duplicates masked": lambda a, p, n, on: losses.info_nce(
            *(a, p, n),
            temperature=TEMPERATURE,
            symmetric=True,
            hard_negative_weight=1.0,
            anchor_text_ids=on(ids[:b]),
            column_text_ids=on(ids),
            anchor_column_text_ids=on(ids[:b]),
        ),
        "batch_softmax_contrastive": lambda a, p, n, on: losses.batch_softmax_contrastive(
            a, p, on(scores > 0.5), temperature=TEMPERATURE
        ),
        "cosine_mse": lambda a, p, n, on: losses.cosine_mse(a, p, on(scores)),
        "cosine_bce": lambda a, p, n, on: losses.cosine_bce(a, p, on(scores), temperature=TEMPERATURE),
        "cosent": lambda a, p, n, on: losses.cosent(a, p, on(scores), temperature=TEMPERATURE),
        "token_contrast": lambda a, p, n, on: losses.token_contrast(
            a, on(torch.arange(b).roll(1)), on(negatives), temperature=TEMPERATURE
        ),
    }

    def loss_and_gradients(function, device, dtype):
        texts = [text.to(device, dtype, copy=True).requires_grad_() for text in inputs]
        loss = function(*texts, lambda values: values.to(device))
        loss.backward()
        gradients = [text.grad for text in texts if text.grad is not None]
        return torch.cat([loss.detach().flatten(), *(gradient.flatten() for gradient in gradients)])

    for name, function in functions.items():
        exact = loss_and_gradients(function, "cpu", torch.float64)
        for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
            result, again = (loss_and_gradients(function, bench.device, dtype) for _ in range(2))
            errors = result.cpu().double() - exact
            loss_error = (errors[0] / exact[0]).abs().item()
            gradient_error = (errors[1:].norm() / exact[1:].norm()).item()
            bench.results.add(
                **{
                    "loss": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "relative error": f"{loss_error:.1e}",
                    "of the gradient": f"{gradient_error:.1e}",
                    "a second call": "the same bits" if torch.equal(result, again) else "other bits",
                }
            )
            if not max(loss_error, gradient_error) < limit:
                bench.results.fail(f"{name} in {dtype} has an error above {limit}")


def run_tests(bench: Bench) -> None:
    import pytest

    class Recorder:
        """Notes the outcome of each test and of each file that cannot be imported."""

        def pytest_runtest_logreport(self, report):
            if report.when == "call" or report.outcome != "passed":
                bench.results.add(test=report.nodeid.rpartition("::")[2], outcome=report.outcome)
            if report.failed:
                print(report.longreprtext)

        def pytest_collectreport(self, report):
            if report.failed:
                bench.results.add(test=report.nodeid, outcome="cannot be imported")
                print(report.longreprtext)

    root = Path(__file__).resolve().parent.parent
    # The fixtures of the other tests need packages that a machine with a GPU may lack.
    options = ["--noconftest", "--rootdir", root, "-c", root / "pyproject.toml", "-m", "gpu", "-W", "ignore"]
    plugins = ["-o", "addopts=--strict-markers", "-p", "no:cacheprovider", "-p", "no:terminal"]
    code = pytest.main([*map(str, [*options, *plugins, root / "tests" / "gpu"])], plugins=[Recorder()])
    if code != pytest.ExitCode.OK:
        bench.results.fail(f"pytest ended with exit code {int(code)}")


LOSSES = "modeling_layerpool.training.losses"
# Masks of packed input need this release of torch.
MODEL = ("torch>=2.6", "modeling_layerpool.models.modeling_layerpool_bert")
STEP = (*MODEL, LOSSES, "modeling_layerpool.training.contrastive.gradient_cache")
PARTS = {
    "step": Part("training steps by batch size, with and without gradient caching", measure_step, STEP),
    "against": Part(
        "training steps here and in sentence-transformers", measure_against, (*STEP, "sentence_transformers")
    ),
    "attention": Part("padded rows, a mask, and attention of variable length", measure_attention, MODEL),
    "loss": Part("the contrastive loss in blocks and as one matrix", measure_loss, (LOSSES,)),
    "encode": Part("texts per second by dtype", measure_encode, MODEL),
    "exact": Part("losses and gradients against float64 on the CPU", measure_exactness, (LOSSES,)),
    "tests": Part("the tests marked gpu", run_tests, (*STEP, "pytest")),
}
