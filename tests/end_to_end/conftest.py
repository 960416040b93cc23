"""The command as it is typed, and a place with checkpoints and data to type it in."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

import niwaki
from helpers_command import flags_of
from niwaki.cli import main
from tiny import VOCABULARY, tiny, with_lora

WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]


@pytest.fixture(autouse=True)
def briefly_timed(monkeypatch):
    """Models are timed in as few rounds as may be: that takes a sixth of these tests' time."""
    monkeypatch.setattr("niwaki.evaluate.latency._LONG", 0.0)


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run `niwaki` with these words in a folder: exit status, standard output, error lines.

    In this process: starting Python takes seconds. Options become flags, see `flags_of`.
    """

    def run(folder, *words, **options):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, words), *flags_of(**options)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=40
    )
    base = tiny(labels=2)
    niwaki.save(base, place / "base", fast)
    with_lora(base).save_pretrained(str(place / "lora"))
    config = json.loads((place / "lora" / "adapter_config.json").read_text())
    (place / "lora" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("train", 40), ("eval", 20)):
        lines = ["sentence\tlabel"]
        for i in range(rows):
            words = torch.randint(0, len(WORDS), (int(torch.randint(3, 12, (), generator=generator)),))
            lines.append(" ".join(WORDS[w] for w in words) + f"\t{i % 2}")
        (place / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (place / "empty.tsv").write_text("sentence\tlabel\n")
    (place / "labels.tsv").write_text("sentence\tlabel\nw1 w2\t7\n")
    lines = ["sentence\tlabel"]
    for i in range(60):
        half = len(WORDS) // 2
        words = torch.randint(0, half, (6,), generator=generator) + (i % 2) * half
        lines.append(" ".join(WORDS[w] for w in words) + ("\tlow", "\thigh")[i % 2])
    (place / "learnable.tsv").write_text("\n".join(lines) + "\n")
    (place / "full").mkdir()
    (place / "full" / "mine").write_text("x")
    _other_models(place, fast)
    return place


def _other_models(place, tokenizer):
    """A body without a head, and models that are refused: an adapter's wrong base, other kinds, damaged ones."""
    tiny(labels=2).base_model.save_pretrained(place / "body")
    wide = DistilBertConfig(vocab_size=VOCABULARY, dim=64, n_layers=3, n_heads=4, hidden_dim=48)
    DistilBertForSequenceClassification(wide).save_pretrained(place / "wide")
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    AlbertForSequenceClassification(AlbertConfig(**small, embedding_size=16)).save_pretrained(place / "albert")
    GPT2ForSequenceClassification(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        place / "gpt2"
    )
    bloom = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2)
    BloomForSequenceClassification(bloom).save_pretrained(place / "bloom")
    broken = tiny(labels=2)
    with torch.no_grad():
        broken.distilbert.transformer.layer[1].ffn.lin1.weight[0, 0] = torch.nan
    broken.save_pretrained(place / "broken")
    for name in ("quantised", "truncated"):
        tiny(labels=2).save_pretrained(place / name)
    config = json.loads((place / "quantised" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (place / "quantised" / "config.json").write_text(json.dumps(config))
    weights = place / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    (place / "unlabelled.txt").write_text("w1 w2\n")
    tiny(labels=2).save_pretrained(place / "wordless")
    few = tiny(labels=2)
    few.resize_token_embeddings(30)
    few.save_pretrained(place / "wordy")
    tiny(labels=2).save_pretrained(place / "padless")
    tokenizer.save_pretrained(place / "padless")
    config = json.loads((place / "padless" / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (place / "padless" / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("wordy", "body", "wide", "albert", "gpt2", "bloom", "broken", "quantised", "truncated"):
        tokenizer.save_pretrained(place / name)
