"""The page and the card show what the result holds, and text from outside stays text."""

from __future__ import annotations

import dataclasses
import html as html_module
import io
import re
import shlex
import shutil

import pytest
from huggingface_hub import ModelCard
from rich.console import Console
from typer.main import get_command

from niwaki import cli
from niwaki.config import (
    DynamicSparsityTraining,
    Finetune,
    LayerAdaptive,
    Recipe,
    Structured,
    Vocabulary,
    recipe_to_dict,
)
from niwaki.errors import RequestError
from niwaki.evaluate.quality import lower_is_better
from niwaki.report import course_lines, is_page, model_card, page, result_table, sweep_lines
from niwaki.report.headline import frontier
from niwaki.report.request import command, trains
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
        "2.00\u00d7",
        "at 12 tokens a row",
        '3<span class="of"> / 4</span>',
        "width:75.0%",
        "train glue/sst2",
        "Seed 7",
    ):
        assert shown in html
    assert not re.search(r"""(src|href)="[^#]|url\(|@import|http(?!://www.w3.org/)""", html)


FULL = dataclasses.replace(
    RESULT,
    run={**RESULT.run, "seconds": 9.0},
    recipe={
        "model": "a model",
        "out": "half",
        "train_data": "t.tsv",
        "eval_data": "e.tsv",
        "label_names": ["no", "<yes>"],
        "keep_adapter": True,
        "stages": [{"kind": "structured", "flops": 0.5, "repair": "bias", "allocation": "global"}],
    },
    stages=[{**RESULT.stages[0], "seconds": 3.0, "forward_passes": 7.0, "backward_passes": 1.0}],
    dense={**SIDE, "interval": {"accuracy": [0.88, 0.92]}, "latency": {"batch_1": 3.0}},
    pruned={**RESULT.pruned, "interval": {"accuracy": [0.78, 0.82]}, "latency": {"batch_1": 1.5}},
    latency={**RESULT.latency, "batch_1": {**TIMING, "quartiles": {"speedup": [1.9, 2.2]}}},
    layers=[
        {**LAYER, "name": f"layer.{layer}.{part}", "kind": part, "other_scores": {"block-influence": layer / 3}} | heads
        for layer in (0, 1)
        for part, heads in (
            ("attention", {"scores": [0.1, 0.3 + layer, 0.2, 0.4], "units": [1, 2, 3]}),
            ("ffn", {}),
        )
    ],
    behaviour={
        "kind": "class",
        "rows": 50,
        "changed": 9,
        "right": {"both": 38, "dense_only": 7, "pruned_only": 2, "neither": 3},
        "examples": [
            {"row": row, "text": f"<i>text {row}</i>", "truth": "no", "dense": "no", "pruned": "<yes>"}
            for row in range(9)
        ],
        "confusion": {"labels": ["no", "<yes>"], "dense": [[20, 5], [0, 25]], "pruned": [[15, 10], [0, 25]]},
        "by_name": [{"name": "no", "count": 25, "dense": 0.9, "pruned": 0.75}],
    },
)


def test_all_that_a_result_holds_has_its_section_with_a_table_behind_each_figure():
    html = page([FULL])
    sections = re.findall(r'<h2 class="section" id="([\w-]+)">', html)
    assert sections == ["request", "house", "depth", "behaviour", "latency", "time", "again"]
    assert set(re.findall(r'href="#([\w-]+)"', html)) == {*sections, "main"}
    assert html.count('aria-label="3 of 4 heads stay; removed: 0"') == 2
    assert html.count('class="gone" style') == 2 + 1  # and the legend
    assert html.count("<figure>") == html.count("</figure>") == 4
    assert html.count('<svg role="img"') == html.count("<title>") - 1 == html.count("<desc>") == 3
    assert "<i>text" not in html
    assert html.count("&lt;i&gt;text") == 9
    assert "95 % interval 0.7800 to 0.8200" in html
    assert "half of the pairs 1.90 to 2.20" in html
    asked = "niwaki prune structured --model 'a model' --out half --label-names no '<yes>' --train-data t.tsv"
    assert f"{asked} --eval-data e.tsv --keep-adapter --flops 0.5 --repair bias" in html_module.unescape(html)
    assert page([FULL]) == html  # the same bytes


def test_the_budgets_that_were_tried_are_a_table():
    tries = [{"flops": 0.6, "accuracy": 0.9, "share": 1.0, "kept": True}]
    tries.append({"flops": 0.4, "accuracy": 0.8, "share": 0.8889, "kept": False})
    search = {"share": 0.99, "metric": "accuracy", "dense": 0.9, "rows": 512, "tries": tries}
    html = page([dataclasses.replace(FULL, stages=[{**FULL.stages[0], "keep_quality": search}])])
    table = html[html.index("Budgets tried on 512 held-out rows of the training data; dense 0.9000") :]
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", table[: table.index("</table>")])
    assert cells == [
        *("flops", "accuracy", "share of dense", "keeps 0.99"),
        *("0.6000", "0.9000", "1.0000", "yes"),
        *("0.4000", "0.8000", "0.8889", "no"),
    ]
    assert "Budgets tried" not in page([FULL])


def test_a_way_with_a_long_name_is_read_whole_beside_its_bar():
    timed = {"batch_1": TIMING, "batch_1_long": {**TIMING, "seq_len": 2048}, "seq_len": 512}
    html = page([dataclasses.replace(FULL, latency={**FULL.latency, **timed})])
    drawing = html[html.index("<title>Measured latency</title>") :]
    drawing = drawing[: drawing.index("</svg>")]
    one_line = re.findall(r'text-anchor: end; [^>]*x="([-.\d]+)"[^>]*>([^<]*)<', drawing)
    lines = re.findall(r"translate\(([-.\d]+) [^>]*>([^<]*)<", drawing)
    assert [word for _, word in one_line + lines] == ["batch 1", "batch 1 long,", "2048 tokens a row"]
    starts = [float(end) - 7 * len(word) for end, word in one_line] + [float(start) for start, _ in lines]
    assert min(starts) >= 0  # the left edge of the drawing


def test_masks_that_moved_and_a_language_model_have_their_figures():
    update = {"sparsity": 0.5, "dropped": 9.0, "grown": 4.0, "regrown": 1.0, "distance": 0.2}
    stage = {**FULL.stages[0], "weights": 100, "course": [{"step": step, **update} for step in (4, 8)]}
    place = {"last": 9, "tokens": 40, "dense": 2.0, "pruned": 2.5}
    said = {"kind": "next-token", "rows": 5, "tokens_seen": 80, "tokens": [{"token": " <a\n", "count": 3, **place}]}
    said["positions"] = [{"first": first, **place} for first in (2, 6)]
    html = page([dataclasses.replace(FULL, stages=[stage], behaviour=said)])
    assert [f"<title>{title}</title>" in html for title in ("Mask churn", "Sparsity", "Loss by position")] == [True] * 3
    assert "␣&lt;a\\n" in html


def test_the_result_is_a_table_on_a_terminal():
    shown = io.StringIO()
    Console(file=shown, width=120).print(result_table(FULL))
    for row in ("accuracy .* 0.9000 .* 0.8000 .* -0.1000", r"batch 1 .* 3.0 .* 1.5 .* 2.00x as fast \(1.90 to 2.20\)"):
        assert re.search(row, shown.getvalue())
    assert "\x1b" not in shown.getvalue()


def test_the_frontier_is_of_those_that_none_beats():
    assert frontier([3.0, 1.0, 2.0, 2.0], [0.9, 0.7, 0.6, 0.8]) == [1, 3, 0]


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("perplexity", True),
        ("pseudo perplexity", True),
        ("bits_per_token", True),
        ("wikitext/bits_per_byte", True),
        ("wikitext/word_perplexity,strict", True),
        ("accuracy", False),
        ("habits/accuracy", False),  # has bits in it
        ("perplexity_of_questions/accuracy", False),
    ],
)
def test_what_is_better_is_told_by_the_metric_and_not_by_its_file(metric, lower):
    assert lower_is_better(metric) == lower


def test_each_of_several_stages_says_what_its_share_is_of():
    sparse = {"name": "layer-adaptive", "budget": {"kind": "sparsity", "requested": 0.6, "achieved": 0.6}}
    twice = dataclasses.replace(RESULT, stages=[*TUNED.stages, *RESULT.stages, *RESULT.stages, sparse])
    for text in (page([twice]), model_card(twice)):
        for number in (1, 2):
            assert f"{number}. structured: 0.4999 of the flops that came into this stage kept (0.5 asked)." in text
        assert "linear weights that came into this stage are zero (0.6 asked)." in html_module.unescape(text)


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
    assert "Niwaki report" in page([emptied])


def test_one_page_for_several_results():
    html = page([RESULT, TUNED])
    assert html.count('<h2 class="title"') == html.count("<article") == 2
    assert html.count('class="house"') == 1
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "accuracy over latency, batch 1" in html


def test_without_labels_likeness_stands_side_by_side():
    side = {**SIDE, "quality": {}}
    bare = dataclasses.replace(RESULT, dense=side, pruned=side, fidelity={"agreement": 0.9321, "kl": 0.0456})
    table = page([bare, dataclasses.replace(bare, fidelity={"agreement": 0.8765})]).split("Side by side")[1]
    table = table.split("</table>")[0]
    assert "agreement to dense" in table
    assert all(figure in table for figure in ("0.9321", "0.0456", "0.8765"))
    point = {"name": "point", "size_bytes": 2e6, "fidelity": bare.fidelity}
    found = {"metric": None, "dense": {"size_bytes": 3e6}, "points": [point], "timed": {"latency": {}}, "picked": None}
    dense, said = sweep_lines(found)
    assert "agreement 0.9321  kl 0.0456" in said
    assert "agreement" not in dense


@pytest.mark.parametrize(("result", "title"), [(RESULT, "# Pruned with Niwaki"), (TUNED, "# Fine-tuned with Niwaki")])
def test_the_card_shows_the_figures(result, title):
    card = model_card(result)
    assert title in card
    assert "| accuracy | 0.9000 | 0.8000 | -0.1000 |" in card
    assert "Data: train glue/sst2. Seed 7. Measured on A <fast> one, 2 threads, cpu, 2026-01-02." in card
    assert ("0.4999 of the flops kept" in card) == (result is RESULT)


def test_metrics_are_called_by_files_of_questions_whatever_their_letters(recwarn):
    sides = {"quality": {"日本 a|b<c>/acc": 0.5}}
    asked = dataclasses.replace(RESULT, dense={**SIDE, **sides}, pruned={**SIDE, **sides})
    text = page([asked, asked])
    assert "日本 a|b&lt;c&gt;/acc over size" in text
    assert not recwarn.list
    row = next(line for line in model_card(asked).splitlines() if "日本" in line)
    assert row.replace(r"\|", "").count("|") == 5


def test_the_hub_reads_the_figures_and_what_is_carried_over():
    data = {"eval": {"path": "/home/somebody/dev.tsv", "sha256": "0", "rows": 5}}
    named = dataclasses.replace(RESULT, data=data, recipe={"model": "m", "out": "/tmp/half"})
    source = {"license": "mit", "base_model": "owner/base", "language": "de"}
    card = ModelCard(model_card(named, task="text-classification", source=source))
    found = card.data.to_dict()
    assert {name: found[name] for name in source} == source
    assert found["tags"] == ["niwaki"]
    (figure,) = card.data.eval_results
    assert (figure.metric_type, figure.metric_value, figure.dataset_name) == ("accuracy", 0.8, "dev.tsv")
    assert "somebody" not in str(found)
    encoder = ModelCard(model_card(named, task="embedding", sentences=True)).data
    assert (encoder.library_name, encoder.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "SentenceTransformer(" in model_card(named, sentences=True)


@pytest.mark.parametrize(("out", "name"), [("models/half", "half"), (".", "model"), ("../..", "model"), ("/", "model")])
def test_figures_are_of_a_model_with_a_name(out, name):
    """The Hub takes no card with figures of a model that is called nothing."""
    made = dataclasses.replace(RESULT, recipe={"model": "m", "out": out}, data={"eval": {"path": "e.tsv"}})
    assert ModelCard(model_card(made, task="text-classification")).data.model_name == name


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


def asked_for(*stages, **options):
    """A result of this recipe."""
    options = {"model": "a model", "out": "o", "train_data": "t", "eval_data": "e"} | options
    return dataclasses.replace(RESULT, recipe=recipe_to_dict(Recipe(stages=stages, **options)))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Finetune(weight_decay=0.0, learning_rate_warmup=0.0), "--weight-decay 0.0 --learning-rate-warmup 0.0"),
        (Structured(flops=0.5, min_heads=0, min_neurons=0, seed=3), "--min-heads 0 --min-neurons 0"),
        (
            LayerAdaptive(0.5, allocation="inverse-importance", importance_strength=0.0, keep_layers=(0,)),
            "--importance-strength 0.0",
        ),
        (DynamicSparsityTraining(sparsity=0.5, update_fraction=0.0), "--update-fraction 0.0"),
        (Vocabulary(), "niwaki prune vocabulary"),
    ],
)
def test_the_command_asks_the_same_again(monkeypatch, stage, said):
    """Read by the command's own parser."""
    result = asked_for(stage, seed=getattr(stage, "seed", 0), label_names=("no", "-1", "-x"), same_data=True)
    line = command(result)
    assert all(words in line for words in re.split(" (?=--)", said))
    found = []
    monkeypatch.setattr(cli, "_run", lambda recipe, options: found.append(recipe))
    get_command(cli.app).main(cli._spread(shlex.split(line)[1:]), standalone_mode=False)
    assert [recipe_to_dict(recipe) for recipe in found] == [result.recipe]


def test_what_flags_cannot_say_is_asked_by_the_recipe():
    """Flags have one seed."""
    again = "niwaki run o/recipe.yaml --overwrite"
    assert command(asked_for(Structured(flops=0.5, seed=1))) == again
    assert command(asked_for(Structured(flops=0.5), seed=1)) == again
    assert command(asked_for(Structured(flops=0.5), Finetune())) == again
    assert "prune structured" in command(asked_for(Structured(flops=0.5, seed=1), seed=1))


@pytest.mark.parametrize(
    ("stages", "trained"),
    [
        ((Structured(flops=0.5), Vocabulary()), False),
        ((Structured(flops=0.5, recover_epochs=1),), True),
        ((Vocabulary(), Finetune()), True),
        ((DynamicSparsityTraining(sparsity=0.5),), True),
        ((LayerAdaptive(sparsity=0.5),), False),
    ],
)
def test_rows_that_were_trained_on_are_said_where_there_was_training(stages, trained):
    result = dataclasses.replace(asked_for(*stages, train_samples=123), run={**RESULT.run, "seconds": 1.0})
    assert trains(result) is trained
    html = page([result])
    assert "rows of the training data at most" in html
    assert (", trained on 123" in html) is trained


def test_results_of_other_evaluation_data_are_not_compared():
    said = "They were measured on different evaluation data"
    ours, same, other, of_hub, split = (
        dataclasses.replace(RESULT, data={"eval": data})
        for data in (
            {"path": "a/dev.tsv", "sha256": "0"},
            {"path": "b/dev.tsv", "sha256": "0"},
            {"path": "a/dev.tsv", "sha256": "1"},
            {"path": "glue/sst2", "sha256": None, "split": "validation"},
            {"path": "glue/sst2", "sha256": None, "split": "test"},
        )
    )
    for results, alike in (([ours, same], True), ([ours, other], False), ([of_hub, of_hub, split], False)):
        html = page(results)
        assert (said in html) is not alike
        assert ("accuracy over latency, batch 1" in html) is alike
    assert said not in page([ours])


def test_local_files_are_called_by_their_names_alone():
    data = {
        "train": {"path": "/home/somebody/train.tsv", "sha256": "0"},
        "eval": {"path": "/home/somebody/dev.tsv", "sha256": "1"},
        "tasks": {"mine": {"path": "/home/somebody/asked.jsonl", "sha256": "2"}, "piqa": {"path": "piqa"}},
    }
    named = dataclasses.replace(RESULT, data=data, recipe={"model": "/home/somebody/m", "out": "/home/somebody/half"})
    card = model_card(named, task="text-classification")
    assert "Data: train train.tsv, eval dev.tsv, asked.jsonl, piqa. Seed 7." in card
    assert "somebody" not in card


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, where there is one and Playwright to drive it."""
    drive = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here")
    with drive.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_as_it_is_meant(browser, tmp_path, width, scheme):
    """No error, no request but for the file, nothing wider than the window, and what axe finds at its most a trifle."""
    (tmp_path / "page.html").write_text(page([FULL, TUNED]))
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors, requests = [], []
    shown.on("console", lambda message: errors.append(message.text))
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(f"file://{tmp_path}/page.html")
    assert (errors, requests) == ([], [f"file://{tmp_path}/page.html"])
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert shown.locator("#r1-house").is_visible()
    paper = {"light": "rgb(250, 249, 246)", "dark": "rgb(20, 23, 19)"}
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == paper[scheme]
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    shown.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    found = axe.Axe().run(shown).response["violations"]
    assert [fault["id"] for fault in found if fault["impact"] in ("serious", "critical")] == []
