"""The demo with K and the norm searched as well, in twice the trials.

Norms are not pooled; the report tells the response and the law in the leading one.
"""

from search_spaces.demo import space as demo
from search_spaces.domains import ReachDomains, choice, log_range

space = demo.but(
    name="demo-norms",
    domains=ReachDomains(
        eta=log_range(0.005, 0.6),
        num_replays=choice(2, 3),
        reach=choice(1.0, 2.0),
        norm=choice("linf", "l2", "l1"),
    ),
    trials=24,
)
