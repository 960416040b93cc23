"""Rows -> padded batches: dicts of tensors."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.trainer_pt_utils import get_length_grouped_indices

from niwaki.errors import RequestError

UNLABELLED = -100
"""The label of a token that no loss counts."""
LABELS = ("labels", "start_positions", "end_positions")
"""What a batch tells a model of its task, beside its inputs."""
ANSWER = "answer"
"""What a row carries for its metric; no batch holds it."""
SOURCE = "source"
"""What a row carries where others are of the same text: numbers of the first and last stretch of the data that it
holds; no batch holds it."""


class Batches:
    """Padded batches over `rows`: dicts of tensors `[batch, tokens]`, `labels` `[batch]`; the same at each iteration.

    Rows of several texts to choose among give `[batch, texts, tokens]`.

    Padding is on the right, whatever the tokenizer's side is: where positions are counted from the first token, padding
    before a row would give it other positions than it has alone, and another first token. There always is an
    `attention_mask`, also of a tokenizer whose `model_input_names` leave it out: padding would be read, and counted.

    Rows are sorted by length, so that little is padded, unless `sort_by_length` is off (the order of `rows`) or
    `shuffle_seed` is given (an order drawn from that seed): `order` has the place of each among the `rows` that were
    given. Training takes them otherwise, see `shuffled`.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        tokenizer: Any,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        sort_by_length: bool = True,
    ) -> None:
        if batch_size < 1:
            raise RequestError(f"batch_size must be at least 1, got {batch_size}")
        self.order = list(range(len(rows)))
        if shuffle_seed is not None:
            random.Random(shuffle_seed).shuffle(self.order)
        elif sort_by_length:
            self.order.sort(key=lambda index: length_of(rows[index]))
        self.rows = [rows[index] for index in self.order]
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def labelled(self) -> bool:
        """Whether rows have labels, or carry what they are measured by."""
        return any(name in self.rows[0] for name in (*LABELS, ANSWER))

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield self._batch(self.rows[start : start + self.batch_size])

    def shuffled(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """One epoch of training: all rows, put into other batches for every seed, those of like length together.

        The shuffled rows are cut into groups of up to 50 batches, each group is sorted by length and cut into batches,
        and the batches come in an order of their own: what a file is sorted by, its labels say, does not show in them.
        """
        generator = torch.Generator().manual_seed(seed)
        lengths = [length_of(row) for row in self.rows]
        order = get_length_grouped_indices(lengths, self.batch_size, generator=generator)
        for number in torch.randperm(len(self), generator=generator).tolist():
            start = number * self.batch_size
            yield self._batch([self.rows[index] for index in order[start : start + self.batch_size]])

    def _batch(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The padded rows; the labels of a row that has one a token are padded with -100 on the same side."""
        labels = rows[0].get("labels")
        if not isinstance(labels, list) or isinstance(labels[0], float):  # of several labels there is one row each
            return self._padded(rows)
        batch = self._padded([{k: v for k, v in row.items() if k != "labels"} for row in rows])
        mask = token_mask(batch).bool()
        labels = torch.full(mask.shape, UNLABELLED)
        labels[mask] = torch.tensor([label for row in rows for label in row["labels"]])
        return {**batch, "labels": labels}

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [{key: value for key, value in row.items() if key not in (ANSWER, SOURCE)} for row in rows]
        pad = {"padding": True, "padding_side": "right", "return_tensors": "pt", "return_attention_mask": True}
        if not _is_choice(rows[0]):
            return dict(pad_without_fast_tokenizer_warning(self.tokenizer, rows, **pad))
        labels = [row["labels"] for row in rows if "labels" in row]
        texts = [
            {key: values[index] for key, values in row.items() if key != "labels"}
            for row in rows
            for index in range(len(row["input_ids"]))
        ]
        flat = pad_without_fast_tokenizer_warning(self.tokenizer, texts, **pad)
        batch = {key: values.view(len(rows), -1, values.shape[-1]) for key, values in flat.items()}
        return batch | ({"labels": torch.tensor(labels)} if labels else {})


def _is_choice(row: dict[str, Any]) -> bool:
    """Whether a row is several texts to choose among: each of its values but the label is a list a text."""
    return isinstance(row["input_ids"][0], list)


def length_of(row: dict[str, Any]) -> int:
    """Tokens of a row, of its longest text where it has several."""
    return max(map(len, row["input_ids"])) if _is_choice(row) else len(row["input_ids"])


def token_mask(batch: dict[str, Any]) -> torch.Tensor:
    """`[sequences, length]`, 1 where a token is real; all are where the batch has no attention mask.

    A row is one sequence, or several where a model chooses among them.
    """
    mask = batch.get("attention_mask")
    mask = mask if mask is not None else torch.ones_like(batch["input_ids"])
    return mask.flatten(0, -2)


def without_labels_after_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with a label a token, of which none is at a token after padding: nothing real predicts that one.

    It is the first of a row that is filled up on the left.
    """
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    if labels is None or mask is None or not bool((mask[:, :-1] < mask[:, 1:]).any()):
        return batch
    labels = labels.clone()
    labels[:, 1:].masked_fill_(mask[:, :-1].to(labels.device) == 0, UNLABELLED)
    return {**batch, "labels": labels}


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as a model takes it to predict."""
    return {name: value for name, value in batch.items() if name not in LABELS}


def some_rows(batch: dict[str, Any], which: slice | list[int]) -> dict[str, Any]:
    """Some of the rows of a batch; what it holds once for all of them, as positions `[1, length]`, stays whole.

    Models that choose among texts take their rows for one block of memory (`view`), losses of words their labels.
    """
    rows = len(batch["input_ids"])

    def of_rows(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == rows

    return {name: value[which].contiguous() if of_rows(value) else value for name, value in batch.items()}


def mean_length(batches: Iterable[dict[str, Any]]) -> float:
    """Mean number of real tokens (those that the attention mask keeps) of a sequence.

    Raises:
        RequestError: no batch at all, or padding alone.
    """
    tokens = rows = 0
    for batch in batches:
        mask = token_mask(batch)
        tokens += int(mask.sum())
        rows += len(mask)
    if not rows:
        raise RequestError("data must give at least one batch, got none")
    if not tokens:
        raise RequestError("data must hold real tokens, got an attention mask that is 0 everywhere")
    return tokens / rows
