"""The Ray cluster: connecting to it, its size, and what workers and trials may reserve of it.

Two workers of one CPU each on a cluster of two hang for ever: nothing is left to read the data with. The sum that
avoids it is done here, for training and sweeps alike.
"""

import logging
import os
from dataclasses import dataclass

from sketchray.errors import RunError

logger = logging.getLogger(__name__)

DATA_CPUS = 1.0  # kept free for Ray Data's reading tasks


@dataclass(frozen=True)
class Cluster:
    """What a cluster has, or may grow to: CPUs and GPUs."""

    cpus: float
    gpus: float


def quiet_ray(level: str = "WARNING") -> None:
    """Keeps Ray's reports of each step it takes out of this process's log, and of those it starts.

    Args:
        level: what still gets through. At `CRITICAL` not even the traceback that Ray Data logs before it raises.
    """
    os.environ["RAY_DATA_LOG_LEVEL"] = level  # read when ray.data is imported
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(level)


def connect() -> Cluster:
    """Connects to the Ray cluster (`RAY_ADDRESS`, one that runs on this machine, or a new one), if that is still to do.

    Returns:
        Its size, grown as far as its configuration allows.
    """
    import ray
    from ray._private.state import state  # no public call tells how far a cluster may grow

    if not ray.is_initialized():
        ray.init()
    now = ray.cluster_resources()  # type: ignore[no-untyped-call]
    most = state.get_max_resources_from_cluster_config() or {}
    return Cluster(max(now.get("CPU", 0.0), most.get("CPU", 0)), max(now.get("GPU", 0.0), most.get("GPU", 0)))


def cpus_per_worker(cluster: Cluster, num_workers: int, *, use_gpu: bool = False) -> float:
    """Returns what each of `num_workers` may reserve: at most one CPU, and a whole one stays free.

    Raises:
        RunError: the cluster is too small; the message has the sum.
    """
    if num_workers < 1:
        raise RunError(f"--num-workers {num_workers}: must be at least 1")
    if num_workers > cluster.cpus:
        raise RunError(
            f"--num-workers {num_workers}: more workers than the cluster has CPUs ({cluster.cpus:g}); "
            f"ask for at most {int(cluster.cpus)}, or add nodes"
        )
    if use_gpu and num_workers > cluster.gpus:
        raise RunError(
            f"--num-workers {num_workers} --use-gpu: more workers than the cluster has GPUs ({cluster.gpus:g}); "
            f"ask for at most {int(cluster.gpus)}, add nodes, or leave out --use-gpu"
        )
    free = cluster.cpus - DATA_CPUS
    if free <= 0:
        raise RunError(
            f"the cluster has {cluster.cpus:g} CPU: training needs part of one beside the {DATA_CPUS:g} that "
            f"Ray Data reads with; start Ray with --num-cpus 2"
        )
    # Ray counts in 1/10,000 CPU; rounding down keeps the sum within the cluster.
    return min(1.0, int(free / num_workers * 1000) / 1000)


def tell_if_busy(cpus: float, gpus: float = 0.0) -> None:
    """Says what a run is going to wait for, where other work (a service, another run) holds what it needs now."""
    import ray

    free = ray.available_resources()  # type: ignore[no-untyped-call]
    for kind, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > free.get(kind, 0.0):
            logger.warning(
                "waiting for %g %ss, of which %g are free: the rest is held by other work on this cluster, or by "
                "nodes still to start; `ray status` shows it",
                needed,
                kind,
                free.get(kind, 0.0),
            )
