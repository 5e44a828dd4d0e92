"""A run's directory: its name, its configuration, its checkpoints, and where it goes on.

    RUN/config.json             the configuration, written before the run starts
    RUN/start.json              the checkpoints that it starts and learns from, where there are any
    RUN/owner.json              the job that learns it, see owner.py
    RUN/checkpoint_000000420/   what was learned in 420 steps
    RUN/tensorboard/            logs

Ray Train keeps no checkpoints here: its own list of them stops a run for good when a full disk or a kill tears it, and
a failed upload restarts its workers, to fail again.
"""

import contextlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from pydantic import ValidationError
from torch import Tensor

from sketchray import checkpoint as checkpoints
from sketchray.checkpoint import META, Meta, library_versions
from sketchray.errors import CheckpointError, RunError, StorageError
from sketchray.recipe import TrainConfig
from sketchray.shards import ShardSet
from sketchray.storage import absolute, child, open_filesystem, patiently

logger = logging.getLogger(__name__)

CONFIG, START = "config.json", "start.json"
_CHECKPOINT = re.compile(r"checkpoint_\d{9}")


def checkpoint_name(step: int) -> str:
    """Returns the name of a checkpoint in its run's directory."""
    return f"checkpoint_{step:09d}"


def is_checkpoint(name: str) -> bool:
    """Returns whether something in a run's directory is a checkpoint, whole or torn."""
    return _CHECKPOINT.fullmatch(name) is not None


def stored_checkpoints(run: str) -> dict[str, Meta]:
    """Returns the checkpoints of a run that look whole, by name, the latest first; says which it passes over."""
    found = {}
    for uri, meta in checkpoints.find(run):
        name = uri.partition("?")[0].rpartition("/")[2]
        if is_checkpoint(name) and uri == child(run, name):
            found[name] = meta
    return found


def remove(filesystem: pafs.FileSystem, path: str) -> None:
    """Removes a directory, if it is there."""
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


def stored_config(storage_path: str, name: str) -> TrainConfig | None:
    """Returns the configuration of a run, or None if there is no such run."""
    filesystem, path = open_filesystem(child(absolute(storage_path), f"{name}/{CONFIG}"))
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    with filesystem.open_input_file(path) as file:
        try:
            return TrainConfig.model_validate_json(file.read())
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            reason = ".".join(map(str, fault["loc"])) + f": {fault['msg']}" if fault["loc"] else fault["msg"]
            raise RunError(f"{child(storage_path, name)}/{CONFIG}: {reason}; start a new run") from error


def claim_run(
    config: TrainConfig,
    storage_path: str,
    name: str,
    *,
    resume: bool,
    from_checkpoint: str | None = None,
    teachers: Sequence[str] = (),
) -> str:
    """Returns the run's directory, new or resumed; what it is started with is stored there.

    Raises:
        RunError: the name is in use and `resume` is not given, or there is nothing that could be resumed, or the
            configuration differs from the run's, or the directory cannot be written.
    """
    if resume:
        run, stored = child(storage_path, name), stored_config(storage_path, name)
        if stored is None:
            raise RunError(f"--resume: there is no run {run}; leave out --resume to start it")
        differing = first_difference(stored.model_dump(), config.model_dump())
        if differing:
            where, before, now = differing
            raise RunError(f"--resume: {run} was started with {where}={before}, not {now}; resume it as it was started")
        return run
    files = {CONFIG: config.model_dump_json(indent=1)}
    if from_checkpoint is not None or teachers:
        files = {START: json.dumps({"from_checkpoint": from_checkpoint, "teachers": teachers}), **files}
    return claim_directory(storage_path, name, files)


def claim_directory(storage_path: str, name: str, files: Mapping[str, str]) -> str:
    """Returns the directory of a new run or sweep, with files in it that say how it is started.

    Raises:
        RunError: the name is none or in use, or the directory cannot be written.
        StorageError: the storage is full, must not be written to, or does not answer.
    """
    if name in ("", ".", "..") or name != Path(name).name:
        raise RunError(f"--name {name!r}: must be one name, without slashes")
    run = child(storage_path, name)
    filesystem, path = open_filesystem(run)
    if filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        raise RunError(f"--name {name}: {run} is in use; choose another name, or go on with it by --resume")
    contents = {name: content.encode() for name, content in files.items()}
    try:
        patiently(lambda: checkpoints.write(run, contents), run, "cannot be written", "try again")
    except (OSError, StorageError) as error:
        with contextlib.suppress(OSError):
            remove(filesystem, path)
        if isinstance(error, StorageError):
            raise
        raise RunError(f"--storage-path {storage_path}: cannot write there ({error}); choose another place") from error
    return run


def started_with(run: str) -> tuple[str | None, list[str]]:
    """Returns the checkpoint that a run starts from, if it does, and its teachers."""
    filesystem, path = open_filesystem(child(run, START))
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        return None, []
    with filesystem.open_input_file(path) as file:
        start = json.loads(file.read())
    return start["from_checkpoint"], start["teachers"]


def first_difference(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """Returns the name, old and new value of the first entry of two configurations that differs."""
    for key, value in before.items():
        if isinstance(value, dict):
            inner = first_difference(value, now[key], f"{prefix}{key}.")
            if inner:
                return inner
        elif value != now[key]:
            return f"{prefix}{key}", value, now[key]
    return None


def newest(run: str) -> tuple[dict[str, Tensor], dict[str, Any], Meta] | None:
    """Returns weights, state and meta of a run's latest checkpoint that is whole; says which it passes over.

    None means that no checkpoint was ever completed, so that the run starts from the beginning.

    Raises:
        CheckpointError: there are some, and none can be used.
    """
    filesystem, path = open_filesystem(run)
    entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    begun = [entry.base_name for entry in entries if is_checkpoint(entry.base_name)]
    metas = filesystem.get_file_info([f"{path}/{name}/{META}" for name in begun])
    completed = [name for name, meta in zip(begun, metas, strict=True) if meta.type == pafs.FileType.File]
    for name in sorted({*begun} - {*completed}):
        logger.warning("passed over: %s was not stored to the end", child(run, name))
    for name in stored_checkpoints(run):
        uri = child(run, name)
        try:
            model, meta = checkpoints.load(uri)
            return model.state_dict(), checkpoints.load_state(uri), meta
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    if completed:
        raise CheckpointError(f"{run}: none of its {len(completed)} checkpoints can be used; start a new run")
    return None


def last_checkpoint(run: str) -> str | None:
    """Returns the latest checkpoint of a run, if there is one."""
    return next((child(run, name) for name in stored_checkpoints(run)), None)


def keep_best(run: str) -> None:
    """Removes all checkpoints of a run that is over but the best."""
    metas = stored_checkpoints(run)
    best = max(metas, key=lambda name: metas[name].metrics.get("val_top1", -1.0), default=None)
    for name in metas.keys() - {best}:
        remove(*open_filesystem(child(run, name)))


def check_data(run: str, shards: ShardSet) -> None:
    """Checks that a run goes on with the drawings that it began with.

    Raises:
        RunError: they are others.
    """
    for name, meta in list(stored_checkpoints(run).items())[:1]:
        if meta.classes != shards.classes or meta.data != _origin(shards):
            raise RunError(
                f"--resume: {child(run, name)} was made of other drawings than {shards.uri}; name the data that the "
                f"run was started with, or start a new run with --from-checkpoint {run}"
            )


def _origin(shards: ShardSet) -> dict[str, Any]:
    return {**shards.manifest.provenance, "splits": shards.manifest.splits}


def make_meta(
    config: TrainConfig, shards: ShardSet, *, step: int, epoch: int, history: Sequence[dict[str, float]]
) -> Meta:
    """Returns what a checkpoint says of itself; it has metrics if it was made at the end of an epoch.

    Where every drawing was learned from, it has no `val_` metrics, since nobody measured what they claim.
    """
    kinds = ("train_",) if config.train_split == "all" else ("val_", "train_")
    last = history[-1] if history and int(history[-1]["step"]) == step else {}
    return Meta(
        model=config.model,
        config=config.model_dump(mode="json"),
        classes=shards.classes,
        epoch=epoch,
        step=step,
        metrics={name: value for name, value in last.items() if name.startswith(kinds)},
        history=list(history),
        data=_origin(shards),
        licence=str(shards.manifest.provenance["licence"]),
        versions=library_versions(),
    )
