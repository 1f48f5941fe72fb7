"""``atdiff law``: what a sweep taught, or what anybody's table of optima says."""

from pathlib import Path
from typing import Annotated

import typer


def law(
    source: Annotated[Path, typer.Argument(help="A sweep's folder, say runs/demo, or a CSV table of optima.")],
    quantity: Annotated[str, typer.Option(help="Of a sweep: eta, alpha, replays or reach.")] = "eta",
    against: Annotated[str, typer.Option(help="Of a sweep: dimension or resolution.")] = "dimension",
    norm: Annotated[str | None, typer.Option(help="Of a sweep: l1, l2 or linf; the leading one without it.")] = None,
    predict: Annotated[list[float] | None, typer.Option(help="Scale to predict at; may be given again.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the law to this file, too.")] = None,
) -> None:
    """Print a law with its interval: what a sweep taught, or what a table of optima says.

    A table is a CSV file with the columns scale and optimum, and optionally low and high (95 % interval) or
    log_std (of the logarithm), series (one law each) and name.
    """
    from rich.console import Console

    from pipeline.report.law_text import print_laws, write_laws

    console, scales = Console(), predict or []
    if source.is_file() or source.suffix == ".csv":
        from pipeline.law_table import table_laws

        laws = {each.series: each.law for each in table_laws(source)}
    else:
        from atdiff_core.balls import norm_named
        from atdiff_core.files import write_json
        from pipeline.quantities import known_quantity, known_scale, law_of
        from pipeline.report.summary import law_json, print_summary
        from pipeline.results import load_sweep

        result = load_sweep(source)
        if norm is not None:
            result = result.in_norm(norm_named(norm))
        laws = {quantity: law_of(result, known_quantity(quantity), known_scale(against))}
        if (quantity, against) == ("eta", "dimension"):
            print_summary(result, console)
            if json:
                write_json(json, law_json(result))
            if scales:
                print_laws(laws, scales, console)
            return
    print_laws(laws, scales, console)
    if json:
        write_laws(laws, scales, json)
