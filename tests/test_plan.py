"""What a sweep will cost: counts that agree with what the sweep then asks for, and torch's own operations."""

from pathlib import Path

import pytest
import torch
from sweep_helpers import tiny_space
from torch.utils.flop_counter import FlopCounterMode

from atdiff_core.costs import network_costs
from atdiff_core.networks import UNet, preset
from pipeline.calibration import Rates, sustained
from pipeline.plan import check_memory, makespan, planned
from pipeline.report.plan_table import duration, lines_of
from pipeline.slots import slots_of
from pipeline.study import StudyProgramme
from search_spaces.operation import Constraints, Price
from search_spaces.resources import Resources
from search_spaces.space import Replication

RATES = Rates(sec_per_kpass=10.0, sec_per_knfe=100.0, sec_per_kimage=0.0, sec_per_trial=0.0)


def test_a_pass_of_a_network_is_three_evaluations() -> None:
    for network in (preset("digits", resolution=8), preset("small")):
        costs = network_costs(network)
        assert costs.pass_flops == pytest.approx(3 * costs.forward_flops, rel=0.01)
        assert costs.parameters == sum(p.numel() for p in network.build().parameters())


def test_the_operations_are_those_of_the_real_network_running() -> None:
    network = UNet(resolution=8, channels=(8, 16))  # On CPUs the counter does not see attention.
    built = network.build()
    with FlopCounterMode(display=False) as counter:
        built(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))
    assert counter.get_total_flops() == 2 * network_costs(network).forward_flops


def test_the_memory_of_a_step_grows_by_its_activations_only() -> None:
    costs = network_costs(preset("digits", resolution=16))
    double, single = costs.step_bytes(128), costs.step_bytes(64)
    assert double - single == 64 * costs.saved_bytes
    larger = network_costs(preset("digits", resolution=32))
    assert larger.saved_bytes == pytest.approx(4 * costs.saved_bytes, rel=0.02)


def test_the_plan_counts_what_the_study_asks_for(tmp_path: Path) -> None:
    space = tiny_space(tmp_path, trials=7, replication=Replication(leaders=2, seeds=3))
    programme = StudyProgramme(space, space.base_config(8, "d" * 64), f"sqlite:///{tmp_path / 'study.db'}")
    asked = 0
    while (assignment := programme.ask()) is not None:
        programme.tell(assignment.key, "complete", 1.0 + asked)
        asked += 1
    plan = planned(space, slots=1, device="CPU core")
    assert plan.trials == asked + 1  # And the base model.
    assert plan.at_most_kpass == pytest.approx(0.064 + asked * 0.128)
    search = next(row for row in plan.rows if row.kind == "search")
    assert search.kpass == pytest.approx(0.128 * (0.75 + 0.25 * 0.5))


def test_hours_and_money_follow_from_the_rates(tmp_path: Path) -> None:
    space = tiny_space(tmp_path, price=Price(per_device_hour=2.0))
    plan = planned(space, slots=2, device="CPU core", rates={8: RATES})
    base = plan.rows[0]
    assert base.sec == pytest.approx(0.064 * 10 + 8 * (2 + 3) / 1000 * 100 + 0.9)
    assert plan.device_hours is not None
    assert plan.money == pytest.approx(2 * plan.device_hours)
    total = sum(row.trials * (row.sec or 0) for row in plan.rows)
    assert plan.device_hours == pytest.approx(total / 3600)
    assert plan.wall_clock_sec is not None
    assert total / 2 <= plan.wall_clock_sec <= total
    assert plan.as_json()["total"]["trials"] == plan.trials


def test_without_rates_there_are_passes_and_operations_but_no_hours(tmp_path: Path) -> None:
    plan = planned(tiny_space(tmp_path), slots=2, device="CPU core")
    assert plan.flops > 0
    assert plan.device_hours is plan.money is plan.wall_clock_sec is None
    assert any("nothing was measured" in line for line in lines_of(plan))


def test_a_device_that_sustains_the_operations_of_a_pass_each_second_does_one_a_second(tmp_path: Path) -> None:
    space = tiny_space(tmp_path)
    tflops = network_costs(space.network.at(8)).pass_flops / 1e12
    assert sustained(space, 8, tflops).sec_per_kpass == pytest.approx(1000)


def test_trials_go_to_the_slot_that_is_free_first() -> None:
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1], 2) == 2
    assert makespan([1] * 10, 1) == 10


def test_a_step_that_does_not_fit_into_memory_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"8 px needs about .* GB, constraints.max_memory_gb is 0.0001"):
        check_memory(tiny_space(tmp_path, constraints=Constraints(max_memory_gb=1e-4)))
    check_memory(tiny_space(tmp_path, constraints=Constraints(max_memory_gb=1.0)))


def test_slots_are_those_of_the_machine_or_of_the_declared_cluster(tmp_path: Path) -> None:
    assert slots_of(2, Resources(), cpus=8) == (4, "CPU core")
    assert slots_of((1, 2), Resources(cpus=2), cpus=8) == (2, "CPU core")
    file, gpu = tmp_path / "cluster.yaml", Resources(gpus=1)
    file.write_text(
        "head_node_type: head\nmax_workers: 3\navailable_node_types:\n"
        "  head: {resources: {CPU: 0}}\n  gpu: {max_workers: 3, resources: {CPU: 48, GPU: 4}}\n"
    )
    assert slots_of(1, gpu, cluster=file) == (12, "GPU")
    with pytest.raises(ValueError, match="16 workers of 1 GPUs, there are 12"):
        slots_of(16, gpu, cluster=file)
    file.write_text("head_node_type: head\navailable_node_types:\n  head: {}\n  gpu: {max_workers: 3, resources: {}}\n")
    with pytest.raises(ValueError, match=r"does not say what its workers have \(resources of gpu\)"):
        slots_of(1, gpu, cluster=file)


@pytest.mark.parametrize(
    ("sec", "words"),
    [(12, "12 s"), (600, "10 min"), (7260, "2:01 h"), (90_000, "1 day, 1:00 h"), (200_000, "2 days, 7:33 h")],
)
def test_durations_are_told_in_the_unit_people_use(sec: float, words: str) -> None:
    assert duration(sec) == words
