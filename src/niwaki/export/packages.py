"""Whether what an engine needs is installed."""

from __future__ import annotations

import importlib.util

from niwaki.errors import RequestError


def check_installed(asked: str, packages: tuple[str, ...], extra: str) -> None:
    """Refuse what was `asked` where one of the packages is missing, and name the extra of Niwaki that brings it.

    Raises:
        RequestError: naming those that are missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"{asked} needs {', '.join(missing)}, not installed; do: pip install niwaki[{extra}]")
