"""``ray_cluster.yaml`` against Ray's own schema."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parent.parent / "ray_cluster.yaml"


def test_the_cluster_file_passes_rays_own_validation() -> None:
    validate_config(prepare_config(yaml.safe_load(CLUSTER.read_text())))


def test_the_validation_is_one_that_can_fail() -> None:
    broken = yaml.safe_load(CLUSTER.read_text()) | {"max_workers": "eight"}
    with pytest.raises(Exception, match=r"eight|max_workers"):
        validate_config(prepare_config(broken))


def test_the_head_runs_no_trial_and_nodes_ask_for_a_token() -> None:
    cluster = yaml.safe_load(CLUSTER.read_text())
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"]["CPU"] == 0
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert any("RAY_AUTH_MODE=token" in command for command in commands)
