"""Google's public bucket of Quick, Draw!: where the file of each class is, in each published format."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from sketchray.errors import DataError

# Source: "The Data" and "Sketch-RNN QuickDraw Dataset" in quickdraw-dataset's README.
BUCKET = "https://storage.googleapis.com/quickdraw_dataset"

Published = Literal["simplified", "raw", "binary", "npz"]
LAYOUT: dict[Published, str] = {
    "simplified": "full/simplified/{}.ndjson",
    "raw": "full/raw/{}.ndjson",
    "binary": "full/binary/{}.bin",
    "npz": "sketchrnn/{}.npz",
}


def base_url() -> str:
    """Returns the bucket's URL, or that of the mirror which the environment variable SKETCHRAY_BUCKET names.

    A mirror has the bucket's layout: `full/simplified/cat.ndjson` below `SKETCHRAY_BUCKET=http://mirror/quickdraw`.
    """
    return os.environ.get("SKETCHRAY_BUCKET", BUCKET).rstrip("/")


def class_names() -> list[str]:
    """Returns the 345 classes, in the order of their labels."""
    # Read beside the builder, not from it: it imports TensorFlow Datasets, which takes seconds.
    return (Path(__file__).parents[1] / "sketch_rnn" / "labels.txt").read_text().splitlines()


def urls(format: Published, classes: Sequence[str] | None = None, *, base_url: str = BUCKET) -> list[str]:
    """Returns the URL of the file of each class, in the order of `classes`.

    Args:
        format: of the files.
        classes: all 345 if None.
        base_url: the bucket, or a mirror of it.

    Raises:
        DataError: Quick, Draw! has no such class.
    """
    names = class_names()
    for name in classes or ():
        if name not in names:
            close = difflib.get_close_matches(name, names)
            remedy = f"did you mean {' or '.join(map(repr, close))}?" if close else "see sketch_rnn/labels.txt"
            raise DataError(f"class {name!r}: Quick, Draw! has none of this name; {remedy}")
    chosen = names if classes is None else classes
    return [f"{base_url}/{LAYOUT[format].format(quote(name))}" for name in chosen]
