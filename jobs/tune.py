"""Search architecture and clipping with Ray Tune and Optuna."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from sketchray import command
from sketchray.tuning import SweepConfig


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Search architecture and clipping with Ray Tune: Optuna proposes, ASHA stops the trials that lag.

    Attributes:
        data: directory or URI that jobs/ingest.py wrote.
        storage_path: where runs are kept; every node must see it.
        name: of the sweep, a directory in the storage path.
        num_workers: training processes of each trial.
        use_gpu: one GPU for each worker.
        max_concurrent_trials: at a time; as many as the cluster has CPUs for if not given.
        time_budget_s: no trial goes on after so many seconds.
        resume: go on with the sweep of this name.
        debug: show tracebacks and Ray's own log.
        sweep: what is searched.
    """

    data: str
    storage_path: str
    name: str
    num_workers: int = 1
    use_gpu: bool = False
    max_concurrent_trials: int | None = None
    time_budget_s: float | None = None
    resume: bool = False
    debug: bool = False
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)


def call(arguments: Arguments) -> dict[str, object]:
    """Tunes."""
    from sketchray.tuning import tune

    return tune(
        arguments.sweep,
        data=arguments.data,
        storage_path=arguments.storage_path,
        name=arguments.name,
        num_workers=arguments.num_workers,
        use_gpu=arguments.use_gpu,
        max_concurrent_trials=arguments.max_concurrent_trials,
        time_budget_s=arguments.time_budget_s,
        resume=arguments.resume,
    )


if __name__ == "__main__":
    command.run(Arguments, call)
