"""Texts with hidden words: what models of masked words train and are measured on.

Of the tokens of a text (special ones aside) a share is hidden, at least one a row, drawn by the seed; the mask token
stands in the place of each (always: what is measured is not to depend on chance twice). A label is the hidden token.
"""

from __future__ import annotations

import random
from typing import Any

from niwaki.data.batches import UNLABELLED
from niwaki.errors import RequestError

SHARE = 0.15


def hide_words(rows: list[dict[str, Any]], tokenizer: Any, seed: int) -> list[dict[str, Any]]:
    """The tokenised rows with words hidden, and `labels` of -100 but there; a row of special tokens alone is left out.

    Raises:
        RequestError: a tokenizer without a mask token; no row with a word.
    """
    if tokenizer.mask_token_id is None:
        raise RequestError("tokenizer must have a mask token for a model of masked words, got one without mask_token")
    draw, special, found = random.Random(seed), set(tokenizer.all_special_ids), []
    for row in rows:
        places = [place for place, token in enumerate(row["input_ids"]) if token not in special]
        if not places:
            continue
        hidden = set(draw.sample(places, max(1, round(SHARE * len(places)))))
        ids = row["input_ids"]
        labels = [token if place in hidden else UNLABELLED for place, token in enumerate(ids)]
        masked = [tokenizer.mask_token_id if place in hidden else token for place, token in enumerate(ids)]
        found.append({**row, "input_ids": masked, "labels": labels})
    if not found:
        raise RequestError("text_columns must hold words, got special tokens alone")
    return found
