"""What a name of a sweep's space may be: some choices, or a range of numbers; and how users spell them."""

import json
import random
from dataclasses import dataclass
from typing import Any

from sketchray.errors import Error
from sketchray.storage import read_file


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, whole ones if both are; `log` spreads them over the powers of ten."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Dimension = Range | tuple[Any, ...]


def read_space(uri: str) -> dict[str, Any]:
    """Returns what a JSON file says of the space.

    Raises:
        Error: it is not there, or no JSON object.
    """
    try:
        content = json.loads(read_file(uri))
    except OSError as error:
        raise Error(f"--space {uri}: cannot be read ({error}); name a JSON file") from error
    except ValueError as error:
        raise Error(f"--space {uri}: not JSON ({error}); mend the file") from error
    if not isinstance(content, dict):
        raise Error(f'--space {uri}: expected an object such as {{"model.cell": ["lstm"]}}; mend the file')
    return content


def to_dimension(name: str, value: Any) -> Dimension:
    """Returns a dimension as a file spells it: a list of choices, a range, or one value."""
    if not isinstance(value, dict | list):
        return (value,)
    if isinstance(value, list) and value and all(isinstance(choice, str | int | float) for choice in value):
        return tuple(value)
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise ValueError(f'{name}: expected a list of choices or {{"low": …, "high": …, "log": false}}, got {value}')
    low, high = value["low"], value["high"]
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low > high:
        raise ValueError(f"{name}: low and high must be numbers, the lower one first, got {low} and {high}")
    if value.get("log") and low <= 0:
        raise ValueError(f"{name}: a logarithmic range must begin above 0, got {low}")
    return Range(low, high, bool(value.get("log", False)))


def parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def values(dimension: Dimension) -> list[Any]:
    """Returns the values of a dimension, the smallest model first; of a range of fractions its ends."""
    if isinstance(dimension, Range):
        return (
            list(range(int(dimension.low), int(dimension.high) + 1))
            if dimension.whole
            else [dimension.low, dimension.high]
        )
    return sorted(dimension, key=size)


def size(value: Any) -> float:
    return value.count("+") if isinstance(value, str) else float(value)


def draw_value(dimension: Dimension, source: random.Random) -> Any:
    if not isinstance(dimension, Range):
        return source.choice(dimension)
    if dimension.whole:
        return source.randint(int(dimension.low), int(dimension.high))
    low, high = dimension.low, dimension.high
    return float(low * (high / low) ** source.random()) if dimension.log else source.uniform(low, high)


def contains(dimension: Dimension, value: Any) -> bool:
    return dimension.low <= value <= dimension.high if isinstance(dimension, Range) else value in dimension
