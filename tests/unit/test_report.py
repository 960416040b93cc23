"""The page and the card show what the result holds, and text from outside stays text."""

from __future__ import annotations

import dataclasses
import html
import re

import pytest

from niwaki.errors import RequestError
from niwaki.report import course_lines, is_page, model_card, page
from niwaki.results import Result, read_result, write_result

SIDE = {"quality": {"accuracy": 0.9}, "params": 1000, "flops": 2e6, "size_bytes": 4000, "zeros": 0}
SIDE |= {"embedding_params": 10, "head_params": 5}
TIMING = {"dense_ms": 3.0, "pruned_ms": 1.5, "speedup": 2.0}
LAYER = {"name": "layer.0.ffn", "kind": "ffn", "importance": 0.25, "kept": 3, "total": 4, "ratio": 0.25}
RESULT = Result(
    run={"seed": 7, "cpu": "A <fast> one", "threads": 2, "device": "cpu", "started": "2026-01-02T03:04:05+00:00"},
    recipe={"model": "<script>alert(1)</script>"},
    data={"train": {"path": "glue/sst2"}},
    stages=[{"name": "structured", "budget": {"kind": "flops", "requested": 0.5, "achieved": 0.4999}}],
    dense=SIDE,
    pruned={**SIDE, "quality": {"accuracy": 0.8}, "params": 500},
    latency={"batch_1": TIMING, "seq_len": 12, "threads": 2, "rounds": 15},
    layers=[LAYER, {**LAYER, "name": "layer.1.ffn", "kept": 0, "total": 0, "ratio": 0.0}],
    warnings=["mind & gap"],
)
TUNED = dataclasses.replace(
    RESULT, layers=[], stages=[{"name": "finetune", "budget": {"kind": "params", "requested": 1.0, "achieved": 1.0}}]
)


def test_the_page_shows_the_figures_and_escapes_text():
    html = page([RESULT])
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "mind &amp; gap" in html
    assert "A &lt;fast&gt; one" in html
    for shown in (
        "structured: 0.4999 of the flops kept (0.5 asked).",
        "0.8000",
        "-0.1000",
        "x 0.500",
        "2.00x",
        "length 12",
        "3 / 4",
        "width: 75.0%",
        "train glue/sst2",
        "Seed 7",
    ):
        assert shown in html
    assert not re.search(r"(src|href)=", html)


def test_each_of_several_stages_says_what_its_share_is_of():
    sparse = {"name": "layer-adaptive", "budget": {"kind": "sparsity", "requested": 0.6, "achieved": 0.6}}
    twice = dataclasses.replace(RESULT, stages=[*TUNED.stages, *RESULT.stages, *RESULT.stages, sparse])
    for text in (page([twice]), model_card(twice)):
        for number in (1, 2):
            assert f"{number}. structured: 0.4999 of the flops that came into this stage kept (0.5 asked)." in text
        assert "linear weights that came into this stage are zero (0.6 asked)." in html.unescape(text)


def test_several_stages_show_what_each_left():
    fresh = {**SIDE, "quality": {"accuracy": 0.5}, "new_head": True}
    first, second = ({**stage, "before": {}, "after": {}} for stage in (*TUNED.stages, *RESULT.stages))
    first |= {"before": fresh, "after": SIDE}
    second |= {"before": SIDE, "after": RESULT.pruned}
    staged = dataclasses.replace(RESULT, stages=[first, second])
    lines = [
        "as it came in: accuracy 0.5000 (new head, untrained), 1,000 params, 2,000,000 flops, 0 zeros",
        "after finetune: accuracy 0.9000, 1,000 params, 2,000,000 flops, 0 zeros",
        "after structured: accuracy 0.8000, 500 params, 2,000,000 flops, 0 zeros",
    ]
    assert course_lines(staged) == lines
    card, html = model_card(staged), page([staged])
    assert "| as it came in | 0.5000 (new head, untrained) | 1,000 | 2,000,000 | 0 | 4,000 |" in card
    for text in (card, html):
        places = [text.index(line.partition(":")[0]) for line in lines]
        assert places == sorted(places)
    for text in (model_card(RESULT), page([RESULT]), page([dataclasses.replace(RESULT, stages=RESULT.stages * 2)])):
        assert "as it came in" not in text


def test_a_page_is_told_from_other_files(tmp_path):
    for text, ours in ((page([RESULT]), True), ("<!doctype html>\n<html>", False), ("", False)):
        (tmp_path / "page.html").write_text(text)
        assert is_page(tmp_path / "page.html") == ours


def test_a_model_without_blocks_has_no_ratio():
    empty = {**SIDE, "params": 0, "flops": 0.0}
    emptied = dataclasses.replace(RESULT, dense=empty, pruned=empty)
    assert "| params | 0 | 0 |  |" in model_card(emptied)
    assert "<h2>" in page([emptied])


def test_one_page_for_several_results():
    html = page([RESULT, TUNED])
    assert html.count("<h2>") == 2
    assert html.count("<th>site</th>") == 1


@pytest.mark.parametrize(("result", "title"), [(RESULT, "# Pruned with Niwaki"), (TUNED, "# Fine-tuned with Niwaki")])
def test_the_card_shows_the_figures(result, title):
    card = model_card(result)
    assert title in card
    assert "| accuracy | 0.9000 | 0.8000 | -0.1000 |" in card
    assert "Data: train glue/sst2. Seed 7. Measured on A <fast> one, 2 threads, cpu, 2026-01-02." in card
    assert ("0.4999 of the flops kept" in card) == (result is RESULT)


def test_results_are_read_as_they_were_written(tmp_path):
    write_result(RESULT, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == RESULT
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(dataclasses.replace(RESULT, dense={"quality": {"accuracy": float("nan")}}), tmp_path / "bad.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "run": {}}', None])
def test_a_result_that_is_none_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(RequestError, match="DIR must hold"):
        read_result(tmp_path / "result.json")
