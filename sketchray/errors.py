"""The errors that sketchray raises for bad input. Each message names what, where, the value and the remedy."""


class Error(Exception):
    """The root of sketchray's exceptions: something outside the program is wrong and the user can mend it."""


class StrokeError(Error):
    """A drawing that is not one."""


class StorageError(Error):
    """A disk or an object store that is full, forbidden, or does not answer."""


class DataError(Error):
    """A source file or a directory of shards that cannot be used."""


class CheckpointError(Error):
    """A directory that is not a checkpoint, or one that does not fit what is asked of it."""


class RunError(Error):
    """A run that cannot start as asked (its name is in use, the cluster is too small) or that had to stop."""


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or its name if it says nothing; Ray and others add advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def named_line(error: BaseException) -> str:
    """Returns an error's name, and the first line of what it says, if it says something."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def find_error(error: BaseException) -> Error | ValueError | None:
    """Returns the `sketchray.Error` (or, failing that, the `ValueError`) inside a chain of wrapping exceptions.

    Ray wraps what a task or a worker raises: `RayTaskError.cause`, `WorkerGroupError.worker_failures`,
    `ControllerError.controller_failure`, and `__cause__` everywhere else.
    """
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    fallback: ValueError | None = None
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray makes its wrapper an instance of the class it wraps as well, with a traceback for a message.
        if isinstance(current, Error) and getattr(current, "cause", None) is None:
            return current
        if type(current) is ValueError and fallback is None:
            fallback = current
        queue += [getattr(current, "cause", None), getattr(current, "controller_failure", None)]
        queue += list(getattr(current, "worker_failures", {}).values())
        queue += [current.__cause__, current.__context__]
    return fallback
