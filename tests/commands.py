"""The command line in a process of its own, as a person meets it, without our Ray token."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from servers import ROOT


def atdiff(*arguments: str | Path, prefix: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end; ``prefix`` may put it somewhere else, say into a network namespace."""
    command = [*prefix, sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    given = inherited | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | environment
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=280, check=False)


def mistake(*arguments: str | Path, prefix: Sequence[str] = (), **environment: str) -> str:
    """Runs a command that must fail; returns its one line."""
    done = atdiff(*arguments, prefix=prefix, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("atdiff:")]
    return line
