"""A few random accidents of every kind of input; `tests/stress/fuzz.py` tries thousands."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers_fuzz import KINDS, Given


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Given(tmp_path_factory.mktemp("whole"))


@pytest.mark.filterwarnings("ignore")  # of libraries, about what is damaged
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_read_or_refused_in_one_line(kind, whole):
    @settings(max_examples=15, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def try_it(data):
        getattr(whole, kind)(data)

    try_it()
