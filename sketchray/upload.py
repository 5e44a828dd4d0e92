"""What `ray job submit --working-dir .` would send, told before it is sent: `python -m sketchray.upload`.

Ray uploads up to 512 MB without a question, and every worker unpacks its own copy: a data set that lies in the
directory then costs minutes at each job. The rules are Ray's own (`.rayignore`, `.gitignore`).
"""

import logging
import os
import sys
import tempfile
import zipfile
from pathlib import Path

from sketchray.errors import Error

LIMIT_BYTES = 1_000_000


def pack(folder: Path) -> tuple[int, dict[str, int]]:
    """Returns the bytes that would be sent, and the compressed bytes of each file."""
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    quiet = logging.getLogger("sketchray.upload")  # Ray tells of each ignore file
    quiet.setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "package.zip"
        create_package(
            str(folder),
            package,
            include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
            excludes=ray_constants.get_runtime_env_default_excludes(),
            logger=quiet,
        )
        with zipfile.ZipFile(package) as archive:
            files = {entry.filename: entry.compress_size for entry in archive.infolist() if not entry.is_dir()}
        return package.stat().st_size, files


def check_upload(folder: Path, limit_bytes: int = LIMIT_BYTES) -> str:
    """Returns a line that tells the size of an upload.

    Raises:
        Error: it is larger than the limit, or there is nothing to send.
    """
    if not folder.is_dir():
        raise Error(f"{folder}: no such directory; name the one that `--working-dir` gets")
    size, files = pack(folder)
    if size > limit_bytes:
        name = max(files, key=lambda name: files[name])
        raise Error(
            f"{folder}: {size / 1e6:.2f} MB in {len(files)} files would be sent, at most {limit_bytes / 1e6:g} MB; the "
            f"largest is {name} ({files[name] / 1e6:.2f} MB): name it in .rayignore, or keep it elsewhere"
        )
    return f"{folder}: {size / 1e6:.2f} MB in {len(files)} files would be sent, of at most {limit_bytes / 1e6:g} MB"


def main() -> None:
    """Prints the line, or the error with exit status 1."""
    if len(sys.argv) > 2:
        print("usage: python -m sketchray.upload [DIRECTORY]", file=sys.stderr)
        sys.exit(2)
    try:
        print(check_upload(Path(sys.argv[1] if len(sys.argv) == 2 else ".")))
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
