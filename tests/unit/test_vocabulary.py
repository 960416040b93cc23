"""A trimmed tokenizer cuts the text of its corpus as before, and any other text as far as it could before."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

import niwaki
from helpers_tokenizers import KINDS, sentences, tokenizer_of
from niwaki.methods.vocabulary import retokenised
from tiny import tiny

FALLS_BACK = ("byte-level", "whole words first", "byte fallback", "unigram, bytes")
many = functools.partial(settings, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(
    st.one_of(
        st.text(alphabet="abcdefghij .!éß日<>\n", max_size=30),
        st.text(max_size=8),
        st.integers(0, 10_000).map(lambda seed: sentences(1, seed)[0]),
        st.sampled_from(["<plain>", "a <special> b", "<0x41>", "##a", "a</w>", "▁a"]),
    ),
    min_size=1,
    max_size=12,
)


@functools.cache
def tokenizer(kind):
    return tokenizer_of(kind)


def fresh(size):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return LlamaForCausalLM(config).eval()


def trim(old, corpus, rows=None, **options):
    """The new tokenizer, the model, the result."""
    model = fresh(rows or len(old))
    new, result = niwaki.trim_vocabulary_(model, old, corpus, niwaki.Vocabulary(**options))
    return new, model, result


def pieces(tokenizer, text, **options):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, **options)["input_ids"])


@many(max_examples=15)
@pytest.mark.parametrize("kind", KINDS)
@given(corpus=texts, others=texts)
def test_the_corpus_is_cut_as_before_and_other_texts_still_can_be(kind, corpus, others):
    old = tokenizer(kind)
    if not any(old(corpus, add_special_tokens=False)["input_ids"]):
        return
    new, model, result = trim(old, corpus)
    assert len(new) == result.details["kept"] == model.config.vocab_size <= len(old)
    assert [pieces(new, text) for text in corpus] == [pieces(old, text) for text in corpus]
    for text in others:
        before, after = (pieces(t, text, add_special_tokens=False) for t in (old, new))
        if kind != "word level":
            assert after.count(new.unk_token) == before.count(old.unk_token)
        assert (before == after) or set(before) - set(new.get_vocab())
        if kind in FALLS_BACK:
            assert new.decode(new(text)["input_ids"]) == old.decode(old(text)["input_ids"])


@many(max_examples=8)
@pytest.mark.parametrize("kind", KINDS)
@given(corpus=texts)
def test_words_are_cut_as_a_tagger_reads_them(kind, corpus):
    old, rows = tokenizer(kind), [text.split() for text in corpus if text.split()]
    if not rows or not any(old(rows, is_split_into_words=True, add_special_tokens=False)["input_ids"]):
        return
    new, _, result = trim(old, rows)
    assert [pieces(new, row, is_split_into_words=True) for row in rows] == [
        pieces(old, row, is_split_into_words=True) for row in rows
    ]
    assert result.details["train"]["texts_changed"] == 0


@many(max_examples=8)
@pytest.mark.parametrize("kind", KINDS)
@given(corpus=texts)
def test_used_characters(kind, corpus):
    old = tokenizer(kind)
    if not any(old(corpus, add_special_tokens=False)["input_ids"]):
        return
    new, _, _ = trim(old, corpus, characters="used")
    assert len(new) <= len(trim(old, corpus)[0])
    assert [pieces(new, text) for text in corpus] == [pieces(old, text) for text in corpus]
    if kind in FALLS_BACK:
        assert new.decode(new("日 xyz é").input_ids) == old.decode(old("日 xyz é").input_ids)


def by_hand(model, **names):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **names)


def test_what_is_unknown_costs_as_much_as_before():
    """Unigram takes 10 off the lowest score: without "zz", "abcd" and an unknown letter would win over four pieces."""
    scores = {"<unk>": 0.0, "a": -10.0, "b": -10.0, "c": -10.0, "d日": -10.0, "abcd": -1.0, "z": -5.0, "zz": -30.0}
    old = by_hand(models.Unigram([*scores.items(), ("zzz", -9.0)], 0, False), unk_token="<unk>")
    new, _, _ = trim(old, ["abcd日", "abcd"])
    assert pieces(old, "abcd日") == pieces(new, "abcd日") == ["a", "b", "c", "d日"]
    assert set(new.get_vocab()) == set(scores)


def test_tokens_that_no_others_can_spell_stay():
    words = ("[UNK]", "a", "##a", "##日b", "aaa", "##aa")
    old = by_hand(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"), unk_token="[UNK]")
    new, _, _ = trim(old, ["aa"])
    assert new.get_vocab() == {"[UNK]": 0, "a": 1, "##a": 2, "##日b": 3}
    assert pieces(new, "aa日b") == ["a", "##a", "##日b"]


def test_a_space_is_a_character_whatever_the_data_use():
    old = tokenizer("byte fallback")
    new, _, _ = trim(old, ["<plain>"], characters="used")
    assert new.decode(new("a 日").input_ids) == "<s> a 日"


def test_ids_that_move_are_told_to_the_padding_and_the_post_processor():
    old = tokenizer_of("byte-level")
    last = old.convert_tokens_to_ids("<special>")
    old.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <special>", pair="$A <special> $B", special_tokens=[("<special>", last)]
    )
    old.pad_token = "<special>"
    old([sentences(1)[0], "a"], padding=True)  # leaves its padding in the tokenizer
    new, _, _ = trim(old, sentences(3))
    moved = new.convert_tokens_to_ids("<special>")
    assert moved == len(new) - 1 < last
    assert new("a a")["input_ids"][-1] == moved
    assert new.pad_token_id == moved
    again = json.loads(new.backend_tokenizer.to_str())
    assert again["post_processor"]["special_tokens"]["<special>"]["ids"] == [moved]
    assert again["padding"] is None or again["padding"]["pad_id"] == moved


def test_what_was_set_on_a_tokenizer_stays_set():
    old = tokenizer_of("word piece")
    old.padding_side, old.truncation_side, old.model_max_length = "left", "left", 7
    old.model_input_names, old.chat_template = ["input_ids"], "{{ messages }}"
    new, _, _ = trim(old, sentences(3))
    for name in ("padding_side", "truncation_side", "model_max_length", "model_input_names", "chat_template"):
        assert getattr(new, name) == getattr(old, name)
    assert new.name_or_path == old.name_or_path
    assert list(new(["a", "a a"], padding=True)) == ["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back_the_same(kind, tmp_path):
    old, corpus = tokenizer(kind), [*sentences(6), "a<plain>b <special>"]
    new, model, result = trim(old, corpus)
    assert len(new) < 0.9 * len(old)
    niwaki.save(model, tmp_path / "trimmed", new)
    again = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    assert again.get_vocab() == new.get_vocab()
    assert sorted(again.get_vocab().values()) == list(range(result.details["kept"]))
    assert again.special_tokens_map == old.special_tokens_map
    kept = sorted(index for token, index in old.get_vocab().items() if token in new.get_vocab())
    assert again.convert_ids_to_tokens(range(len(new))) == old.convert_ids_to_tokens(kept)
    padded = {"padding": True} if old.pad_token else {}
    for text in (*corpus, *sentences(20, seed=5), "日本 ß?"):
        assert again(text)["input_ids"] == new(text)["input_ids"]
    for found, wanted in ((again, old), (new, old)):
        pair, before = (t([corpus[0], "a"], corpus[:2], **padded) for t in (found, wanted))
        assert [found.convert_ids_to_tokens(row) for row in pair["input_ids"]] == [
            wanted.convert_ids_to_tokens(row) for row in before["input_ids"]
        ]
        assert pair["attention_mask"] == before["attention_mask"]
        ids = found(corpus[0])["input_ids"]
        assert found.decode(ids) == wanted.decode(wanted(corpus[0])["input_ids"])
        assert found.decode(ids, skip_special_tokens=True) == wanted.decode(
            wanted(corpus[0])["input_ids"], skip_special_tokens=True
        )


def _vocabulary(kind):
    model = json.loads(KINDS[kind]().to_str())["model"]
    return {"vocab": model["vocab"]} | ({"merges": list(map(tuple, model["merges"]))} if "merges" in model else {})


def _xlm_roberta():
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [tuple(entry) for entry in _vocabulary("unigram")["vocab"] if not entry[0].startswith("<")]
    return XLMRobertaTokenizer(vocab=[*first, *pieces, ("<mask>", 0.0)])


@pytest.mark.parametrize(
    "made",
    [
        lambda: BertTokenizer(**_vocabulary("word piece")),
        lambda: GPT2Tokenizer(**_vocabulary("byte-level")),
        lambda: RobertaTokenizer(**_vocabulary("byte-level")),
        lambda: LlamaTokenizer(**_vocabulary("byte fallback")),
        lambda: GemmaTokenizer(**_vocabulary("byte fallback")),
        _xlm_roberta,
    ],
)
def test_classes_that_build_themselves(made, tmp_path):
    """These do not load `tokenizer.json` as it stands: they take the tokens out of it and bring the rest along."""
    old, corpus = made(), sentences(8)
    new, model, _ = trim(old, corpus)
    assert len(new) < 0.9 * len(old)
    niwaki.save(model, tmp_path / "trimmed", new)
    again = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    assert type(again) is type(old)
    for text in corpus:
        assert pieces(again, text) == pieces(new, text) == pieces(old, text)
    assert again.convert_tokens_to_ids(again.all_special_tokens) == new.all_special_ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_asked_is_the_size_delivered(kind):
    old, corpus = tokenizer(kind), sentences(60)
    least = len(trim(old, ["a"])[0])
    used = len(trim(old, corpus)[0])
    size = (least + used) // 2
    new, model, result = trim(old, corpus, size=size)
    assert size - 1 <= len(new) == model.config.vocab_size <= size
    assert result.requested == pytest.approx(size / len(old))
    assert result.achieved == pytest.approx(len(new) / len(old))
    assert len(trim(old, corpus, size=10_000)[0]) == used
    with pytest.raises(niwaki.RequestError, match=r"size must be at least \d+, .* any text needs, got 1$"):
        trim(old, corpus, size=1)


def test_rare_tokens_go():
    old = tokenizer("word level")
    corpus = ["a . " * 3, f"{sentences(1)[0]}"]
    once, often = (trim(old, corpus, min_count=count) for count in (1, 3))
    assert set(once[0].get_vocab()) > set(often[0].get_vocab()) > {"[PAD]", "[UNK]", "<plain>", "<special>"}
    found = often[2].details["train"]
    assert (found["texts"], found["texts_changed"]) == (2, 1)
    assert 0 < found["tokens_gone"] <= found["tokens_before"] == found["tokens_after"]
    assert retokenised(old, often[0], corpus).to_dict() == found


def test_nothing_to_trim():
    old = tokenizer("word piece")
    new, model, result = trim(old, sentences(2000))
    everything, _, _ = trim(new, sentences(2000))
    assert everything is new
    new, model, result = trim(new, sentences(2000))
    assert result.achieved == 1.0
    assert result.warnings == (f"vocabulary: the data need all {len(new)} tokens, none could go",)
    assert model.config.vocab_size == len(new)


def test_rows_without_a_token_go():
    old = tokenizer("byte-level")
    new, model, result = trim(old, sentences(5), rows=len(old) + 40)
    assert model.get_input_embeddings().weight.shape[0] == len(new)
    assert result.details["rows_without_token"] == 40
    assert f"40 of the {len(old) + 40} rows of the embeddings had no token and are gone" in result.warnings[0]


@pytest.mark.parametrize(("moved", "collides"), [(1, False), (30, True)])
def test_a_vocabulary_with_holes(moved, collides):
    """The `tokenizers` library numbers added tokens by how many there are: into a hole, or twice the same id."""
    plain = json.loads(KINDS["word level"]().to_str())
    words = list(plain["model"]["vocab"])
    plain["model"]["vocab"] = {word: index + 9 * (index >= len(words) - moved) for index, word in enumerate(words)}
    old = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(plain)))
    old.add_tokens(["<more>"])
    assert old.get_vocab()["<more>"] == len(words)
    corpus, model = [*sentences(3), f"<more> {words[-1]}"], fresh(600)
    before, ids = model.get_input_embeddings().weight.detach().clone(), old.get_vocab()
    if collides:
        with pytest.raises(niwaki.RequestError, match=r"tokens be numbered anew .* of 23 for 22 tokens"):
            niwaki.trim_vocabulary_(model, old, corpus)
        return
    new, _ = niwaki.trim_vocabulary_(model, old, corpus)
    assert new.get_vocab()["<more>"] == len(new) - 1
    for token, index in new.get_vocab().items():
        assert torch.equal(model.get_input_embeddings().weight[index], before[ids[token]])


def test_wrong_requests():
    old = tokenizer("word piece")
    for options, words in (
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"characters": "uesd"}, "characters must be one of all, used, got 'uesd'; did you mean 'used'"),
    ):
        with pytest.raises(niwaki.RequestError, match=words):
            niwaki.Vocabulary(**options)
    with pytest.raises(niwaki.RequestError, match="at least one token, got none in 2 texts"):
        trim(old, ["", " "])
    with pytest.raises(niwaki.RequestError, match=r"tokenizer must be the model's own, with ids below 20, got id \d+"):
        trim(old, sentences(3), rows=20)


@pytest.mark.parametrize("strict", [False, True])
def test_what_a_chat_template_says_stays_in_the_vocabulary(strict):
    """Also of one that takes no system message."""
    tokens = ("<unk>", "<s>", "</s>", "a", "good", "film", "user", "system", "model", "other")
    words = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" if strict else ""
    turns = "{% for m in messages %}" + refusal + "{{ m['role'] + ' ' + m['content'] + ' ' }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}model{% endif %}"
    lm = tiny("llama")
    lm.resize_token_embeddings(len(tokenizer))
    trimmed, _ = niwaki.trim_vocabulary_(lm, tokenizer, ["good film"])
    assert set(tokens) - set(trimmed.get_vocab()) == ({"other", "system"} if strict else {"other"})


def test_tokenizers_that_cannot_be_rewritten_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(niwaki.RequestError, match=r"must be a fast one \(a tokenizer.json\) .* got Slow"):
        niwaki.trim_vocabulary_(fresh(50), Slow(), ["a"])
    shaky = tokenizer_of("byte-level")
    plain = json.loads(shaky.backend_tokenizer.to_str())
    plain["model"]["dropout"] = 0.1
    shaky._tokenizer = Tokenizer.from_str(json.dumps(plain))
    with pytest.raises(niwaki.RequestError, match=r"without BPE dropout .* got 0.1"):
        trim(shaky, ["a"])
    lacking = tokenizer_of("word level")  # its class adds the special token that is missing
    plain = json.loads(lacking.backend_tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["content"] != "<special>"]
    lacking._tokenizer = Tokenizer.from_str(json.dumps(plain))
    with pytest.raises(niwaki.RequestError, match=r"numbered anew .* got a \w+ of \d+ for \d+ tokens"):
        trim(lacking, sentences(3))
