"""A plan: what one observation of a model told, and what of the model is to go for a budget.

Made once, it is cut anew for any other budget, changed by hand, written to a folder and carried out on the model. The
folder holds `plan.json` (what was asked, of what model and data, what goes where) and `plan.safetensors`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from niwaki.adapters.computed_by import computed_by
from niwaki.checkpoint.folder import atomic_folder
from niwaki.config import LayerAdaptive, Structured, stage_from_dict, stage_to_dict
from niwaki.config.text import place_named
from niwaki.data import mean_length
from niwaki.errors import RequestError
from niwaki.numerics.digest import digest
from niwaki.observe import Batch, Need, Passes, Statistics, TokenWeights
from niwaki.observe.shares import shared
from niwaki.observe.statistics import LinearSums
from niwaki.progress import text_of
from niwaki.repair.kept_targets import KeptTargets

SCHEMA = 1
PLAN, TENSORS = "plan.json", "plan.safetensors"
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration, SafetensorError)
"""What reading another file than was written may raise."""


@dataclass(frozen=True)
class Origin:
    """What a plan was made from: digests of the weights and of the batches, so many rows of so many tokens each."""

    model: str
    data: str
    rows: int
    length: float

    @classmethod
    def of(cls, model: nn.Module, data: Sequence[Batch]) -> Origin:
        """The origin of a plan that is made of this model on these batches."""
        rows = sum(len(batch["input_ids"]) for batch in data)
        return cls(model_digest(model), data_digest(data), rows, mean_length(data))


def model_digest(model: nn.Module) -> str:
    """Digest of all weights of a model, those of adapters and masks among them, and of what else it computes by."""
    weights = digest((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))
    return hashlib.sha256(json.dumps([weights, computed_by(model)], sort_keys=True, default=str).encode()).hexdigest()


def data_digest(data: Sequence[Batch]) -> str:
    """Digest of all tensors of some batches."""
    return digest((name, batch[name]) for batch in data for name in sorted(batch) if isinstance(batch[name], Tensor))


@dataclass(frozen=True, eq=False)
class Seen:
    """What an observation left that is looked at again when a plan is carried out; `need` is what it was asked for.

    `targets` are where what the dense model gives is kept from one cut to the next, if it is.
    """

    statistics: Statistics = field(default_factory=Statistics)
    token_weights: TokenWeights | None = None
    need: Need = field(default_factory=Need)
    targets: KeptTargets | None = None

    def covers(self, need: Need) -> bool:
        """Whether all that `need` asks for was observed."""
        return need | self.need == self.need

    def of_process(self, data: Sequence[Batch]) -> Seen:
        """What a process looks at of all that one process has seen of `data`: token weights of its own batches."""
        if self.token_weights is None:
            return self
        return dataclasses.replace(self, token_weights=[self.token_weights[number] for number, _ in shared(data)])

    def to_tensors(self) -> dict[str, Tensor]:
        """What there is, by name."""
        found = {
            f"sums/{name}/{part.name}": getattr(sums, part.name).contiguous()
            for name, sums in self.statistics.linears.items()
            for part in dataclasses.fields(sums)
            if isinstance(getattr(sums, part.name), Tensor)
        }
        for number, batch in enumerate(self.token_weights or []):
            found |= {f"tokens/{number}/{name}": weights.contiguous() for name, weights in batch.items()}
        return found

    def to_dict(self) -> dict[str, Any]:
        """The numbers beside them."""
        return {
            "need": [part.name for part in dataclasses.fields(Need) if getattr(self.need, part.name)],
            "rows": self.statistics.rows,
            "tokens": self.statistics.tokens,
            "batches": None if self.token_weights is None else len(self.token_weights),
        }

    @classmethod
    def read(cls, plain: dict[str, Any], tensors: dict[str, Tensor]) -> Seen:
        """The inverse of `to_dict` and `to_tensors`."""
        linears: dict[str, dict[str, Any]] = {}
        weights: TokenWeights = [{} for _ in range(plain["batches"] or 0)]
        for key, value in tensors.items():
            match key.split("/"):
                case ["sums", name, part]:
                    linears.setdefault(name, {})[part] = value
                case ["tokens", number, name]:
                    weights[int(number)][name] = value
        sums = {name: LinearSums(**parts) for name, parts in linears.items()}
        statistics = Statistics(linears=sums, rows=plain["rows"], tokens=plain["tokens"])
        return cls(
            statistics, None if plain["batches"] is None else weights, Need(**dict.fromkeys(plain["need"], True))
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(ABC):
    """What all plans have: the request that they are for, what was seen, and what it took.

    `origin` is None where the plan is carried out at once, on the model and the data that it was made from.
    """

    KIND: ClassVar[str]
    """The name of the stage that carries it out."""

    config: Structured | LayerAdaptive
    seen: Seen
    passes: Passes
    beside: dict[str, dict[str, float]] = field(default_factory=dict)
    """By linear, what scores say of it that decided nothing, see `niwaki.scoring.beside`."""
    origin: Origin | None = None

    @abstractmethod
    def under(self, config: Any) -> Self:
        """The plan for another request that asks for the same scores."""

    @abstractmethod
    def keeping(self, part: float) -> Self:
        """The plan that keeps so much of the FLOPs, or of the weights, a part within `span`."""

    def at_length(self, model: nn.Module, length: float) -> Self:
        """The plan for rows of so many real tokens on average, where what it counts depends on that.

        Raises:
            RequestError: its budget cannot be met with such rows.
        """
        del model, length
        return self

    @property
    @abstractmethod
    def span(self) -> tuple[float, float]:
        """The smallest and the largest part that can be kept."""

    @abstractmethod
    def table(self) -> Table:
        """What stays and what goes, by layer."""

    @abstractmethod
    def check_fits(self, model: nn.Module) -> None:
        """Refuse a model of other shapes.

        Raises:
            RequestError: naming the first part that differs.
        """

    def keeping_targets(self, folder: Path) -> Self:
        """The plan which keeps in `folder` what the dense model gives, for the next that is carried out on it."""
        return dataclasses.replace(self, seen=dataclasses.replace(self.seen, targets=KeptTargets(folder)))

    @abstractmethod
    def _to_file(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is written beside what all plans have: plain data, and tensors."""

    @classmethod
    @abstractmethod
    def _from_file(cls, plain: dict[str, Any], tensors: dict[str, Tensor], common: dict[str, Any]) -> Self:
        """The inverse of `_to_file`."""

    def __str__(self) -> str:
        """The table by layer, as text."""
        return text_of(self.table())

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the plan to a folder, whole or not at all.

        Raises:
            RequestError: the folder is not empty, and `overwrite` was not asked or it holds what Niwaki did not write.
        """
        with atomic_folder(path, overwrite) as folder:
            self.write(folder)

    def write(self, folder: Path) -> None:
        """Write the files of the plan into a folder."""
        plain, tensors = self._to_file()
        plain = {
            "schema": SCHEMA,
            "kind": self.KIND,
            "config": stage_to_dict(self.config),
            "origin": None if self.origin is None else dataclasses.asdict(self.origin),
            "passes": dataclasses.asdict(self.passes),
            "seen": self.seen.to_dict(),
            "beside": self.beside,
            **plain,
        }
        save_file(tensors | self.seen.to_tensors(), folder / TENSORS)
        (folder / PLAN).write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Plan:
        """The plan that `save` or `niwaki plan` wrote to a folder.

        Raises:
            RequestError: no such folder, or something else in it.
        """
        folder = Path(place_named("plan", path))
        try:
            plain = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            if plain["schema"] != SCHEMA:
                raise ValueError(f"schema {plain['schema']!r}, not {SCHEMA}")
            kind = next(kind for kind in Plan.__subclasses__() if plain["kind"] == kind.KIND)
            # Copied to where PyTorch would have put them: how memory is aligned shows in the last bits of sums.
            tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
            common = {
                "config": stage_from_dict(plain["config"]),
                "origin": None if plain["origin"] is None else Origin(**plain["origin"]),
                "passes": Passes(**plain["passes"]),
                "seen": Seen.read(plain["seen"], tensors),
                "beside": plain["beside"],
            }
            return kind._from_file(plain, tensors, common)
        except _UNREADABLE as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise RequestError(f"plan must be a folder that niwaki plan wrote, got {str(path)!r}: {why}") from error


def check_same_scores(
    made_with: Structured | LayerAdaptive, asked: Structured | LayerAdaptive, names: Sequence[str]
) -> None:
    """Refuse a request whose fields `names` are not those that a plan was made with; both are resolved.

    Raises:
        RequestError: naming the first that differs.
    """
    kind, other = (stage_to_dict(config)["kind"] for config in (made_with, asked))
    if kind != other:
        raise RequestError(f"plan must be one of {other}, got one of {kind}")
    for name in names:
        ours, theirs = getattr(made_with, name), getattr(asked, name)
        if ours != theirs:
            raise RequestError(f"{name} must be {ours!r}, which the plan was made with, got {theirs!r}")
