"""Search architecture and clipping with Ray Tune and Optuna."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from sketchray import command
from sketchray.tuning import SweepConfig, sweep_defaults


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Search architecture and clipping with Ray Tune: Optuna proposes, ASHA stops the trials that lag.

    Attributes:
        data: directory or URI that jobs/ingest.py wrote.
        storage_path: where runs are kept; every node must see it.
        name: of the sweep, a directory in the storage path.
        num_workers: training processes of each trial.
        use_gpu: one GPU for each worker.
        max_concurrent_trials: at a time; as many as the cluster has room for if not given.
        time_budget_s: no trial goes on after so many seconds.
        fix: NAME=VALUE, a name of the space (model.cell=lstm) or of the configuration; may be given several times.
        space: JSON file with other choices (a list) or ranges ({"low", "high", "log"}) for names of the space.
        optuna_storage: URL of the Optuna storage that remembers the sweep; a journal in its directory if not given.
        resume: go on with the sweep of this name, as it was started.
        debug: show tracebacks and Ray's own log.
        sweep: how is searched.
    """

    data: str
    storage_path: str
    name: str
    num_workers: int = 1
    use_gpu: bool = False
    max_concurrent_trials: int | None = None
    time_budget_s: float | None = None
    fix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    space: str | None = None
    optuna_storage: str | None = None
    resume: bool = False
    debug: bool = False
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)


def call(arguments: Arguments) -> dict[str, object]:
    """Tunes."""
    from sketchray.tuning import tune
    from sketchray.tuning.dimensions import read_space

    return tune(
        arguments.sweep,
        data=arguments.data,
        storage_path=arguments.storage_path,
        name=arguments.name,
        space=read_space(arguments.space) if arguments.space is not None else None,
        fix=arguments.fix,
        num_workers=arguments.num_workers,
        use_gpu=arguments.use_gpu,
        max_concurrent_trials=arguments.max_concurrent_trials,
        time_budget_s=arguments.time_budget_s,
        optuna_storage=arguments.optuna_storage,
        resume=arguments.resume,
    )


if __name__ == "__main__":
    command.run(Arguments, call, sweep_defaults)
