"""What all that a run makes follows from, beside what is asked: what is done already goes on where it is the same."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from niwaki.adapters.computed_by import computed_by
from niwaki.anatomy import unwrap
from niwaki.checkpoint import write_tokenizer
from niwaki.methods.plan import data_digest
from niwaki.numerics.digest import digest as digest_of
from niwaki.processes import count as processes
from niwaki.run.code import code_digest
from niwaki.run.tasks import Tasks
from niwaki.run.work import Work

_LIBRARIES = ("torch", "transformers", "peft", "safetensors", "numpy", "scipy")


def key_of(came: Work, tasks: Tasks) -> dict[str, str]:
    """Digests by what they are of: code, libraries, threads, data, rows as they were cut, tokenizer, model, plans.

    `came` is the work before its first stage, `tasks` measure it, too; of nothing else than what is asked of them does
    the outcome depend.
    """
    # As they were cut: which are held out is no part of the recipe, but follows from its stages.
    rows = [rows_digest(None, part.rows) for part in (came.training, came.held_out, came.tests) if part is not None]
    return {
        "code": code_digest(),
        "libraries": plain_digest({name: version(name) for name in _LIBRARIES}),
        "threads": plain_digest([torch.get_num_threads(), processes()]),
        "data": plain_digest(
            [
                [came.described(), tasks.to_dict()],
                [rows_digest(table.sha256, table.rows, table.labels) for table in (came.train, came.evaluation)],
            ]
        ),
        "rows": plain_digest([data_digest(came.calibration), *rows]),
        "tokenizer": _tokenizer_digest(came.inputs.tokenizer),
        "model": plain_digest([tensors_digest(came.model), computed_by(came.model), list(_configs(came.model))]),
        "plans": _files_digest(path for folder in came.recipe.plans for path in sorted(Path(folder).rglob("*"))),
    }


def plain_digest(plain: Any) -> str:
    """Digest of plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=_as_plain).encode()).hexdigest()


def _as_plain(value: Any) -> Any:
    """A set in an order that is the same in every process, anything else in words."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def tensors_digest(model: nn.Module) -> str:
    """Digest of all tensors of a model, by name, and of what its modules are."""
    modules = [f"{name} {type(module).__name__}" for name, module in model.named_modules()]
    tensors = digest_of(sorted(_tensors(model).items()))
    return hashlib.sha256("\n".join([*modules, tensors]).encode()).hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.numel()}


def _configs(model: nn.Module) -> Iterator[Any]:
    """What is written of a model beside its tensors, and says how it is trained and read."""
    inner: Any = unwrap(model)
    yield inner.config.to_dict()
    generation = getattr(inner, "generation_config", None)
    yield None if generation is None else generation.to_dict()
    if isinstance(model, PeftModel):
        yield {name: config.to_dict() for name, config in model.peft_config.items()}


def rows_digest(sha256: str | None, *columns: Any) -> str:
    """Digest of the rows of a table: that of its file, where it is one."""
    return sha256 or plain_digest(columns)


def _tokenizer_digest(tokenizer: Any) -> str:
    """Digest of a tokenizer as it is written, and of what it cuts by."""
    with tempfile.TemporaryDirectory(prefix="niwaki-") as folder:
        write_tokenizer(tokenizer, Path(folder))
        return _files_digest(sorted(Path(folder).rglob("*")))


def _files_digest(paths: Iterable[Path]) -> str:
    return plain_digest(
        [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths if path.is_file()]
    )
