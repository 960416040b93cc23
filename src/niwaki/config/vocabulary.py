"""What trimming of the vocabulary can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.config.fields import check_at_least, option


@dataclass(frozen=True)
class Vocabulary:
    """Remove the tokens that the training data do not use, from the tokenizer and from the embeddings.

    Any text can still be tokenised: special and added tokens, bytes and single characters stay whatever the data.
    """

    min_count: int = option(1, "Times that the training data must use a token for it to stay.")
    size: int | None = option(None, "Tokens that stay at most, those used most often first; all in use by default.")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "min_count")
        if self.size is not None:
            check_at_least(self, 1, "size")
