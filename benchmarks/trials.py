"""What a trial of a sweep costs beside its training: the same configurations in a sweep, and in a plain loop.

    python benchmarks/trials.py --data DIR

DIR is what jobs/ingest.py wrote. One trial after the other on a Ray cluster of this process, each with one worker;
what a trial takes there is from its start to the start of the next. Then the same loops in this process, which keep
the same checkpoints.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise

import ray
import torch
import tyro

from sketchray.cluster import quiet_ray
from sketchray.keeper import Keeper
from sketchray.recipe import TrainConfig
from sketchray.shards import open_shards
from sketchray.storage import absolute
from sketchray.tuning import SweepConfig, tune
from sketchray.tuning.study import open_study
from sketchray.tuning.trial import make_loop

# Small, so that training does not hide what stands around it; but of real drawings.
FIX = ("family=conv", "conv_layers=2", "model.conv_channels=[64,64]", "model.conv_strides=[1,1]", "batch_size=64")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Overhead of a trial.

    Attributes:
        data: directory that jobs/ingest.py wrote.
        num_samples: trials; the first is told apart, since its process starts.
        num_epochs: of each.
    """

    data: str
    num_samples: int = 8
    num_epochs: int = 4


def in_a_sweep(arguments: Arguments, storage: str) -> tuple[list[float], list[dict[str, object]]]:
    """Returns the seconds of each trial but the last, and all configurations."""
    sweep = SweepConfig(
        num_samples=arguments.num_samples,
        num_epochs=arguments.num_epochs,
        scheduler="none",
        sampler="random",
        presets=False,
    )
    tune(sweep, data=arguments.data, storage_path=storage, name="sweep", fix=FIX, max_concurrent_trials=1)
    study, _ = open_study(f"{storage}/sweep", "sweep", url=None, seed=0, sampler="random", resume=True)
    starts = [trial.datetime_start for trial in study.trials]
    seconds = [(after - before).total_seconds() for before, after in pairwise(starts) if before and after]
    return seconds, [trial.user_attrs["config"] for trial in study.trials]


def in_a_loop(config: dict[str, object], data: str) -> float:
    """Returns the seconds of one configuration, from nothing to its last checkpoint."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        keeper = Keeper(directory)
        make_loop(TrainConfig.model_validate(config), open_shards(data), directory, keeper).run()
        keeper.close()
    return time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    arguments = tyro.cli(Arguments)
    quiet_ray()
    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=cores, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as storage:
        swept, configs = in_a_sweep(arguments, storage)
    ray.shutdown()
    torch.set_num_threads(cores)
    plain = [in_a_loop(config, absolute(arguments.data)) for config in configs[:-1]]
    beyond = [ours - theirs for ours, theirs in zip(swept, plain, strict=True)]
    print(f"{cores} cores, Ray {ray.__version__}, torch {torch.__version__}; {arguments.num_epochs} epochs a trial\n")
    print("| trial | in the sweep, s | in a loop, s | beyond it, s |\n|---|---|---|---|")
    print(f"| the first, with its process | {swept[0]:.2f} | {plain[0]:.2f} | {beyond[0]:.2f} |")
    later = [statistics.median(column[1:]) for column in (swept, plain, beyond)]
    spread = f"{min(beyond[1:]):.2f} to {max(beyond[1:]):.2f}"
    print(f"| later ones, median | {later[0]:.2f} | {later[1]:.2f} | {later[2]:.2f} ({spread}) |")


if __name__ == "__main__":
    main()
