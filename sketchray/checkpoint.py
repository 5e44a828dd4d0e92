"""The checkpoint on disk: `model.safetensors`, `meta.json` and, for resuming only, `state.pt`.

`meta.json` is written last and names the others' sizes and SHA-256, by which a torn or damaged checkpoint is known.
Nothing here can execute code: weights are safetensors, `state.pt` is read with `weights_only=True`.
"""

import hashlib
import io
import json
import logging
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
from safetensors.torch import save as save_tensors
from torch import Tensor

from sketchray.errors import CheckpointError, first_line
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.storage import child, open_filesystem, patiently, read_file

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
WEIGHTS, META, STATE = "model.safetensors", "meta.json", "state.pt"


class File(BaseModel):
    """Size and SHA-256 of a file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class Meta(BaseModel):
    """What `meta.json` holds.

    Attributes:
        model: the architecture; `config` is the whole training configuration, for the record and for `--config`.
        classes: class names; a class's index is its label.
        epoch, step: where training stood: whole epochs, and steps.
        metrics: of the validation split, at that step; empty in the middle of an epoch.
        history: the metrics of each epoch so far.
        files: of the checkpoint; filled in by `save`.
        data: provenance of the training data: source, seed, drawings, whether it is synthetic.
        licence: of that data.
        versions: of Python and the libraries that wrote it.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")  # a metric may be NaN

    format_version: int = FORMAT_VERSION
    model: ModelConfig
    config: dict[str, Any]
    classes: list[str]
    epoch: int
    step: int
    metrics: dict[str, float]
    history: list[dict[str, float]] = []
    files: dict[str, File] = {}
    data: dict[str, Any]
    licence: str
    versions: dict[str, str]


def library_versions() -> dict[str, str]:
    """Returns the versions of Python, sketchray and PyTorch, as a checkpoint records them."""
    return {"python": platform.python_version(), "sketchray": version("sketchray"), "torch": version("torch")}


def pack(weights: Mapping[str, Tensor], meta: Meta, state: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Returns the files of a checkpoint by name; `meta.json`, which makes it complete, comes last."""
    contents = {WEIGHTS: save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})}
    if state is not None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        contents[STATE] = buffer.getvalue()
    files = {
        name: File(num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }
    contents[META] = (meta.model_copy(update={"files": files}).model_dump_json(indent=1) + "\n").encode()
    return contents


def write(uri: str, contents: Mapping[str, bytes]) -> None:
    """Writes what `pack` returned into a directory, in that order.

    Raises:
        OSError: it cannot be written; what has been stays.
    """
    filesystem, path = open_filesystem(uri)
    filesystem.create_dir(path)
    for name, content in contents.items():
        with filesystem.open_output_stream(f"{path}/{name}") as stream:
            stream.write(content)


def save(directory: Path, weights: Mapping[str, Tensor], meta: Meta, state: Mapping[str, Any] | None = None) -> None:
    """Writes a checkpoint into an empty directory of this machine."""
    write(str(directory), pack(weights, meta, state))


def read_meta(uri: str) -> Meta:
    """Returns a checkpoint's `meta.json`.

    Raises:
        CheckpointError: there is none, it is of another format version, or it is damaged.
    """
    try:
        content = json.loads(read_file(child(uri, META)))
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
    model = StrokeClassifier(meta.model, len(meta.classes))
    content = _read(uri, WEIGHTS, meta)
    try:
        model.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{uri}/{WEIGHTS}: {first_line(error)}; the checkpoint is damaged") from error
    return model.eval(), meta


def load_state(uri: str) -> dict[str, Any]:
    """Returns what `save` was given as `state`: the optimizer, the schedule and the position.

    Raises:
        CheckpointError: there is none, or it is damaged or hostile.
    """
    meta = read_meta(uri)
    if STATE not in meta.files:
        raise CheckpointError(f"{uri}: no {STATE}, so training cannot go on from it")
    content = _read(uri, STATE, meta)
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{uri}/{STATE}: {first_line(error)}; the checkpoint is damaged or hostile") from error
    return state


def _read(uri: str, name: str, meta: Meta) -> bytes:
    """Returns the content of a file of a checkpoint, which is as `meta` says."""
    file = child(uri, name)
    try:
        content = patiently(lambda: read_file(file), file, "cannot be read", "try again")
    except OSError as error:
        raise CheckpointError(f"{uri}/{name}: {error}; the checkpoint is damaged") from error
    expected = meta.files.get(name)
    if expected is None or hashlib.sha256(content).hexdigest() != expected.sha256:
        raise CheckpointError(
            f"{uri}/{name}: its {len(content):,} bytes are not those that {META} names; the checkpoint is damaged"
        )
    return content


def find(uri: str) -> list[tuple[str, Meta]]:
    """Returns the whole checkpoints anywhere in a directory, by step, the latest first; says which it passes over.

    Whole means here that the weights are there, in full length; `load` and `load_state` compare checksums too.
    """
    filesystem, path = open_filesystem(uri)
    entries = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    sizes = {entry.path: entry.size for entry in entries}
    found = []
    for place in sorted(entry.removesuffix(f"/{META}") for entry in sizes if entry.endswith(f"/{META}")):
        candidate = child(uri, place.removeprefix(path).strip("/"))
        try:
            meta = read_meta(candidate)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
            continue
        weights = meta.files.get(WEIGHTS)
        if weights is None or sizes.get(f"{place}/{WEIGHTS}") != weights.num_bytes:
            logger.warning("passed over: %s/%s is missing or cut short", candidate, WEIGHTS)
        else:
            found.append((candidate, meta))
    return sorted(found, key=lambda entry: entry[1].step, reverse=True)


def best(uri: str) -> str:
    """Returns the checkpoint that a path means: itself, or the one of a run with the highest `val_top1`.

    Where none has that, since every drawing was learned from, it is the latest of an epoch. One whose weights are
    damaged is passed over, and named.

    Raises:
        CheckpointError: there is no such directory, or it holds no checkpoint.
    """
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        raise CheckpointError(f"{uri}: no such directory; name a checkpoint directory or a run directory")
    if filesystem.get_file_info(f"{path}/{META}").type == pafs.FileType.File:
        return uri
    scored = [(candidate, meta) for candidate, meta in find(uri) if meta.metrics]  # the latest first, and so they stay
    for candidate, meta in sorted(scored, key=lambda entry: entry[1].metrics.get("val_top1", 0.0), reverse=True):
        try:
            _read(candidate, WEIGHTS, meta)
            return candidate
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    raise CheckpointError(f"{uri}: holds no whole checkpoint; name one, or a run that has finished an epoch")
