"""The demo with next to no budget: shows that every part works, teaches nothing about AT."""

from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.samplers import Sampler
from search_spaces.demo import space as demo
from search_spaces.space import Phase, Replication

space = demo.but(
    name="demo-tiny",
    pretraining=Phase(budget_kpass=3.2, optimization=demo.pretraining.optimization),
    finetuning=Phase(budget_kpass=0.384, optimization=demo.finetuning.optimization),
    evaluation=EvaluationConfig(
        samples=32, reference=512, samplers=(Sampler(kind="ddim", nfe=5), Sampler(kind="ddim", nfe=2))
    ),
    trials=7,
    replication=Replication(leaders=1, seeds=2),
)
