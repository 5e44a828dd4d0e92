"""Finding our own error inside the exceptions that wrap it."""

import pytest
import ray
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from sketchray.errors import DataError, Error, RunError, find_error


def chained(inner: Exception) -> Exception:
    outer = KeyError("outer")
    outer.__cause__ = inner
    return outer


def test_our_error_is_found_wherever_it_is_wrapped() -> None:
    ours = DataError("x: broken; mend it")
    for outer in (
        ours,
        chained(chained(ours)),
        WorkerGroupError("all failed", {0: OSError("other"), 1: ours}),
        ControllerError(chained(ours)),
    ):
        assert find_error(outer) is ours


def test_a_bare_value_error_is_the_next_best() -> None:
    assert str(find_error(chained(ValueError("lr=-1")))) == "lr=-1"
    both = chained(ValueError("lr=-1"))
    both.__context__ = RunError("stopped")
    assert isinstance(find_error(both), RunError)
    assert find_error(OSError("disk")) is None


@pytest.mark.usefixtures("cluster")
def test_what_a_ray_task_raised_comes_without_its_traceback() -> None:
    @ray.remote
    def fail() -> None:
        raise DataError("file:3: not JSON; mend the line")

    with pytest.raises(Error) as caught:
        ray.get(fail.remote())
    assert str(find_error(caught.value)) == "file:3: not JSON; mend the line"
