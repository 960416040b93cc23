"""What trimming of the vocabulary can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.fields import BUDGET, check_at_least, option
from niwaki.config.types import check_types
from niwaki.errors import check_choice

CHARACTERS = ("all", "used")


@dataclass(frozen=True)
class Vocabulary:
    """Remove the tokens that the training data do not use, from the tokenizer and from the embeddings.

    Special and added tokens, bytes and (unless `characters` is `used`) single characters stay whatever the data, so any
    text that could be tokenised still can.
    """

    min_count: int = option(1, "Times that the training data must use a token for it to stay.", BUDGET)
    size: int | None = option(
        None, "Tokens that stay at most, those used most often first; all in use by default.", BUDGET
    )
    characters: str = option("all", "Which tokens of one character stay: all, or those that the data use.")

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "min_count")
        check_choice("characters", self.characters, CHARACTERS)
        if self.size is not None:
            check_at_least(self, 1, "size")
