"""What nodes say of themselves, and what a driver refuses to start on."""

from pathlib import Path

import pytest

from pipeline import nodes
from pipeline.nodes import NodeReport, Silent, differing, require_fit

SAME = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}


def test_versions_that_differ_are_told_with_the_nodes_that_have_them() -> None:
    reports = [NodeReport("a", SAME), NodeReport("b", SAME), NodeReport("c", SAME | {"torch": "2.12.0"})]
    assert differing(reports[:2]) == {}
    assert differing(reports) == {"torch": {"2.13.0": ["a", "b"], "2.12.0": ["c"]}}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (NodeReport("b", SAME, storage_error="Read-only file system"), "the node b cannot use .*: Read-only file"),
        (NodeReport("b", SAME | {"ray": "2.59.0"}), r"different versions of ray \(2\.60\.0 on a; 2\.59\.0 on b\)"),
    ],
)
def test_a_driver_refuses_nodes_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: NodeReport, expected: str
) -> None:
    monkeypatch.setattr(nodes, "ask_nodes", lambda root: [NodeReport("a", SAME), report])
    with pytest.raises(ValueError, match=expected):
        require_fit(tmp_path)


def test_a_node_that_is_slow_to_answer_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nodes, "ask_nodes", lambda root: [NodeReport("a", SAME), Silent("b", "no answer in 20 s")])
    require_fit(tmp_path)


def test_storage_is_tried_by_writing_and_seen_by_the_others(tmp_path: Path) -> None:
    witness, root = nodes._Witness(), tmp_path / "runs"
    told = witness.report("10.0.0.1", str(root), "mark-0", None, with_gpus=False)
    assert told["storage_error"] == ""
    assert witness.seen(str(root), ["mark-0", "mark-1"]) == ["mark-0"]
    witness.clean(str(root), "mark-0")
    assert list(root.iterdir()) == []
    (tmp_path / "file").write_text("")
    told = witness.report("10.0.0.1", str(tmp_path / "file" / "runs"), "mark-0", None, with_gpus=False)
    assert told["storage_error"] == "Not a directory"
