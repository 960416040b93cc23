"""Files and Hub data sets -> tables -> tokenised rows -> batches."""

from niwaki.data.batches import Batches, mean_length, some_rows, token_mask, without_labels
from niwaki.data.checks import checked_batches
from niwaki.data.held_out import apart
from niwaki.data.labels import class_ids, label_map, label_names, predicts_numbers
from niwaki.data.rows import encode, sample
from niwaki.data.table import Table
from niwaki.data.tables import read_table

__all__ = [
    "Batches",
    "Table",
    "apart",
    "checked_batches",
    "class_ids",
    "encode",
    "label_map",
    "label_names",
    "mean_length",
    "predicts_numbers",
    "read_table",
    "sample",
    "some_rows",
    "token_mask",
    "without_labels",
]
