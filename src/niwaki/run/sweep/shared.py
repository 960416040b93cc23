"""What the points of a sweep share: model and data read once, the dense model measured once, one plan a method."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from niwaki.anatomy import labels_of
from niwaki.checkpoint import new_parameters
from niwaki.checkpoint.folder import atomic_folder
from niwaki.config import DynamicSparsityTraining, LayerAdaptive, Structured
from niwaki.config.sweep import Point, Sweep, parse_pick, sweep_to_dict
from niwaki.errors import RequestError
from niwaki.evaluate import measures_of
from niwaki.evaluate.plain import plain_model
from niwaki.methods.plan import Plan
from niwaki.methods.prune import plan
from niwaki.progress import say
from niwaki.run.checks import check_recipe
from niwaki.run.key import key_of, plain_digest
from niwaki.run.memory import check_processes, stage_bytes
from niwaki.run.pass_memory import largest
from niwaki.run.recipe import Known, do_recipe
from niwaki.run.record import Clock, State
from niwaki.run.stages import measure_state
from niwaki.run.sweep.place import Place
from niwaki.run.sweep.summary import check_names
from niwaki.run.tasks import Tasks, read_tasks
from niwaki.run.work import Work, cut_rows, read_work


class Shared:
    """Model and data of a sweep in this process."""

    def __init__(self, sweep: Sweep, place: Place, quiet: bool) -> None:
        self.sweep, self.place, self.quiet = sweep, place, quiet
        first = sweep.points[0].recipe
        self.tasks: Tasks = read_tasks(first, quiet)
        self.works: dict[int, Work] = {first.seed: read_work(first, quiet)}
        self.model = self.works[first.seed].model
        self.dense: dict[str, State] = {}

    def key(self) -> dict[str, str]:
        """What the sweep depends on, each part as a digest; rows of other seeds follow from those of the first."""
        first = self.works[self.sweep.seeds[0]]
        return {"request": plain_digest(sweep_to_dict(self.sweep)), **key_of(first, self.tasks)}

    def work(self, point: Point) -> Work:
        """The work of a point: the rows of its seed, and the model of all."""
        seed = point.recipe.seed
        if seed not in self.works:
            work = next(iter(self.works.values()))
            cut = dataclasses.replace(work.inputs.cut, seed=seed)
            inputs = dataclasses.replace(work.inputs, cut=cut, quiet=True, protocols=dict(work.inputs.protocols))
            self.works[seed] = cut_rows(point.recipe, inputs, work.train, work.evaluation)
        return dataclasses.replace(self.works[seed], recipe=point.recipe)

    def check(self) -> None:
        """Refuse what cannot be done of any point, before any work.

        Raises:
            RequestError: for the first of them.
        """
        if new_parameters(self.model):
            self._check_new_head()
        self._check_pick()
        for point in self.sweep.points:
            check_recipe(self.work(point))
        self._check_memory()

    def _check_memory(self) -> None:
        """Refuse points that take more memory than may be used, those that are done side by side together.

        Raises:
            RequestError: saying what is needed.
        """
        points, limit = self.sweep.points, self.sweep.recipe.memory_limit
        if limit is None:
            return
        taken = 0
        for point in points:
            work = self.work(point)
            batches = work.calibration, largest(work.training), largest(work.tests)
            taken = max(taken, *(stage_bytes(self.model, stage, *batches) for stage in point.recipe.stages))
        check_processes(limit, self.model, min(self.sweep.jobs, len(points)), taken)

    def _check_pick(self, measured: Iterable[str] | None = None) -> None:
        """Refuse to pick by what is not measured: of the qualities that are, or of all that this model can have.

        What tasks are measured by is known once they have been.

        Raises:
            RequestError: listing the names that there are.
        """
        if self.sweep.pick is None:
            return
        conditions, work = parse_pick(self.sweep.pick), next(iter(self.works.values()))
        if measured is None:
            measured = measures_of(self.model)[0] if work.tests.labelled else ()
            measured = measured if work.recipe.metric is None else (work.recipe.metric,)
            asked = {*work.recipe.task_names, *self.tasks.questions}
            measured = (*measured, *(each.name for each in conditions if asked and "/" in each.name))
        likeness = {"none": ("cosine",), "number": ("kl",)}.get(labels_of(self.model), ("agreement", "kl"))
        check_names(conditions, measured, likeness)

    def _check_new_head(self) -> None:
        """Refuse points of which a new head would be another alone, or stay as it was drawn."""
        if len(self.sweep.seeds) > 1:
            given = " ".join(map(str, self.sweep.seeds))
            raise RequestError(f"seeds must be one for a model with a new task head, which is drawn by it, got {given}")
        for point in self.sweep.points:
            if not isinstance(point.recipe.stages[0], DynamicSparsityTraining):
                raise RequestError(f"model must have a trained task head for {point.name}; fine-tune it first")

    def prepare(self, points: list[Point]) -> None:
        """Make the plans that these points need, as far as they are not there."""
        for point in points:
            work = self.work(point)
            stage = point.recipe.stages[0]
            if point.plan is None or self.place.has_plan(point.plan):
                continue
            assert isinstance(stage, Structured | LayerAdaptive), "others have no plan"
            say(f"plan: {point.plan}", self.quiet)
            made = plan(self.model, stage, work.calibration, around=point.around, progress=not self.quiet)
            with atomic_folder(self.place.plan(point.plan)) as folder:
                made.write(folder)

    def _dense_state(self, work: Work) -> State:
        """The dense model measured on the rows of a work, once in this process.

        Raises:
            RequestError: what is to be picked by is not among what was measured.
        """
        key = plain_digest(work.test_rows)
        if key not in self.dense:
            say("dense: quality", self.quiet)
            self.dense[key] = measure_state(work, plain_model(self.model), self.tasks, 0)
            self._check_pick(self.dense[key].record["quality"])
        return self.dense[key]

    def do(
        self, point: Point, temporary: Path, alone: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Do a point and write its folder; what the dense model gives lies in `temporary` for others of its plan."""
        clock = Clock()
        say(f"point: {point.name}", self.quiet)
        self.place.clear(point)
        work = self.work(point)
        made = None
        if point.plan is not None:
            made = Plan.load(self.place.plan(point.plan)).keeping_targets(temporary / point.plan)
        known = Known(dense=self._dense_state(work), plan=made, alone=alone)
        with atomic_folder(self.place.point(point)) as folder:
            do_recipe(work.with_model(copy.deepcopy(self.model)), self.tasks, folder, clock, known)
