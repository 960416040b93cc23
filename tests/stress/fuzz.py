"""Thousands of random accidents with what a user gives: no traceback, no hang, no file, little memory, one line.

    python tests/stress/fuzz.py --cases 10000

What is tried is in `tests/helpers_fuzz.py`. A finding is printed with its least case. Kinds that are not asked for stay
in the JSON as they are.
"""

# ruff: noqa: E402 - the environment is set before PyTorch is loaded

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "benchmarks")]

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from common import RESULTS, environment, write
from helpers_fuzz import KINDS, Given


def tried(whole: Given, kind: str, cases: int, number: int) -> tuple[int, str | None]:
    """How many cases of a kind were tried, and the least one that was wrong."""
    count = 0

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def try_it(data: st.DataObject) -> None:
        nonlocal count
        count += 1
        getattr(whole, kind)(data)

    try:
        try_it()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = "".join(traceback.format_tb(error.__traceback__)[-2:])
        drawn = "\n".join(getattr(error, "__notes__", ()))
        return count, f"{type(error).__name__}: {error}\n{place}\n{drawn[-2000:]}"
    return count, None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    before = json.loads(asked.out.read_text("utf-8"))["runs"] if asked.out.is_file() else []
    runs, wrong = [run for run in before if run["kind"] not in asked.kinds], False
    with tempfile.TemporaryDirectory(prefix="niwaki-fuzz-") as place:
        whole = Given(Path(place))
        for kind in asked.kinds:
            begun = time.perf_counter()
            count, finding = tried(whole, kind, asked.cases // len(asked.kinds), asked.seed)
            runs.append({"kind": kind, "cases": count, "findings": int(finding is not None)})
            print(runs[-1], f"{time.perf_counter() - begun:.0f} s", finding or "", flush=True)
            wrong |= finding is not None
    write(asked.out, environment(asked) | {"runs": runs})
    sys.exit(wrong)


if __name__ == "__main__":
    main()
