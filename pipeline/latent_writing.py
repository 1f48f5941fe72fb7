"""Encoding a set of images on all CPUs or GPUs."""

import torch

from atdiff_core.data.index import ShardIndex
from atdiff_core.data.latent_writing import LatentPlan, begin_latents, encode_shard, finish_latents
from pipeline.parallel import in_parts
from pipeline.shard_writing import progress_bar


def write_latents(plan: LatentPlan, *, workers: int) -> ShardIndex:
    """Encode all shards of a plan, on one GPU a worker where the plan's device is one."""
    total = plan.index.num_samples
    done = [0] * len(plan.index.shards)
    on_gpu = not plan.device.startswith("cpu")
    if on_gpu:
        workers = min(workers, torch.cuda.device_count())
    begin_latents(plan)
    with progress_bar() as bar:
        task = bar.add_task(f"encoding {plan.images}", total=total)
        for shard, samples in in_parts(encode_shard, plan, len(done), workers=workers, gpus=1 if on_gpu else 0):
            done[shard] = samples
            bar.update(task, completed=sum(done))
    return finish_latents(plan)
