"""MS-COCO at 512 pixels: adversarial latent consistency distillation of Stable Diffusion 1.5.

    atdiff shards coco coco/train2017 --captions coco/annotations/captions_train2017.json --out data/coco \\
        --resolutions 512
    atdiff latents data/coco/512px --autoencoder stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --out data/coco_latents/64px
    atdiff prompts data/coco/512px --encoder stable-diffusion-v1-5/stable-diffusion-v1-5 --out data/coco_prompts
    atdiff compare search_spaces/coco_lcm.py

Grid, solver, scale range, distance, target decay and learning rate are those of the
published distillation (Luo et al., arXiv:2310.04378, and its code); AT_Diff states none of its own. Every student
starts at the teacher's weights and learns all of them in bf16; ``LORA_RANK = 64`` learns updates
instead. The teacher is given by the hub's id or by a folder of that layout. Arms perturb the student's
input or the solver's output, each with its replay and random control. Costs 9 x 3 trials of 384
kpass on GPUs with 24 GB and more; nobody has run it here.
"""

from itertools import product

from atdiff_core.balls import L2Ball
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.latent_consistency import LatentConsistencyDistillation
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, RandomPerturbation, Unperturbed
from atdiff_core.samplers import Sampler
from atdiff_core.text_networks import text_preset
from search_spaces.comparison import Arm, Comparison, Pretrained
from search_spaces.resources import Resources
from search_spaces.space import Phase

LORA_RANK = 0
RADII, REPLAYS = (0.003, 0.01, 0.03), 3
teacher = Pretrained(snapshot="stable-diffusion-v1-5/stable-diffusion-v1-5")
student = LatentConsistencyDistillation(w_min=5.0, w_max=15.0, target_rate=0.95, unit="noise")
solver = student.but(perturbed="solver")


def free_at(radius: float) -> FreeAT:
    """The boundary is reached by the last step, from which the last replay learns."""
    return FreeAT(ball=L2Ball(radius=radius), num_replays=REPLAYS, step_size=radius / (REPLAYS - 1))


attacks = tuple(
    Arm(
        name=f"{objective.perturbed}-eta{radius:g}",
        objective=objective,
        perturbation=free_at(radius),
        reference="replay",
    )
    for objective, radius in product((student, solver), RADII)
)
comparison = Comparison(
    name="coco-lcm",
    shards="data/coco_latents",
    prompts="data/coco_prompts",
    network=text_preset("sd15").but(lora_rank=LORA_RANK),
    objective=Denoising(noise=NoiseSchedule(kind="scaled_linear")),
    teacher=teacher,
    pretraining=teacher,
    finetuning=Phase(budget_kpass=384, optimization=Optimization(learning_rate=1e-6, ema_half_life_kpass=40)),
    batch_size=12,
    precision="bf16",
    arms=(
        Arm(name="plain", objective=student, perturbation=Unperturbed()),
        Arm(name="replay", objective=student, perturbation=Unperturbed(num_replays=REPLAYS)),
        Arm(
            name="random-eta0.01",
            objective=student,
            perturbation=RandomPerturbation(ball=L2Ball(radius=0.01), num_replays=REPLAYS, step_size=0.005),
            reference="replay",
        ),
        *attacks,
    ),
    seeds=3,
    resources=Resources(gpus=1, gradient_checkpointing=True),
    evaluation=EvaluationConfig(
        features="inception",
        distance="frechet",
        samples=5_000,
        samplers=tuple(Sampler(kind="lcm", nfe=nfe, guidance=8.0) for nfe in (1, 2, 4, 8)),
    ),
)
