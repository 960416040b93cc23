"""Whether the layers of a model learn once they are refitted: an option of every method that refits."""

from __future__ import annotations

from typing import Any

from niwaki.config.fields import option
from niwaki.errors import RequestError, check_choice

LEARNED = ("auto", "none", "norms", "kept")


def reconstruct_option() -> Any:
    """The dataclass field."""
    what = "none, norms (norms and biases alone) or kept (weights that are left too)"
    auto = "auto is kept after a refit by least squares on 8 times 512 tokens or more, about, none with --fast"
    return option(
        "auto", f"What each layer, once it is refitted, trains to give what the dense one gives: {what}; {auto}."
    )


def check_reconstruct(config: Any) -> None:
    """Refuse another choice than `LEARNED`, and learning without the refit that it follows.

    Raises:
        RequestError: saying which.
    """
    check_choice("reconstruct", config.reconstruct, LEARNED)
    if config.reconstruct not in ("auto", "none") and config.repair == "none":
        raise RequestError(f"reconstruct must be none where repair is none, got {config.reconstruct!r}")
