"""Train a stroke classifier with Ray Train."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from sketchray import command
from sketchray.recipe import TrainConfig


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
        from_checkpoint: start from the weights of a checkpoint, or a run's best; other classes get a new head.
        teachers: checkpoints, or runs, whose probabilities are learned beside the labels.
        checkpoint_every_s: seconds between two checkpoints in the middle of an epoch; 0 keeps those of epochs only.
        resume: go on with the run of this name, as it was started.
        debug: show tracebacks and Ray's own log.
        train: what is learned and how.
    """

    data: str
    storage_path: str
    name: str
    num_workers: command.NumWorkers = 1
    use_gpu: bool = False
    preset: Literal["base", "conv1d", "gru", "homl", "seed", "student", "tutorial"] = "base"
    config: str | None = None
    from_checkpoint: str | None = None
    teachers: tuple[str, ...] = ()
    checkpoint_every_s: float = 600.0
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
        from_checkpoint=arguments.from_checkpoint,
        teachers=arguments.teachers,
        checkpoint_every_s=arguments.checkpoint_every_s,
        resume=arguments.resume,
    )


if __name__ == "__main__":
    command.run(Arguments, call, command.config_defaults)
