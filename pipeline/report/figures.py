"""All figures of a sweep, by name."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from pipeline.report.law_figure import law_figure
from pipeline.report.response_figure import response_figure
from pipeline.report.trial_figures import attack_figure, nfe_figure
from pipeline.results import SweepResult

__all__ = ["all_figures", "attack_figure", "law_figure", "nfe_figure", "response_figure"]


def all_figures(result: SweepResult) -> Iterator[tuple[str, Figure]]:
    """Yields ``law``, then ``response_8px``, ``nfe_8px`` and ``attack_8px`` for every resolution.

    After those of the leading norm come ``law_l2`` and ``response_8px_l2`` for every other norm with a response.
    """
    yield "law", law_figure(result)
    for study in result.studies:
        yield f"response_{study.resolution}px", response_figure(study)
        yield f"nfe_{study.resolution}px", nfe_figure(study)
        yield f"attack_{study.resolution}px", attack_figure(study)
    for norm, other in result.in_other_norms.items():
        if not any(study.response for study in other.studies):
            continue
        yield f"law_{norm}", law_figure(other)
        for study in other.studies:
            yield f"response_{study.resolution}px_{norm}", response_figure(study)
