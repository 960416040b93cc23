"""A vocabulary of the tokens that a corpus needs: the tokenizer rewritten, the embeddings cut to match."""

from niwaki.methods.vocabulary.trim import Retokenised, check_trimmable, retokenised, trim_vocabulary_

__all__ = ["Retokenised", "check_trimmable", "retokenised", "trim_vocabulary_"]
