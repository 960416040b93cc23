"""Points of a sweep in processes of their own, which end with the one that started them, whatever ends it.

A terminal tells all processes of Ctrl-C, a scheduler one of SIGTERM, and of one that is killed nobody is told. So the
first process alone listens to what stops the command, and ends the others; each of these sees when it is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from niwaki.config.sweep import Point, Sweep
from niwaki.errors import WorkError
from niwaki.progress import bars_of_this_process_alone, library_manners
from niwaki.run.sweep.alone import Gate
from niwaki.run.sweep.place import Place
from niwaki.run.sweep.shared import Shared
from niwaki.temporary import temporary_files_that_last


def do_side_by_side(sweep: Sweep, place: Place, points: Sequence[Point], temporary: Path, quiet: bool) -> None:
    """Do points in processes of their own, each of which reads model and data once.

    Raises:
        WorkError: a process was killed. What a point raises, once those beside it are done.
    """
    context = multiprocessing.get_context("spawn")
    jobs = min(sweep.jobs, len(points))
    with temporary_files_that_last():  # multiprocessing shares through files where there is no /dev/shm
        gate = Gate(context, torch.get_num_threads(), jobs)
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(jobs, context, _start, (sweep, place, temporary, quiet, gate))
    try:
        with _told_to_this_process_alone():
            futures = [pool.submit(_do, point) for point in points]
        for future in futures:
            future.result()
    except BrokenProcessPool as error:
        raise WorkError("a process of the sweep was killed (out of memory? fewer --jobs need less)") from error
    except Exception:
        raise
    except BaseException:
        # Told to shut down, each would first do the point that it has begun, and the next one.
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for point in points:  # what one that was killed has left
            place.clear(point)


@contextmanager
def _told_to_this_process_alone() -> Iterator[None]:
    """While open, processes are started that a terminal cannot interrupt; what it says to this one comes afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_of_process: dict[str, Any] = {}
"""What a process of a pool holds from one point to the next."""


def _start(sweep: Sweep, place: Place, temporary: Path, quiet: bool, gate: Gate) -> None:
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    bars_of_this_process_alone()
    tempfile.tempdir = str(temporary)
    with gate.work():
        _of_process.update(shared=Shared(sweep, place, quiet=True), temporary=temporary, gate=gate)
    _of_process["shared"].quiet = quiet


def _end_with_the_first() -> None:
    """End this process at once when the one that started it is gone: nobody waits for it, and it holds its point."""
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _do(point: Point) -> None:
    gate: Gate = _of_process["gate"]
    with library_manners(True), gate.work():
        _of_process["shared"].do(point, _of_process["temporary"], gate.alone)
