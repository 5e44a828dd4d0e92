"""Shards: the Arrow schema, the manifest that makes a directory of them whole, and reading rows. No Ray.

A data directory holds `shard-00000-of-00004.parquet`, ... and `manifest.json`, written last: a directory without it is
incomplete and is refused. Each shard holds drawings of all classes in hash order, its train rows first, then valid,
then test; a row group never spans two splits, so a split is read without touching the others.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from sketchray.columns import POINTS
from sketchray.errors import DataError
from sketchray.storage import child, open_filesystem, patiently

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SPLITS = ("train", "valid", "test")
CONCURRENT_READS = 16  # of row groups: an object store answers each after tens of milliseconds
ROW_GROUP = 1024  # drawings, about 270 KB: small enough that reading a slice wastes little


class RowGroup(BaseModel):
    """One row group of a shard: a run of drawings of one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str
    index: int
    split: str
    rows: int


class File(BaseModel):
    """Size and SHA-256 of a shard, by which a copy is known to be whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What `manifest.json` holds: everything about a data set but the drawings.

    Attributes:
        classes: names; a class's index is the `label` of its drawings.
        splits: drawings in each split.
        class_counts: drawings of each class, over all splits.
        duplicates: equal drawings of one class that were dropped.
        quarantined: records that were no drawings; `quarantine.ndjson` names each.
        files: the shards, by name.
        row_groups: in shard order.
        provenance: source, format, seed, licence, and whether the drawings are synthetic.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    classes: list[str]
    splits: dict[str, int]
    class_counts: dict[str, int]
    duplicates: int
    quarantined: int
    files: dict[str, File]
    row_groups: list[RowGroup]
    provenance: dict[str, str | int | bool]


def make_schema(classes: Sequence[str], provenance: dict[str, str | int | bool]) -> pa.Schema:
    """Returns the schema of a shard; its metadata names the classes, the format version and the provenance."""
    fields = [
        pa.field("points", POINTS, nullable=False),
        pa.field("label", pa.int16(), nullable=False),
        pa.field("key_id", pa.uint64()),
        pa.field("recognized", pa.bool_()),
        pa.field("split", pa.string(), nullable=False),
    ]
    content = {"format_version": FORMAT_VERSION, "classes": list(classes), "provenance": provenance}
    return pa.schema(fields, metadata={"sketchray": json.dumps(content, sort_keys=True)})


class ShardSet:
    """An ingested data set, opened. It can be sent to other processes; they open the files anew.

    Raises:
        DataError: the directory is missing, incomplete, damaged, or of another format version.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        filesystem, path = open_filesystem(uri)
        if filesystem.get_file_info(path).type != pafs.FileType.Directory:
            raise DataError(f"{uri}: no such directory; make it with jobs/ingest.py --out {uri}")
        try:
            with filesystem.open_input_file(f"{path}/{MANIFEST}") as file:
                content = json.loads(file.read())
        except FileNotFoundError as error:
            raise DataError(
                f"{uri}: no {MANIFEST}, so this is not a complete data set; make one with jobs/ingest.py"
            ) from error
        except ValueError as error:
            raise DataError(f"{uri}/{MANIFEST}: not valid JSON ({error}); ingest again") from error
        found = content.get("format_version") if isinstance(content, dict) else None
        if found != FORMAT_VERSION:
            raise DataError(
                f"{uri}/{MANIFEST}: data format version {found!r}, this sketchray reads {FORMAT_VERSION}; ingest again"
            )
        try:
            self.manifest = Manifest.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{uri}/{MANIFEST}: {where}: {first['msg']}; ingest again") from error
        sizes = {info.base_name: info.size for info in filesystem.get_file_info(pafs.FileSelector(path))}
        for name, file in self.manifest.files.items():
            if sizes.get(name) != file.num_bytes:
                found = f"has {sizes[name]:,} bytes instead of {file.num_bytes:,}" if name in sizes else "is missing"
                raise DataError(f"{uri}/{name}: {found}; copy the data set again, or ingest again")

    def verify(self) -> None:
        """Reads every shard and compares it with its checksum.

        Raises:
            DataError: a shard is damaged.
        """
        filesystem, path = open_filesystem(self.uri)
        for name, file in self.manifest.files.items():
            with filesystem.open_input_stream(f"{path}/{name}") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != file.sha256:
                raise DataError(f"{self.uri}/{name}: damaged, its checksum is wrong; copy it again, or ingest again")

    @property
    def classes(self) -> list[str]:
        """Class names, in label order."""
        return self.manifest.classes

    def rows(self, split: str) -> "Rows":
        """Returns the rows of a split, or of everything for `all`, in shard order."""
        if split not in (*SPLITS, "all"):
            raise DataError(f"{self.uri}: no split {split!r}; choose one of train, valid, test, all")
        groups = [group for group in self.manifest.row_groups if split in (group.split, "all")]
        return Rows(self.uri, groups)


def open_shards(uri: str) -> ShardSet:
    """Returns the data set in a directory that `ingest` wrote: a path, or a URI of pyarrow's file systems."""
    return ShardSet(uri)


@dataclass(frozen=True)
class Rows:
    """A sequence of drawings, given by row groups, of which any slice can be read."""

    uri: str
    groups: Sequence[RowGroup]

    @cached_property
    def ends(self) -> list[int]:
        """The row past the last one of each group."""
        ends: list[int] = np.cumsum([group.rows for group in self.groups], dtype=np.int64).tolist()
        return ends

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def permuted(self, order: Sequence[int]) -> "Rows":
        """Returns the same drawings with the row groups in another order."""
        return Rows(self.uri, [self.groups[index] for index in order])

    def read(self, start: int, stop: int, columns: Sequence[str] = ("points", "label")) -> pa.Table:
        """Returns rows `start..stop` as an Arrow table.

        Raises:
            DataError: a shard is missing or damaged.
            StorageError: it cannot be reached, or must not be read.
        """
        first, last = bisect_right(self.ends, start), bisect_right(self.ends, stop - 1)
        numbers = range(first, last + 1 if stop > start else first)
        if not numbers:
            raise DataError(f"{self.uri}: rows {start}..{stop} of {len(self)} asked for; there are none")
        filesystem, path = patiently(lambda: open_filesystem(self.uri), self.uri, "cannot be read", "try again")

        def load(group: RowGroup) -> pa.Table:
            with pq.ParquetFile(f"{path}/{group.shard}", filesystem=filesystem, pre_buffer=True) as file:
                return file.read_row_group(group.index, columns=list(columns), use_threads=False)

        def read_group(number: int) -> pa.Table:
            group = self.groups[number]
            begin = self.ends[number] - group.rows
            uri = child(self.uri, group.shard)
            try:
                table = patiently(lambda: load(group), uri, "cannot be read", "try again")
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{uri}: {error}; the data set is damaged, ingest again") from error
            return table.slice(max(start - begin, 0), min(stop, self.ends[number]) - max(start, begin))

        with ThreadPoolExecutor(min(len(numbers), CONCURRENT_READS)) as pool:
            return pa.concat_tables(pool.map(read_group, numbers))
