"""The text of a file: UTF-8, or what a byte-order mark says; the mark itself is no part of the text."""

from __future__ import annotations

import codecs

_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def text_in(raw: bytes) -> str:
    """The text of the bytes of a file, line ends as they are.

    Raises:
        ValueError: a packed file, or bytes that are no text in its encoding.
    """
    for mark, kind in _PACKED.items():
        if raw.startswith(mark):
            raise ValueError(f"it is packed ({kind}): unpack it first")
    mark, encoding = next((found for found in _MARKS if raw.startswith(found[0])), (b"", "utf-8"))
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"it must be UTF-8, or begin with a byte-order mark: line {line} is not {encoding}") from error
    if "\0" in text:
        raise ValueError("it holds zero bytes: save it as UTF-8, or as UTF-16 with a byte-order mark")
    return text


def lines_in(raw: bytes) -> list[str]:
    """The lines of the bytes of a file; they end with `\\n`, `\\r\\n` or `\\r` and nothing else (U+2028 is text).

    Raises:
        ValueError: see `text_in`.
    """
    return text_in(raw).replace("\r\n", "\n").replace("\r", "\n").split("\n")
