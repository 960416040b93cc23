"""Files and Hub data sets -> tables -> tokenised rows -> batches."""

from niwaki.data.batches import Batches, mean_length, token_mask
from niwaki.data.labels import is_regression, label_map, label_names
from niwaki.data.rows import encode, sample
from niwaki.data.tables import Table, read_table

__all__ = [
    "Batches",
    "Table",
    "encode",
    "is_regression",
    "label_map",
    "label_names",
    "mean_length",
    "read_table",
    "sample",
    "token_mask",
]
