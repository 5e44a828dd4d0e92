"""The checkpoint on disk: `model.safetensors`, `meta.json` and, for resuming only, `state.pt`.

Nothing here can execute code: weights are safetensors, `state.pt` is read with `weights_only=True`.
"""

import json
import pickle
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from sketchray.errors import CheckpointError
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.storage import child, open_filesystem

FORMAT_VERSION = 1
WEIGHTS, META, STATE = "model.safetensors", "meta.json", "state.pt"


class Meta(BaseModel):
    """What `meta.json` holds.

    Attributes:
        model: the architecture; `config` is the whole training configuration, for the record and for `--config`.
        classes: class names; a class's index is its label.
        epoch, step: where training stood.
        metrics: of the validation split, at that step.
        data: provenance of the training data: source, seed, drawings, whether it is synthetic.
        licence: of that data.
        versions: of Python and the libraries that wrote it.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    model: ModelConfig
    config: dict[str, Any]
    classes: list[str]
    epoch: int
    step: int
    metrics: dict[str, float]
    data: dict[str, Any]
    licence: str
    versions: dict[str, str]


def library_versions() -> dict[str, str]:
    """Returns the versions of Python, sketchray and PyTorch, as a checkpoint records them."""
    return {"python": platform.python_version(), "sketchray": version("sketchray"), "torch": version("torch")}


def save(directory: Path, weights: Mapping[str, Tensor], meta: Meta, state: Mapping[str, Any] | None = None) -> None:
    """Writes a checkpoint into an existing, empty directory; `meta.json`, which makes it complete, comes last."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, directory / WEIGHTS)
    if state is not None:
        torch.save(dict(state), directory / STATE)
    (directory / META).write_text(meta.model_dump_json(indent=1) + "\n")


def read_meta(uri: str) -> Meta:
    """Returns a checkpoint's `meta.json`.

    Raises:
        CheckpointError: there is none, it is of another format version, or it is damaged.
    """
    filesystem, path = open_filesystem(uri)
    try:
        with filesystem.open_input_file(f"{path}/{META}") as file:
            content = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{uri}: not a checkpoint (no {META}); name a checkpoint directory or a run directory"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{uri}/{META}: not valid JSON ({error}); the checkpoint is damaged") from error
    found = content.get("format_version") if isinstance(content, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{uri}/{META}: checkpoint format version {found!r}, this sketchray reads {FORMAT_VERSION}; "
            f"use the sketchray that wrote it, or train again"
        )
    try:
        return Meta.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{uri}/{META}: {where}: {first['msg']}; the checkpoint is damaged") from error


def load(uri: str) -> tuple[StrokeClassifier, Meta]:
    """Returns the model of a checkpoint, on the CPU and ready to answer, and its meta.

    Raises:
        CheckpointError: the directory is not a whole checkpoint.
    """
    meta = read_meta(uri)
    filesystem, path = open_filesystem(uri)
    model = StrokeClassifier(meta.model, len(meta.classes))
    try:
        with filesystem.open_input_file(f"{path}/{WEIGHTS}") as file:
            model.load_state_dict(load_tensors(file.read()))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{uri}/{WEIGHTS}: {reason}; the checkpoint is damaged") from error
    return model.eval(), meta


def load_state(directory: Path) -> dict[str, Any]:
    """Returns what `save` was given as `state`: the optimizer, the schedule and the position."""
    try:
        state: dict[str, Any] = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: no {STATE}, so training cannot go on from it") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{directory}/{STATE}: {reason}; the checkpoint is damaged or hostile") from error
    return state


def best(uri: str) -> str:
    """Returns the checkpoint that a path means: itself, or the one of a run with the highest `val_top1`.

    Raises:
        CheckpointError: there is no such directory, or it holds no checkpoint.
    """
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        raise CheckpointError(f"{uri}: no such directory; name a checkpoint directory or a run directory")
    if filesystem.get_file_info(f"{path}/{META}").type == pafs.FileType.File:
        return uri
    entries = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    found = [entry.path for entry in entries if entry.base_name == META]
    candidates = [child(uri, entry.removesuffix(f"/{META}").removeprefix(path).strip("/")) for entry in found]
    if not candidates:
        raise CheckpointError(f"{uri}: holds no checkpoint; name one, or a run that has finished an epoch")
    return max(sorted(candidates), key=lambda candidate: read_meta(candidate).metrics.get("val_top1", 0.0))
