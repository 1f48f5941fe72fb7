"""The working tree as a package for a cluster: code and search spaces, no data and no runs."""

import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT_FOLDERS = {"data", "runs", "tracking", "mlruns", "mlartifacts", "models", "node_modules"}
LEFT_OUT_SUFFIXES = {
    ".ckpt", ".db", ".npz", ".pt", ".pth", ".safetensors", ".tar", ".gz", ".zip", ".parquet", ".log",
}  # fmt: skip
LARGEST_BYTES = 50 * 1024**2
EARLIEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def packed_files(tree: Path) -> list[Path]:
    """What of a working tree is sent, relative to it, in a fixed order.

    In a git repository: what git tracks or would track. Elsewhere: everything that is not hidden.
    Folders of data and runs are left out at the top, and files of weights and data anywhere.
    """
    known = _known_to_git(tree)
    files = known if known is not None else _visible(tree)
    return sorted(file for file in files if _is_code(file) and (tree / file).is_file())


def pack(tree: Path, package: Path) -> int:
    """Write the package; the same files give the same bytes. Returns the number of files.

    Raises:
        ValueError: It would be larger than a package of code should be.
    """
    files = packed_files(tree)
    sizes = Counter[str]()
    for file in files:
        sizes[file.parts[0]] += (tree / file).stat().st_size
    if sizes.total() > LARGEST_BYTES:
        name, size = sizes.most_common(1)[0]
        raise ValueError(
            f"{tree} holds {sizes.total() / 1e6:.0f} MB to send, the largest part is {name} with {size / 1e6:.0f} MB; "
            f"code fits into {LARGEST_BYTES / 1e6:.0f} MB: ignore it in .gitignore, or move it to data/"
        )
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file.as_posix(), EARLIEST_ZIP_TIME)
            entry.external_attr = ((0o755 if os.access(tree / file, os.X_OK) else 0o644) | 0o100000) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, (tree / file).read_bytes())
    return len(files)


def commit_of(tree: Path) -> str:
    """The commit that the tree shows, with ``+`` where it was changed; empty outside git."""
    head = _git(tree, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return ""
    return head.strip() + ("+" if _git(tree, "status", "--porcelain") else "")


def _is_code(file: Path) -> bool:
    return file.parts[0] not in LEFT_OUT_FOLDERS and file.suffix not in LEFT_OUT_SUFFIXES


def _known_to_git(tree: Path) -> list[Path] | None:
    listed = _git(tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return None if listed is None else [Path(name) for name in listed.split("\0") if name]


def _visible(tree: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(tree):
        below[:] = [name for name in below if not name.startswith(".") and name != "__pycache__"]
        yield from ((Path(folder) / name).relative_to(tree) for name in files if not name.startswith("."))


def _git(tree: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(tree), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
