"""Lint the Dockerfile and run its steps as far as that goes without Docker.

    python -m deploy.check_image

What is run: ``COPY`` into a bare folder, so that a forgotten file shows; ``pip install`` of that
folder into another one, its dependencies left to the environment that runs this; and the last
check, with what was installed there. What is not: the base image, and ``apt-get install``, which
is simulated where the machine has package lists.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCKERFILE = Path(__file__).parent / "Dockerfile"


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile, continuation lines joined."""

    keyword: str
    arguments: str


def steps(dockerfile: Path = DOCKERFILE) -> list[Step]:
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines()]


def lint(dockerfile: Path = DOCKERFILE) -> str:
    """What hadolint finds; empty where it finds nothing."""
    program = Path(sys.executable).parent / "hadolint"
    return subprocess.run([str(program), str(dockerfile)], capture_output=True, text=True, check=False).stdout


def copy_context(context: Path) -> None:
    """Carry out the ``COPY`` instructions from the repository into a bare folder.

    Raises:
        FileNotFoundError: The repository lacks a file.
    """
    for step in steps():
        if step.keyword != "COPY":
            continue
        *sources, target = [word for word in shlex.split(step.arguments) if not word.startswith("--")]
        for source in sources:
            place = context / target / Path(source).name if target.endswith("/") else context / target
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / source, place)


def unknown_extras() -> set[str]:
    """Extras that a pip step asks for and ``pyproject.toml`` does not declare."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {
        extra
        for step in steps()
        if step.keyword == "RUN" and "pip install" in step.arguments
        for extras in re.findall(r"\.\[([\w,]+)\]", step.arguments)
        for extra in extras.split(",")
    }
    return asked - set(declared)


def run_steps(context: Path, installed: Path) -> Iterator[tuple[str, str]]:
    """Run every ``RUN`` step as far as it goes; yields the step and what was done with it.

    Raises:
        RuntimeError: A step fails.
    """
    for step in steps():
        if step.keyword != "RUN":
            continue
        if "apt-get" in step.arguments:
            yield step.arguments, _simulate_apt(step.arguments)
        elif "pip install" in step.arguments:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
            _run([*pip, "--target", str(installed), str(context)])
            yield step.arguments, "run without the dependencies, which the environment has"
        else:
            program, *arguments = shlex.split(step.arguments)
            entry = (installed / "bin" / program).read_text().splitlines()
            module = next(line.split()[1] for line in entry if line.startswith("from "))
            _run([sys.executable, "-m", module, *arguments], cwd=installed)
            yield step.arguments, "run"


def _simulate_apt(step: str) -> str:
    packages = re.search(r"apt-get install ([^&]*)", step)
    if packages is None or shutil.which("apt-get") is None:
        return "not run: no apt-get here"
    words = [word for word in packages[1].split() if not word.startswith("-")]
    if subprocess.run(["apt-cache", "show", *words], capture_output=True, check=False).returncode:
        return "not run: this machine has no package lists (apt-get update)"
    _run(["apt-get", "install", "--simulate", "--quiet", *words])
    return "simulated"


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def main() -> None:
    if found := lint():
        sys.exit(found)
    print(f"{'hadolint':60.60} nothing found")
    with tempfile.TemporaryDirectory() as temporary:
        context, installed = Path(temporary) / "context", Path(temporary) / "installed"
        context.mkdir()
        copy_context(context)
        print(f"{'COPY':60.60} {sum(1 for file in context.rglob('*') if file.is_file())} files")
        for step, what in run_steps(context, installed):
            print(f"{step:60.60} {what}")


if __name__ == "__main__":
    main()
