"""Room on a cluster: counted so that no trial waits half started, and told where there is none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._private.state import state
from ray.core.generated import autoscaler_pb2

from pipeline.capacity import Demand, Node, bounded, check_fits
from pipeline.cluster import nodes_at_most
from search_spaces.resources import Resources, Workers, check_workers

ONE_CPU = Resources()
Nodes = list[dict[str, float]]
nodes_strategy = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 4)}), max_size=6)


def cpus(*each: float) -> Nodes:
    return [{"CPU": number} for number in each]


@pytest.mark.parametrize(
    ("workers", "resources", "nodes", "trials"),
    [
        (1, ONE_CPU, cpus(2, 3), 5),
        (2, ONE_CPU, cpus(2, 3), 2),
        (2, ONE_CPU, cpus(1), 0),
        (2, ONE_CPU, cpus(1, 1), 1),
        (2, ONE_CPU, cpus(0, 4), 2),
        (2, Resources(cpus=2), cpus(3, 3), 1),  # A rank does not straddle two nodes.
        (1, Resources(cpus=0.5), cpus(1, 1), 4),
        (4, Resources(gpus=1), [{"CPU": 8, "GPU": 4}, {"CPU": 64}], 1),
        (1, Resources(gpus=0.25), [{"CPU": 16, "GPU": 2}], 8),
        (2, Resources(placement="STRICT_SPREAD"), cpus(8), 0),
        (2, Resources(placement="STRICT_SPREAD"), cpus(8, 2), 2),
        (2, Resources(placement="STRICT_SPREAD"), cpus(1, 1, 1), 1),
        ((2, 4), ONE_CPU, cpus(3), 1),  # Shrunk, but it runs.
        ((2, 4), ONE_CPU, cpus(4, 4), 2),
        ((2, 4), ONE_CPU, cpus(1), 0),
    ],
)
def test_trials_that_fit(workers: Workers, resources: Resources, nodes: Nodes, trials: int) -> None:
    assert Demand(workers, resources).trials_on(nodes) == trials


@given(nodes=nodes_strategy, workers=st.integers(1, 5), gpus=st.sampled_from([0, 1, 2]), strict=st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_trials_that_fit_can_really_be_placed_and_one_more_cannot(
    nodes: Nodes, workers: int, gpus: int, strict: bool
) -> None:
    demand = Demand(workers, Resources(gpus=gpus, placement="STRICT_SPREAD" if strict else "PACK"))
    trials = demand.trials_on(nodes)
    assert _placeable(trials, workers, gpus, strict, nodes)
    assert not _placeable(trials + 1, workers, gpus, strict, nodes)


def _placeable(trials: int, workers: int, gpus: int, strict: bool, nodes: Nodes) -> bool:
    """Whether so many trials can be placed, trial by trial on the emptiest nodes."""
    rooms = [int(min(node["CPU"], node["GPU"] // gpus if gpus else node["CPU"])) for node in nodes]
    for _ in range(trials):
        for _ in range(1 if strict else workers):
            emptiest = sorted(range(len(rooms)), key=lambda node: -rooms[node])[: workers if strict else 1]
            if len(emptiest) < (workers if strict else 1) or any(rooms[node] < 1 for node in emptiest):
                return False
            for node in emptiest:
                rooms[node] -= 1
    return True


def test_no_more_cpus_are_used_than_allowed() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}]
    assert [node["CPU"] for node in bounded(nodes, 5)] == [4, 1]
    assert bounded(nodes, float("inf")) == nodes


class TestTooSmallACluster:
    def test_is_told_with_what_is_needed_what_is_there_and_the_way_out(self) -> None:
        nodes: list[Node] = [{"CPU": 8}, {"CPU": 8}, {"CPU": 4, "GPU": 1}]
        with pytest.raises(
            ValueError,
            match=r"needs 2 workers, each with 1 CPU and 1 GPU; the cluster has 2 nodes with 8 CPU, 0 GPU; "
            r"1 node with 4 CPU, 1 GPU: add nodes, or lower workers or resources",
        ):
            check_fits(Demand(2, Resources(gpus=1)), lambda: nodes, None, wait_sec=0)

    def test_is_waited_for_while_nodes_join(self) -> None:
        joining = [cpus(1), cpus(1), cpus(1, 1)]
        check_fits(Demand(2, ONE_CPU), lambda: joining.pop(0), None)
        assert not joining

    def test_may_grow_where_an_autoscaler_says_so(self) -> None:
        check_fits(Demand(2, ONE_CPU), lambda: cpus(0), cpus(0, 1, 1), wait_sec=0)
        with pytest.raises(ValueError, match="3 workers"):
            check_fits(Demand(3, ONE_CPU), lambda: cpus(0), cpus(0, 1, 1), wait_sec=0)

    def test_the_autoscalers_nodes_are_read_from_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = autoscaler_pb2.ClusterConfig()
        config.node_group_configs.add(name="head", resources={"CPU": 0}, max_count=1)
        config.node_group_configs.add(name="gpu", resources={"CPU": 16, "GPU": 4}, max_count=2)
        monkeypatch.setattr(state, "get_cluster_config", lambda: config)
        assert nodes_at_most() == [{"CPU": 0}, {"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}]
        monkeypatch.setattr(state, "get_cluster_config", autoscaler_pb2.ClusterConfig)
        assert nodes_at_most() is None


@pytest.mark.parametrize(
    ("workers", "batch_size", "message"),
    [
        (3, 16, "batch_size must be divisible by workers=3, got 16"),
        ((2, 4), 16, "every number of ranks from 2 to 4, but 16 is not divisible by 3"),
        ((4, 2), 16, r"least <= most, got \(4, 2\)"),
    ],
)
def test_ranks_that_cannot_share_a_minibatch_are_refused(workers: Workers, batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_workers(workers, batch_size)
    check_workers((1, 4), 12)
