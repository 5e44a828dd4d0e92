"""What every job does around its one call: parse flags, log to stderr, print one JSON line, put errors in one line.

Exit status: 0; 1 for an error in what the job was given or met; 2 for usage.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from pydantic import ValidationError

from sketchray.cluster import quiet_ray
from sketchray.errors import Error, find_error, first_line, named_line
from sketchray.storage import absolute

if TYPE_CHECKING:
    from sketchray.recipe import TrainConfig

A = TypeVar("A")


def run(
    arguments_type: type[A],
    call: Callable[[A], Mapping[str, Any]],
    defaults: Callable[[Sequence[str]], Mapping[str, Any]] = lambda _: {},
) -> None:
    """Parses the flags, calls, and prints the result as one JSON line, the last on stdout. Exits on an error.

    Args:
        arguments_type: the flags, a dataclass; one of them is `debug`, which shows tracebacks and Ray's own log.
        call: does the job's work.
        defaults: of flags that depend on other flags, from a first look at the arguments.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    debug = "--debug" in sys.argv
    if not debug:
        quiet_ray("CRITICAL")  # what is raised is shown below, in one line
    try:
        result = call(_parse(arguments_type, defaults(sys.argv[1:])))
    except KeyboardInterrupt:
        _stop_ray()
        sys.exit(130)
    except Exception as error:
        _stop_ray()
        if debug:
            raise
        known = error if isinstance(error, ValidationError) else find_error(error)
        if known is not None:
            print(f"error: {describe(known)}", file=sys.stderr)
        else:
            print(f"error: {named_line(error)} (--debug shows where)", file=sys.stderr)
        sys.exit(1)
    _stop_ray()  # so that no log line of a worker comes after the result
    print(json.dumps(result), flush=True)


def _parse(arguments_type: type[A], defaults: Mapping[str, Any]) -> A:
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(arguments_type)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    options = (tyro.conf.FlagCreatePairsOff,)
    try:
        return tyro.cli(arguments_type, default=arguments_type(**{**required, **defaults}), config=options)
    except ValidationError as error:  # tyro reports those of nested configs only
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(2)


def _stop_ray() -> None:
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def describe(error: Exception) -> str:
    """Returns one line for an error; of a pydantic one, the place, the message and the value."""
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        return f"{where}: {fault['msg']}, got {fault['input']!r}" if where else str(fault["msg"])
    return first_line(error)


def config_defaults(arguments: Sequence[str]) -> "dict[str, TrainConfig]":
    """Returns what the flags of a training job start from: the preset, then `--config`; or the run that is resumed.

    With `--from-checkpoint` the architecture is that of the checkpoint.

    Raises:
        Error: the file is not a configuration, or there is no such checkpoint.
    """
    from sketchray.checkpoint import best, read_meta
    from sketchray.recipe import RECIPES, TrainConfig  # heavy: jobs that train nothing do not pay for it
    from sketchray.runs import stored_config

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--preset", "--config", "--storage-path", "--name", "--from-checkpoint"):
        parser.add_argument(flag)
    parser.add_argument("--resume", action="store_true")
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return {"train": RECIPES["base"]}  # the full parser says what is wrong
    if known.resume and known.storage_path and known.name:
        stored = stored_config(known.storage_path, known.name)
        if stored is not None:
            return {"train": stored}
    config = RECIPES.get(known.preset or "base", RECIPES["base"])
    if known.from_checkpoint is not None:
        meta = read_meta(best(absolute(known.from_checkpoint)))
        config = config.model_copy(update={"model": meta.model})
    if known.config is None:
        return {"train": config}
    path = Path(known.config)
    try:
        given = json.loads(path.read_text())
        merged = config.model_dump()
        for name, value in given.items():
            merged[name] = {**merged[name], **value} if isinstance(merged.get(name), dict) else value
        return {"train": TrainConfig.model_validate(merged)}
    except OSError as error:
        raise Error(f"--config {path}: {error.strerror}; name a JSON file") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise Error(f"--config {path}: {describe(error)}; mend the file") from error


def _parse_workers(words: list[str]) -> int | tuple[int, int]:
    parts = words[0].split(":")
    if len(parts) > 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"expected a number or MIN:MAX, got {words[0]!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


NumWorkers = Annotated[
    int | tuple[int, int],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|MIN:MAX",
        instance_from_str=_parse_workers,
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [str(value) if isinstance(value, int) else f"{value[0]}:{value[1]}"],
    ),
]
