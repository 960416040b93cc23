"""How a file is written is found by looking at it; what cannot be told is refused with what was seen."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from niwaki.data import Table, read_table
from niwaki.data.delimited import read_delimited
from niwaki.data.questions import read_questions
from niwaki.data.running_text import text_of
from niwaki.errors import RequestError

TEXTS = ['He said "no".', '"Great" film', "two\nlines", "a\ttab", "semi; colon, comma", "plain", '"quoted"', '"']
LABELS = ["a", "b", "a", "b", "a", "b", "a", "b"]
FRAME = pd.DataFrame({"text": TEXTS, "label": LABELS})


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> Table:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(str(path), **options)


def rows(table: Table) -> list[tuple[str, Any]]:
    assert table.labels is not None
    return [(text, label) for (text,), label in zip(table.texts, table.labels, strict=True)]


def refused(folder: Path, name: str, content: str | bytes, **options: Any) -> str:
    with pytest.raises(RequestError) as error:
        read(folder, name, content, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_pandas_writes_is_read_as_it_was(
    tmp_path: Path, suffix: str, delimiter: str, quoting: int, end: str
) -> None:
    written = FRAME.to_csv(index=False, sep=delimiter, quoting=quoting, lineterminator=end)
    assert rows(read(tmp_path, f"data{suffix}", written)) == list(zip(TEXTS, LABELS, strict=True))


LITERAL = [
    ['"Great" film'],
    ['"'],
    ['"an open quote', "plain"],
    ['"an open quote', 'and one that "ends"'],
    ['"whole"', "plain"],
    ['"whole"', '"Dr. Death" is a name'],
    ['say "', '" said'],
    ['""', "plain"],
    ["a lone ' and `", '3" pipe', "plain"],
]


@pytest.mark.parametrize("texts", LITERAL)
def test_marks_of_a_tsv_without_quoting_are_text(tmp_path: Path, texts: list[str]) -> None:
    content = "sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)
    assert rows(read(tmp_path, "data.tsv", content)) == [(text, 1) for text in texts]


def test_an_open_mark_does_not_swallow_rows_that_are_whole(tmp_path: Path) -> None:
    texts = ['"an open mark', "plain", 'closed at the end of a field"', "plain"]
    content = "label\tsentence\n" + "".join(f"1\t{text}\n" for text in texts)
    assert rows(read(tmp_path, "data.tsv", content)) == [(text, 1) for text in texts]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text\tlabel\n"a ""b"" c"\t1\n"plain"\t0\n', ['a "b" c', "plain"]),
        ('text\tlabel\n"a\tb"\t1\nplain\t0\n', ["a\tb", "plain"]),
        ('text\tlabel\n"a\r\nb"\t1\r\nplain\t0\r\n', ["a\r\nb", "plain"]),
        ('"text"\t"label"\n"one"\t1\ntwo\t0\n', ["one", "two"]),
        ('text\tlabel\n"one"\t1\n"two"\t0\n', ["one", "two"]),
    ],
)
def test_a_tsv_that_shows_quoting_is_quoted(tmp_path: Path, content: str, texts: list[str]) -> None:
    table = read(tmp_path, "data.tsv", content)
    assert rows(table) == [(texts[0], 1), (texts[1], 0)]
    assert str(table).endswith("; a tab between columns, quoted")


def test_a_csv_whose_marks_cannot_quote_is_literal(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "data.csv", 'text,label\n"Great" film,1\nplain,0\n')) == [
        ('"Great" film', 1),
        ("plain", 0),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.tsv", 'text\n"one\ntwo"\nthree\n', "may quote (2 rows) or be text (3 rows): save it as .csv or .jsonl"),
        ("data.csv", 'text,label\n"a \\"b\\" c",1\n', "row 1 has quotation marks after a backslash"),
        ("data.csv", 'text,label\n"a, open,1\nb,0\n', "do not fit"),
        (
            "data.csv",
            "text,label\na,0\nb, c,1\n",
            "line 3 has more fields (3) than the header (text, label), with a c",
        ),
        (
            "data.csv",
            "text;label\na;0\nb\n",
            "line 3 has fewer fields (1) than the header (text, label), with a s",
        ),
        ("data.tsv", "text\tlabel\na\t0\t\n", "line 2 has more fields (3) than the header (text, label), with a tab"),
        ("data.csv", "text\na, b\n", "line 2 has more fields (2) than the header (text), with a comma"),
        ("data.csv", "text,label\na,\nb,1\n", "label_column: 'label' of"),
        ("data.csv", "text,label\na,  \nb,1\n", "1 of 2 rows without"),
        ("data.csv", "text,text\na,b\n", "text_columns must be one column, got several named 'text'"),
        ("data.csv", "body;target\na;0\n", "body, target (with a semicolon between columns, quoted)"),
        ("data.csv", "body;target\na;0\n", "(--text-columns)"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    assert said in refused(tmp_path, name, content)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"label_column": "label"},
            "label_column must be among text, target (with a comma between columns, quoted)",
        ),
        ({"label_column": "label"}, "got 'label' (--label-column names it)"),
        ({"text_columns": ("body",)}, "got 'body' (--text-columns names it)"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, options: dict, said: str) -> None:
    assert said in refused(tmp_path, "data.csv", "text,target\na,0\n", **options)


@pytest.mark.parametrize("header", ["text,labels", "Text,Label", " text , label ", "TEXT,LABELS", "text,Score"])
def test_columns_are_recognised_whatever_their_case(tmp_path: Path, header: str) -> None:
    assert rows(read(tmp_path, "data.csv", f"{header}\na,0\nb,1\n")) == [("a", 0), ("b", 1)]


def test_a_name_as_it_is_goes_before_one_in_another_case(tmp_path: Path) -> None:
    assert rows(read(tmp_path, "data.csv", "Text,text,Label,label\nA,a,1,0\n")) == [("a", 0)]


RECORDS: list[dict[str, Any]] = [{"text": "a\u2028b", "label": True}, {"text": "c", "label": False}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in RECORDS) + "\n"


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        "\n" + LINES.replace("\n", "\n\n"),
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        "\ufeff" + LINES,
        "\ufeff" + json.dumps(RECORDS),
    ],
)
def test_json_is_a_list_or_an_object_a_line_whatever_the_suffix(tmp_path: Path, suffix: str, content: str) -> None:
    assert rows(read(tmp_path, f"data{suffix}", content)) == [("a\u2028b", True), ("c", False)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "data.json",
            {"version": 1, "data": RECORDS},
            "one object with version, data; write the list that stands",
        ),
        ("data.json", {"text": {"0": "a"}}, "must be a list of objects, or an object a line, got one object with text"),
        ("data.json", [["a", 0]], "got list as row 1"),
        ("data.jsonl", [RECORDS[0], "b"], "got str as row 2"),
        ("data.json", 3, "got int"),
        ("data.jsonl", [{"text": ["a", "b"], "label": 0}], "'text' of"),
        ("data.jsonl", [{"text": "a", "label": ""}, {"text": "b"}, RECORDS[0]], "2 of 3 rows without"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path: Path, name: str, content: Any, said: str) -> None:
    assert said in refused(tmp_path, name, json.dumps(content))


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    for name in ("data.json", "data.jsonl"):
        assert "line 3 is no JSON" in refused(tmp_path, name, LINES + "{oops\n")
    assert "the list of rows does not end well" in refused(tmp_path, "data.jsonl", '[\n{"text": "a"},\n')


CONTENT = {
    ".csv": "text,label\né,0\nb,1\n",
    ".tsv": "text\tlabel\né\t0\nb\t1\n",
    ".jsonl": '{"text": "é", "label": 0}\n{"text": "b", "label": 1}\n',
    ".json": '[{"text": "é", "label": 0}, {"text": "b", "label": 1}]',
}


@pytest.mark.parametrize("suffix", CONTENT)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_of_the_encoding_is_no_text(tmp_path: Path, suffix: str, encoding: str) -> None:
    assert rows(read(tmp_path, f"data{suffix}", CONTENT[suffix].encode(encoding))) == [("é", 0), ("b", 1)]


def test_a_mark_in_running_text_is_no_text(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        table = read(tmp_path, "data.txt", "é\r\nb\r\n".encode(encoding))
        assert table.texts == [("é",), ("b",)]
        assert text_of(table) == "é\nb\n"


@pytest.mark.parametrize("suffix", [*CONTENT, ".txt"])
def test_what_is_no_text_is_refused(tmp_path: Path, suffix: str) -> None:
    text = CONTENT.get(suffix, "é\nb\n")
    assert "is not utf-8" in refused(tmp_path, f"data{suffix}", text.encode("latin-1"))
    assert "it is packed (gzip)" in refused(tmp_path, f"data{suffix}", gzip.compress(text.encode()))
    assert "zero bytes" in refused(tmp_path, f"data{suffix}", text.replace("é", "e").encode("utf-16-le"))
    assert "must end in one of" in refused(tmp_path, f"data{suffix}.gz", gzip.compress(text.encode()))


def test_a_field_may_be_long_and_the_limit_of_the_process_stays() -> None:
    before = csv.field_size_limit()
    names, found, _ = read_delimited(f"text,label\n{'a' * 200_000},1\n", ",")
    assert (names, len(found[0][0]), csv.field_size_limit()) == (["text", "label"], 200_000, before)


def test_questions_are_read_from_any_json(tmp_path: Path) -> None:
    row = {"query": "a", "choices": ["b", "c"], "gold": 1}
    for number, content in enumerate((json.dumps([row]), "\ufeff" + json.dumps(row), json.dumps([row], indent=1))):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(content, "utf-8")
        assert [question.gold for question in read_questions(str(path))[0]] == [1]


def test_usual_files_are_said_without_their_dialect(tmp_path: Path) -> None:
    for name, content in (("data.csv", "text,label\na,0\n"), ("data.tsv", "text\tlabel\na\t0\n")):
        assert str(read(tmp_path, name, content)).endswith(f"{name}: 1 rows, text text, label label")
    assert str(read(tmp_path, "data.csv", "text;label\na;0\n")).endswith("; a semicolon between columns, quoted")
