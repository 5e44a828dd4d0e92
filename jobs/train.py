"""Train a stroke classifier with Ray Train."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from sketchray import command
from sketchray.engine import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train a stroke classifier with Ray Train. Precedence: preset, then --config, then flags.

    Attributes:
        data: directory or URI that jobs/ingest.py wrote.
        storage_path: where runs are kept; every node must see it.
        name: of the run, a directory in the storage path.
        num_workers: training processes, or MIN:MAX for a group that follows the size of the cluster.
        use_gpu: one GPU for each worker.
        preset: named architecture and recipe.
        config: JSON file with any part of the configuration, such as a run's config.json.
        resume: go on with the run of this name, as it was started.
        debug: show tracebacks and Ray's own log.
        train: what is learned and how.
    """

    data: str
    storage_path: str
    name: str
    num_workers: command.NumWorkers = 1
    use_gpu: bool = False
    preset: Literal["base", "conv1d", "homl", "seed", "tutorial"] = "base"
    config: str | None = None
    resume: bool = False
    debug: bool = False
    train: Annotated[TrainConfig, tyro.conf.arg(name="")]


def call(arguments: Arguments) -> dict[str, object]:
    """Trains."""
    from sketchray.training import train

    return train(
        arguments.train,
        data=arguments.data,
        storage_path=arguments.storage_path,
        name=arguments.name,
        num_workers=arguments.num_workers,
        use_gpu=arguments.use_gpu,
        resume=arguments.resume,
    )


if __name__ == "__main__":
    command.run(Arguments, call, command.config_defaults)
