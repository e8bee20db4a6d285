import ast
import importlib.util
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from modeling_layerpool.common.errors import InputError
from modeling_layerpool.evaluation.encoders import LayerPoolEncoder
from modeling_layerpool.publishing import evaluation_plots, plots
from run_evaluation import EvaluationArguments, run
from tests.evaluation.data import PAIRS, write_lines, write_pairs, write_retrieval


LOG = [
    {"loss": 2.0, "step": 10},
    {"eval_spearman": 70.0, "eval_pairs": 8, "step": 10},
    {"loss": 1.0, "step": 20},
    {"eval_spearman": 80.0, "eval_pairs": 8, "step": 20},
    {"loss": float("nan"), "step": 30},
    {"eval_spearman": 75.0, "eval_pairs": 8, "step": 30},
    {"train_runtime": 1.0, "train_loss": 1.5, "step": 30},
    {"eval_spearman": 80.0, "eval_pairs": 8, "step": 30},
]
EXAMPLES = {
    "plot_layer_weights": ({"short": [0.1, 0.9], "long": [0.5, 0.5]},),
    "plot_learning_curves": (LOG,),
    "plot_alignment_uniformity": ({"ours": {"alignment": 0.2, "uniformity": -2.0, "mean_cosine": 0.1}},),
    "plot_similarities": ([0.1, 0.5, 0.9], [0, 2.5, 5]),
    "plot_scores": ({"stsb": {"mean": [80.0, 81.0]}},),
    "plot_spectrum": ({"ours": [3.0, 1.0, 0.5]},),
    "plot_transfer": (
        {"mr": {"last layer": 77.2, "all states": 79.7}, "cr": {"last layer": 82.3, "all states": 85.9}},
    ),
}
OPTIONS = {"plot_learning_curves": {"metric": "spearman"}}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Make a plot by the name of its function; returns its file and its figure."""
    pytest.importorskip("matplotlib")
    figures = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path))[1])

    def call(name, *data, **options):
        path = getattr(plots, name)(*data, tmp_path / "new" / "plot.png", **options)
        return path, figures[-1]

    return call


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_plot_is_a_png_and_equal_data_make_equal_files(draw, name):
    path, _ = draw(name, *EXAMPLES[name], **OPTIONS.get(name, {}))
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG\r\n\x1a\n")
    assert draw(name, *EXAMPLES[name], **OPTIONS.get(name, {}))[0].read_bytes() == first


def test_a_plot_that_fails_leaves_the_old_file(draw, monkeypatch):
    path, figure = draw("plot_spectrum", *EXAMPLES["plot_spectrum"])
    whole = path.read_bytes()

    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(type(figure), "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw("plot_spectrum", {"other": [1.0]})
    assert path.read_bytes() == whole


def test_the_heat_map_shows_the_weights_in_percent(draw):
    _, figure = draw("plot_layer_weights", *EXAMPLES["plot_layer_weights"], states=[0, 12])
    assert texts_of(figure.axes[0]) == ["10.0", "90.0", "50.0", "50.0"]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[10, 90], [50, 50]])


def test_learning_curves_show_loss_and_score_and_mark_the_best(draw):
    _, figure = draw("plot_learning_curves", LOG, metric="eval_spearman")
    losses, scores = figure.axes
    assert losses.lines[0].get_xydata().tolist() == [[10, 2], [20, 1]]
    assert scores.lines[0].get_xydata().tolist() == [[10, 70], [20, 80], [30, 75]]
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["step 20: 80"]


def test_the_best_loss_is_the_lowest_and_a_given_step_is_taken(draw):
    log = [{"eval_loss": 2.0, "step": 1}, {"eval_loss": 1.0, "step": 2}]
    for options, expected in (({}, "step 2: 1"), ({"best_step": 1}, "step 1: 2")):
        _, figure = draw("plot_learning_curves", log, metric="loss", **options)
        (axes,) = figure.axes  # there is no training loss
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [expected]


@pytest.mark.parametrize("values", [(8.2, 8.2), (8.2, 8.20001), (0.0, 0.0), (82.03, 82.03), (-3.8, -3.8)])
def test_a_flat_curve_is_drawn_flat_and_its_axis_has_no_offset(draw, values):
    log = [{"loss": value, "eval_spearman": value, "step": step} for step, value in enumerate(values, 1)]
    _, figure = draw("plot_learning_curves", log, metric="spearman")
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert high - low >= 0.01 * max(map(abs, values))
        assert low < min(values) <= max(values) < high
        assert axes.yaxis.get_offset_text().get_text() == ""
        heights = axes.transAxes.inverted().transform(axes.transData.transform(axes.lines[0].get_xydata()))[:, 1]
        assert abs(heights[0] - heights[1]) < 0.01


@pytest.mark.parametrize("name", ["plot_scores", "plot_alignment_uniformity"])
def test_close_scores_have_their_numbers_in_full(draw, name):
    data = {
        "plot_scores": {"stsb": {"mean": [82.00001, 82.00002]}},
        "plot_alignment_uniformity": {"a": {"alignment": 0.2, "uniformity": -3.80001}},
    }
    _, figure = draw(name, data[name])
    figure.canvas.draw()
    for axes in figure.axes:
        assert {axis.get_offset_text().get_text() for axis in (axes.xaxis, axes.yaxis)} == {""}


def test_similarities_are_counted_in_five_bins_of_the_gold_score(draw):
    cosines = [0.1, 0.2, 0.3, 0.5, 0.9, 1.0000001]
    _, figure = draw("plot_similarities", cosines, [0, 0.5, 1, 2.5, 4.5, 5])
    assert [texts_of(axes)[0] for axes in figure.axes] == [
        *("gold 4 to 5\n2 pairs", "gold 3 to 4\n0 pairs", "gold 2 to 3\n1 pairs"),
        *("gold 1 to 2\n1 pairs", "gold 0 to 1\n2 pairs"),
    ]
    for axes, total in zip(figure.axes, (100, 0, 100, 100, 100), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(total)


def test_scores_show_each_seed_and_their_mean(draw):
    scores = {"stsb": {"mean": [80.0, 82.0, 84.0], "hire": [81.0]}, "sickr": {"mean": [70.0, 71.0]}}
    _, figure = draw("plot_scores", scores)
    stsb, sickr, *_ = figure.axes
    bar, mean, seeds = stsb.lines[:3]
    assert bar.get_xdata().tolist() == [80, 84]
    assert mean.get_xdata() == [82]
    assert seeds.get_xdata().tolist() == [80, 82, 84]
    assert (len(stsb.lines), len(sickr.lines)) == (6, 3)


def test_a_spectrum_is_shares_of_the_variance(draw):
    _, figure = draw("plot_spectrum", {"model": [1.0, 3.0, 0.0]})
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 75], [2, 25]]


def test_a_name_is_neither_a_formula_nor_endless(draw):
    name = "a$b_$c " * 20
    _, figure = draw("plot_spectrum", {name: [1.0]})
    (text,) = figure.axes[0].get_legend().get_texts()
    assert len(text.get_text().replace("\\", "")) == plots.MAX_NAME


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("plot_layer_weights", ({},), "no weights of hidden states to plot"),
        ("plot_layer_weights", ({"a": [1.0], "b": [0.5, 0.5]},), "weights of 'b': 2 numbers for 1 hidden states"),
        ("plot_layer_weights", ({"a": [-0.5, 1.5]},), "weights of 'a': -0.5 is negative"),
        ("plot_layer_weights", ({"a": ["x"]},), "weights of 'a': not all of them are numbers"),
        ("plot_learning_curves", ([{"train_runtime": 1.0}, *LOG],), "the log has neither a loss nor eval_spearman"),
        ("plot_alignment_uniformity", ({},), "no model to plot"),
        (
            "plot_alignment_uniformity",
            ({"a": {"alignment": None, "uniformity": -1.0}},),
            "uniformity and alignment of 'a': not all of them are finite numbers",
        ),
        ("plot_similarities", ([0.1], [1, 2]), "1 cosines for 2 gold scores"),
        ("plot_similarities", ([0.1, 0.2], [2, 2]), "every gold score is 2"),
        ("plot_similarities", ([], []), "cosines: expected a row of numbers, not an array of shape (0,)"),
        ("plot_scores", ({"stsb": {}},), "no scores to plot"),
        ("plot_scores", ({"stsb": {"mean": [float("nan")]}},), "scores of 'mean' on 'stsb': not all of them"),
        ("plot_transfer", ({},), "no accuracies to plot"),
        ("plot_transfer", ({"mr": {"a": 1.0}, "cr": {"b": 1.0}},), "accuracies: each task needs the same names"),
        ("plot_transfer", ({"mr": {"a": float("nan")}},), "accuracies on 'mr': not all of them are finite"),
        ("plot_spectrum", ({},), "no spectrum to plot"),
        ("plot_spectrum", ({"a": [1.0, -1.0]},), "spectrum of 'a': variances must not be negative"),
    ],
)
def test_wrong_data_is_one_sentence_and_no_file(tmp_path, name, data, message):
    with pytest.raises(InputError) as error:
        getattr(plots, name)(*data, tmp_path / "plot.png", **OPTIONS.get(name, {}))
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match=r"plot\.pdf: plots are PNG files"):
        plots.plot_spectrum({"a": [1.0]}, tmp_path / "plot.pdf")


@pytest.fixture
def without_matplotlib(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name, *rest)
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_without_matplotlib_the_sentence_says_what_to_install(without_matplotlib, tmp_path, name):
    with pytest.raises(InputError, match=r"^plots need matplotlib: pip install matplotlib$"):
        getattr(plots, name)(*EXAMPLES[name], tmp_path / "plot.png", **OPTIONS.get(name, {}))


# --- EvaluationPlots, by run_evaluation.py --plots ---


@pytest.fixture
def folder_of(tiny_model, tokenizer, tmp_path):
    """A saved tiny model with this pooler."""

    def save(pooler_type):
        folder = tmp_path / pooler_type
        tiny_model(pooler_type=pooler_type, initializer_range=0.2).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate a model with plots; returns the names of those written, and the results."""
    pytest.importorskip("matplotlib")

    def main(model, **arguments):
        if not arguments.keys() & {"sts", "pairs", "retrieval"}:
            arguments["sts"] = [f"small={write_pairs(tmp_path / 'pairs.jsonl')}"]
        out = tmp_path / "out"
        results = run(EvaluationArguments(model_name_or_path=model, output_dir=str(out), plots=True, **arguments))
        assert {entry.name for entry in out.iterdir()} == {"evaluation.json", "plots"}
        return {path.stem for path in (out / "plots").iterdir()}, results

    return main


@pytest.mark.long
@pytest.mark.parametrize(
    ("pooler_type", "expected"),
    [
        ("layer_attention", {"layer_weights_by_set", "layer_weights_by_length"}),
        ("weighted_layers", {"layer_weights"}),
        ("mean", set()),
    ],
)
def test_an_evaluation_is_plotted_in_place_of_an_older_one(
    evaluate, folder_of, tmp_path, monkeypatch, pooler_type, expected
):
    (tmp_path / "out" / "plots").mkdir(parents=True)
    for name in ("similarities_first", "layer_weights", "layer_weights_by_set"):
        (tmp_path / "out" / "plots" / f"{name}.png").touch()
    encode, asked = LayerPoolEncoder.encode, []
    monkeypatch.setattr(LayerPoolEncoder, "encode", lambda self, texts: (asked.extend(texts), encode(self, texts))[1])
    written, _ = evaluate(folder_of(pooler_type))
    assert written == expected | {"similarities_small", "alignment_uniformity", "spectrum"}
    assert len(asked) == len(set(asked)) > 0  # each text is embedded once for scores and plots


@pytest.mark.long
def test_every_set_of_an_evaluation_is_in_its_plots(evaluate, folder_of, tmp_path, monkeypatch):
    drawn = {}

    def noting(plot):
        def plot_and_note(*data, **options):
            drawn[data[-1].stem] = data[0]
            return plot(*data, **options)

        return plot_and_note

    for name in EXAMPLES.keys() & vars(evaluation_plots):
        monkeypatch.setattr(evaluation_plots, name, noting(getattr(plots, name)))
    file = write_pairs(tmp_path / "pairs.jsonl")
    compared = write_lines(tmp_path / "other.json", [{"geometry": {"alignment": 0.3, "uniformity": -1.0}}])
    written, results = evaluate(
        folder_of("layer_attention"),
        sts=[f"first={file}", f"a/b={file}"],
        pairs=[f"pairs={file}"],
        retrieval=[f"first={write_retrieval(tmp_path / 'retrieval')}"],
        compare=[f"other={compared}"],
    )
    assert written == drawn.keys()
    assert {"similarities_first", f"similarities_a_b-{zlib.crc32(b'a/b'):08x}"} <= written
    assert list(drawn["layer_weights_by_set"]) == ["first", "a/b", "pairs"]
    assert list(drawn["alignment_uniformity"].values()) == [results["geometry"], {"alignment": 0.3, "uniformity": -1}]
    assert len(drawn["similarities_first"]) == len(PAIRS)
    distinct = {text for *pair, _ in PAIRS for text in pair}
    assert np.count_nonzero(drawn["spectrum"]["this model"]) == len(distinct) - 1  # as they are centred


def test_weights_of_layers_are_those_of_texts_with_their_prompt(evaluate, folder_of, tmp_path, monkeypatch):
    layer_weights, read = evaluation_plots.layer_weights, []
    monkeypatch.setattr(
        evaluation_plots,
        "layer_weights",
        lambda *data, **options: (read.extend(data[2]), layer_weights(*data, **options))[1],
    )
    folder = folder_of("layer_attention")
    prompts = {"query": "query: ", "document": "passage: ", "alike": "like: "}
    settings = {"prompts": prompts, "default_prompt_name": "alike"}
    write_lines(Path(folder, "config_sentence_transformers.json"), [settings])
    sts, retrieval = write_pairs(tmp_path / "pairs.jsonl"), write_retrieval(tmp_path / "retrieval")
    evaluate(folder, sts=[f"a={sts}"], retrieval=[f"b={retrieval}"])
    assert {"like: A man plays the guitar.", "passage: Onion"} <= set(read)
    assert all(text.startswith(("like: ", "passage: ")) for text in read)


def test_other_encoders_are_plotted_without_weights_of_layers(evaluate, tiny_config, tokenizer, tmp_path):
    BertModel(BertConfig(**tiny_config)).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    written, _ = evaluate(str(tmp_path / "plain"))
    assert written == {"similarities_small", "alignment_uniformity", "spectrum"}


@pytest.mark.parametrize("name", ["会" * 60, "a" * 250, "a/b", "..", 'a"b*'])
def test_a_set_of_any_name_has_a_file(tmp_path, name):
    file = tmp_path / f"similarities_{evaluation_plots._file_name(name)}.png"
    file.touch()
    assert file.parent == tmp_path
    assert evaluation_plots._file_name(f"{name}?") != evaluation_plots._file_name(name)


def test_a_file_in_place_of_the_folder_of_plots_is_refused_before_anything_is_computed(folder_of, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plots").touch()
    arguments = EvaluationArguments(
        model_name_or_path=folder_of("mean"),
        output_dir=str(tmp_path / "out"),
        plots=True,
        sts=[f"small={write_pairs(tmp_path / 'pairs.jsonl')}"],
    )
    with pytest.raises(InputError, match="is a file, not a folder"):
        run(arguments)
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_value_that_is_not_defined_is_not_plotted(evaluate, folder_of, tmp_path, caplog):
    # labelled or scored pairs alone give no geometry
    written, _ = evaluate(folder_of("hire"), pairs=[f"pairs={write_pairs(tmp_path / 'pairs.jsonl')}"])
    assert written == {"layer_weights_by_set", "layer_weights_by_length"}
    assert "alignment or uniformity is not defined" in caplog.text


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        (["a=missing.json"], "missing.json: no such file"),
        (["a={broken}"], "broken.json: no evaluation.json with alignment and uniformity"),
        (["a={null}"], "null.json: no evaluation.json with alignment and uniformity"),
        (["a={nan}"], "nan.json: no evaluation.json with alignment and uniformity"),
        (["a={list}"], "list.json: no evaluation.json with alignment and uniformity"),
        (["a={huge}"], "huge.json: no evaluation.json with alignment and uniformity"),
        (["a={deep}"], "deep.json: JSON that is nested too deeply"),
        (["a={half}"], "half.json: not valid JSON"),
        (["a=" + "x" * 300], "cannot be read (File name too long)"),
        (["\udc80={good}"], 'compare="\\udc80='),
        (["{nan}"], "expected NAME=PATH"),
        (["this model={good}"], "'this model' is the name of the model that is measured"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_before_the_model_is_opened(evaluate, compare, message, tmp_path):
    contents = {
        "broken": {"sts": {}},
        "null": {"geometry": {"alignment": None, "uniformity": -1}},
        "nan": {"geometry": {"alignment": float("nan"), "uniformity": -1}},
        "good": {"geometry": {"alignment": 0.1, "uniformity": -1}},
    }
    contents |= {"list": [1], "huge": {"geometry": {"alignment": 10**400, "uniformity": -1}}}
    contents = {name: json.dumps(content) for name, content in contents.items()}
    contents |= {"deep": "[" * 100_000, "half": '{"geometry": '}
    files = {name: write_lines(tmp_path / f"{name}.json", [text]) for name, text in contents.items()}
    with pytest.raises(InputError) as error:
        evaluate("no-such-model", compare=[value.format(**files) for value in compare])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_plots_without_matplotlib_are_refused_before_the_model_is_opened(without_matplotlib, tmp_path):
    arguments = {"model_name_or_path": "no-such-model", "output_dir": str(tmp_path / "out"), "sts": ["a=missing"]}
    with pytest.raises(InputError, match=r"^plots need matplotlib"):
        run(EvaluationArguments(plots=True, **arguments))
    with pytest.raises(InputError, match=r"^--compare does nothing without --plots"):
        run(EvaluationArguments(compare=["a=b"], **arguments))


def test_no_module_imports_matplotlib_before_a_plot_is_drawn():
    for path in Path(plots.__file__).parents[1].rglob("*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                assert not re.match("(import|from) matplotlib", ast.unparse(statement)), path
