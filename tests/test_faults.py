"""A few of the deaths of ``python -m benchmarks.faults``, and that every moment is still a real place."""

import pytest

from benchmarks.fault_moments import MOMENTS, Moment, _owner
from benchmarks.faults import Harness

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
CHEAP = ("in the middle of writing a trial", "during a checkpoint", "after the result, before tell")


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
def test_every_moment_is_a_place_that_exists(moment: Moment) -> None:
    owner, name = _owner(moment.where)
    assert callable(getattr(owner, name))


@pytest.mark.parametrize("name", CHEAP)
def test_a_driver_killed_here_leaves_a_sweep_that_ends_as_if_nobody_had(harness: Harness, name: str) -> None:
    moment = next(moment for moment in MOMENTS if moment.name == name)
    verdict = harness.verdict(moment, seed=0)
    assert verdict.killed
    assert verdict.complaints == ()
