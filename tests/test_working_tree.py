"""What of a working tree goes to a cluster."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from pipeline.working_tree import commit_of, pack, packed_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = ["spaces/mine.py", "data/8px/train.tar", "runs/mine/study.db", "weights.safetensors", ".secret", "notes.md"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def git(tree: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(["git", "-C", str(tree), *identity, *arguments], check=True, capture_output=True)


def test_code_is_sent_and_data_runs_and_weights_are_not(tree: Path) -> None:
    assert [str(file) for file in packed_files(tree)] == ["notes.md", "spaces/mine.py"]


def test_in_a_repository_git_says_what_belongs_to_it(tree: Path) -> None:
    git(tree, "init", "-q")
    (tree / ".gitignore").write_text("notes.md\n")
    git(tree, "add", "spaces", ".gitignore")
    git(tree, "commit", "-qm", "first")
    (tree / "spaces" / "new.py").write_text("")
    sent = [str(file) for file in packed_files(tree)]
    assert sent == [".gitignore", ".secret", "spaces/mine.py", "spaces/new.py"]
    assert commit_of(tree).endswith("+")


def test_a_file_that_was_deleted_but_not_committed_is_not_sent(tree: Path) -> None:
    git(tree, "init", "-q")
    git(tree, "add", ".")
    (tree / "notes.md").unlink()
    assert Path("notes.md") not in packed_files(tree)


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("packages")
    assert pack(tree, folder / "one.zip") == 2
    (tree / "notes.md").touch()
    pack(tree, folder / "two.zip")
    assert (folder / "one.zip").read_bytes() == (folder / "two.zip").read_bytes()
    with zipfile.ZipFile(folder / "one.zip") as archive:
        assert archive.read("spaces/mine.py") == b"spaces/mine.py"


def test_a_tree_full_of_other_things_is_refused_with_their_name(
    tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.working_tree.LARGEST_BYTES", 1_000)
    (tree / "pictures").mkdir()
    (tree / "pictures" / "big.png").write_bytes(bytes(5_000))
    with pytest.raises(ValueError, match="the largest part is pictures"):
        pack(tree, tmp_path_factory.mktemp("packages") / "one.zip")


def test_outside_git_there_is_no_commit(tree: Path) -> None:
    assert commit_of(tree) == ""
