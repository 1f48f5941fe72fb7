"""``atdiff …``: the commands, and how errors reach a person.

Only the command that runs imports what it needs, so that ``atdiff --help`` answers at once.
"""

import errno
import sys
from typing import NoReturn

import typer

from pipeline.commands import (
    analysis,
    checkpoints,
    comparisons,
    data,
    evaluation,
    inspect,
    jobs,
    laws,
    mismatch,
    networks,
    planning,
    pretraining,
    prompts,
    replays,
    services,
    set_pictures,
    shard_sets,
    solvers,
    studies,
    text_evaluation,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="How strong must adversarial training of a diffusion model be? Sweep small, fit the law, predict large.",
)
app.add_typer(data.app, name="shards")
data.app.command("index")(shard_sets.index)
data.app.command("verify")(shard_sets.verify)
data.app.command("show")(set_pictures.show)
app.command("latents")(set_pictures.latents)
app.command("prompts")(prompts.prompts)
app.add_typer(checkpoints.importing, name="import")
app.add_typer(checkpoints.exporting, name="export")
app.add_typer(pretraining.app, name="pretrain")
app.command("train")(networks.train)
app.command("sample")(evaluation.sample)
app.command("evaluate")(evaluation.evaluate)
app.command("evaluate-text")(text_evaluation.evaluate_text)
app.command("mismatch")(mismatch.mismatch)
app.command("robustness")(mismatch.robustness)
app.command("solver-error")(solvers.solver_error)
app.command("plan")(planning.plan)
app.command("sweep")(studies.sweep)
app.command("status")(planning.status)
app.command("replay")(replays.replay)
app.command("compare")(comparisons.compare)
app.command("submit")(jobs.submit)
app.command("jobs")(jobs.jobs)
app.command("stop")(jobs.stop)
app.command("law")(laws.law)
app.command("report")(studies.report)
app.command("analyse")(analysis.analyse)
app.command("ui")(inspect.ui)
app.command("serve")(services.serve)
app.command("sync")(services.sync)
app.command("doctor")(inspect.doctor)

BAD_INPUT, INTERRUPTED = 2, 130
FULL = "make room; what is finished is kept, and the same command continues"


def main() -> None:
    """Run the command line; people see one line for each mistake, never a traceback."""
    try:
        app()
    except SystemExit as end:  # Typer makes one of Ctrl-C.
        if end.code == INTERRUPTED:
            _leave("interrupted; the same command continues", INTERRUPTED)
        raise
    except KeyboardInterrupt:
        _leave("interrupted; the same command continues", INTERRUPTED)
    except ModuleNotFoundError as error:
        _leave(f"{error.name} is not installed; run: pip install 'atdiff[sweep,demo,text]'", BAD_INPUT)
    except OSError as error:
        _leave(_told(error), BAD_INPUT)
    except ValueError as error:
        _leave("\n".join(_plain(error)), BAD_INPUT)


def _told(error: OSError) -> str:
    """What the system says, where, and the way out if there is one."""
    said = error.strerror or str(error)
    place = f"{error.filename}: " if error.filename is not None and error.strerror else ""
    remedy = f"; {FULL}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{place}{said}{remedy}"


def _plain(error: ValueError) -> list[str]:
    """One line for each mistake, with the place and the value."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return [str(error)]
    lines = []
    for mistake in error.errors(include_url=False):
        place = ".".join(str(part) for part in mistake["loc"])
        message = mistake["msg"].removeprefix("Value error, ")
        value = "" if "got" in message or isinstance(mistake["input"], dict) else f", got {mistake['input']!r}"
        lines.append(f"{error.title}: {place + ': ' if place else ''}{message}{value}")
    return lines


def _leave(message: str, code: int) -> NoReturn:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, soft_wrap=True).print(f"[bold red]atdiff:[/] {escape(message)}", highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
