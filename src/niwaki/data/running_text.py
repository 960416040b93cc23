"""Running text -> rows of one context length: what language models calibrate, train and are measured on.

The text is tokenised as one and cut into windows of `context` tokens (as GPTQ, SparseGPT and Wanda do), each starting
with the first token of the tokenizer (BOS) where that is asked for. A window starts `stride` tokens after the one
before; tokens that an earlier window has predicted are labelled -100, so that every token counts once. The last window
may be shorter. Perplexity depends on all of this, so it is printed and written beside the figures (`Protocol`).
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from niwaki.data.batches import SOURCE, UNLABELLED
from niwaki.data.table import Table
from niwaki.data.text_files import lines_in
from niwaki.errors import RequestError, WorkError

STRETCH = 4
"""Windows that do not overlap in a stretch of text, which is held out whole where windows do."""


@dataclass(frozen=True)
class Protocol:
    """How text was cut: tokens of a window and between two starts, how many there are, whether windows get a BOS."""

    context_length: int
    stride: int
    tokens: int
    windows: int
    bos: bool

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `result.json`."""
        return asdict(self)

    def __str__(self) -> str:
        bos = "a first token (BOS) each" if self.bos else "no first token (BOS)"
        cut = f"{self.windows} windows of {self.context_length}, {self.stride} apart, {bos}"
        return f"{self.tokens} tokens in {cut}"


def text_of(table: Table) -> str:
    """The running text of a table: a `.txt` file as it stands, the rows of any other one after the other.

    Raises:
        WorkError: the file is no longer what the table was read from.
    """
    path = Path(table.path)
    if path.suffix.lower() == ".txt" and table.sha256 is not None:
        raw = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(raw).hexdigest() != table.sha256:
            raise WorkError(f"data: {table.path!r} has changed, or is gone, since it was read")
        return "\n".join(lines_in(raw))
    return "\n\n".join("\n".join(texts) for texts in table.texts)


def pack(
    text: str, tokenizer: Any, context: int, stride: int | None = None, *, bos: bool = False, name: str = "data"
) -> tuple[list[dict[str, Any]], Protocol]:
    """Windows of at most `context` tokens over `text`, with `input_ids`, `attention_mask` and `labels`; the protocol.

    `stride` is `context` (less the BOS) where none is given: windows that do not overlap.

    Raises:
        RequestError: a context of one token, which predicts none; a stride that is not 1 to the context; a BOS that the
            tokenizer has not; a text of fewer than two tokens, named `name`.
    """
    if context < 2:
        raise RequestError(f"max_length must be at least 2, a token and one that it predicts, got {context}")
    if bos and tokenizer.bos_token_id is None:
        raise RequestError("bos must not be asked of a tokenizer that has no bos_token")
    first = [tokenizer.bos_token_id] if bos else []
    size = context - len(first)
    step = size if stride is None else stride
    if not 1 <= step <= size:
        raise RequestError(f"stride must be 1 to {size} for a context of {context} tokens, got {step}")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) + len(first) < 2:
        raise RequestError(f"{name} must hold text of two tokens at least, got {len(ids)}")
    rows, predicted = [], 0
    for start in range(0, len(ids), step):
        window = ids[start : start + size]
        labels = [UNLABELLED if start + i < predicted else token for i, token in enumerate(window)]
        predicted = start + len(window)
        row = [*first, *window]
        if len(row) > 1:
            found = {"input_ids": row, "attention_mask": [1] * len(row), "labels": [UNLABELLED] * len(first) + labels}
            if step < size:
                found[SOURCE] = (start // (STRETCH * size), (predicted - 1) // (STRETCH * size))
            rows.append(found)
        if predicted == len(ids):
            break
    return rows, Protocol(context, step, len(ids), len(rows), bos)
