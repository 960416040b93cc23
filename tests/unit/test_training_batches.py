"""What a training sees: rows mixed anew each epoch, those of like length in a batch, whatever the file is sorted by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import niwaki
from helpers_text import tiny_tokenizer
from niwaki.data import Batches
from niwaki.train.loop import train_
from tiny import batches, tiny, with_lora

COUNT, SIZE = 1605, 32


def rows(count: int = COUNT, classes: int = 2) -> list[dict]:
    """Sorted by label, as a file may be; lengths from 3 to 32 in every class; the first token is the number."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 33, (count,), generator=generator).tolist()
    labels = [number * classes // count for number in range(count)]
    return [
        {
            "input_ids": [number, *[5] * (length - 1)],
            "attention_mask": [1] * length,
            "labels": labels[number],
        }
        for number, length in enumerate(lengths)
    ]


def numbers(epoch: Iterator[dict]) -> list[list[int]]:
    """The rows of every batch; padding is on the right."""
    return [batch["input_ids"][:, 0].tolist() for batch in epoch]


@pytest.mark.parametrize("classes", [2, 3])
def test_no_batch_holds_one_class_of_a_file_that_is_sorted_by_label(classes):
    given = Batches(rows(classes=classes), tiny_tokenizer(), SIZE)
    for batch in given.shuffled(0):
        counts = batch["labels"].bincount(minlength=classes) / len(batch["labels"])
        assert len(batch["labels"]) < SIZE or float(counts.max()) < 0.5 / classes + 0.5


def test_an_epoch_holds_every_row_once_and_is_another_for_every_seed():
    given = Batches(rows(), tiny_tokenizer(), SIZE)
    first, again, second = numbers(given.shuffled(1)), numbers(given.shuffled(1)), numbers(given.shuffled(2))
    assert first == again != second
    for epoch in (first, second):
        assert sorted(number for batch in epoch for number in batch) == list(range(COUNT))
        assert sorted(map(len, epoch)) == [COUNT % SIZE, *[SIZE] * (COUNT // SIZE)]
        assert len(epoch) == len(given)
    assert {frozenset(batch) for batch in first}.isdisjoint(frozenset(batch) for batch in second)


def test_little_is_padded_and_lengths_come_in_no_order():
    given = Batches(rows(6400), tiny_tokenizer(), SIZE)
    shapes = [batch["attention_mask"].shape for batch in given.shuffled(0)]
    padded = sum(len_ * width for len_, width in shapes)
    assert padded < 1.1 * sum(len(row["input_ids"]) for row in given.rows)
    widths = [width for _, width in shapes]
    half = len(widths) // 2
    assert sum(widths[:half]) / sum(widths[half:]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_few_rows_are_trained_on_as_well(count):
    given = Batches(rows(count), tiny_tokenizer(), 4)
    assert sorted(n for batch in numbers(given.shuffled(0)) for n in batch) == list(range(count))


def test_evaluation_and_calibration_keep_their_order():
    given = Batches(rows(100), tiny_tokenizer(), 8)
    before = numbers(iter(given))
    list(given.shuffled(3))
    assert numbers(iter(given)) == before


def test_training_mixes_rows_anew_each_epoch_and_batches_that_are_ready_as_they_are():
    given = Batches(rows(64), tiny_tokenizer(), 8)
    for data in (given, list(given)):
        seen: list[tuple[int, ...]] = []

        def loss_of(model, batch, _whole, seen=seen):
            seen.append(tuple(batch["input_ids"][:, 0].tolist()))
            return model.weight.sum()

        for _ in range(2):
            train_(torch.nn.Linear(1, 1), data, loss_of, epochs=2, learning_rate=0.1, seed=4)
        first, second, again = seen[:8], seen[8:16], seen[16:]
        assert first + second == again
        assert first != second
        assert {n for batch in first for n in batch} == set(range(64))
        assert (set(first) == set(second)) == isinstance(data, list)


@pytest.mark.parametrize("made", ["empty", "batches", "rows"])
def test_data_that_cannot_be_trained_on_are_refused(made):
    without = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches(count=2)]
    unlabelled = [{k: v for k, v in row.items() if k != "labels"} for row in rows(9)]
    data, words = {
        "empty": ([], "data must give at least one batch, got none"),
        "batches": ([*batches(count=1), *without], "data: batch 1: labels must be there to train on"),
        "rows": (Batches(unlabelled, tiny_tokenizer(), 4), "data: batch 0: labels must be there to train on"),
    }[made]
    dynamic = niwaki.DynamicSparsityTraining(sparsity=0.5, interval=1, teacher="none")
    for asked in (niwaki.finetune, niwaki.prune_):
        model = with_lora(tiny())
        with pytest.raises(niwaki.RequestError, match=words):
            asked(model, dynamic if asked is niwaki.prune_ else niwaki.Finetune(), data)


def test_training_data_that_are_empty_are_not_replaced_in_silence():
    with pytest.raises(niwaki.RequestError, match="training_data must give at least one batch, got none"):
        niwaki.prune_(tiny(), niwaki.Structured(flops=0.5, recover_epochs=1), batches(), training_data=[])
