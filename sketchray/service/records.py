"""Bodies: a record in, guesses or a fault with its place out."""

import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import chain, islice
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import to_json

from sketchray.errors import StrokeError
from sketchray.predictor import Guess, Predictor
from sketchray.service.settings import Settings
from sketchray.strokes import BOX, Int16Array, deltas, from_record

LINES_AT_A_TIME = 256  # of a batch, given to the model together
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
STEP = np.zeros(256, np.int32)  # what a byte does to the depth
STEP[list(b"[{")], STEP[list(b"]}")] = 1, -1

# The first fault ends the search: a body of nothing but faults would else be answered by a list of all of them.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Axis = Annotated[list[Number], FailFast()]
Stroke = Annotated[list[Axis], FailFast()]


class Record(BaseModel):
    """A Quick, Draw! record, simplified or raw; fields that are not named here are ignored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"drawing": [[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]]], "top_k": 3}]}
    )

    drawing: Annotated[list[Stroke], FailFast()] = Field(
        description="Strokes [[x...], [y...]] in pixels; raw ones add times."
    )
    top_k: int = Field(
        5, ge=1, strict=True, description="How many guesses to return; never more than there are classes."
    )


class Prediction(BaseModel):
    """A guess: a class name and its probability."""

    label: str = Field(examples=["square"])
    probability: float = Field(examples=[0.97])


class Predictions(BaseModel):
    """The likeliest classes, best first."""

    predictions: list[Prediction]


class ModelInfo(BaseModel):
    """What is being served."""

    version: str = Field(description="Changes with the weights; the header X-Model-Version of each answer has it.")
    classes: list[str]
    metrics: dict[str, float]
    data: dict[str, Any]
    licence: str
    limits: dict[str, int | float]


class Health(BaseModel):
    """That a replica answers."""

    status: str = Field(examples=["ok"])


class Refusal(BaseModel):
    """Why a request was not answered, and what to do."""

    detail: str


class Fault(BaseModel):
    """What is wrong at a place of the body."""

    loc: list[str | int] = Field(examples=[["body", "drawing", 0]])
    msg: str
    type: str


class Faults(BaseModel):
    """What is wrong with a body."""

    detail: list[Fault]


class RecordError(Exception):
    """A record that cannot be answered.

    Attributes:
        loc: where in the body; empty if the whole of it is meant.
        type: a word for programs.
    """

    def __init__(self, loc: tuple[str | int, ...], message: str, type: str) -> None:
        super().__init__(message)
        self.loc, self.type = loc, type


class Query(NamedTuple):
    """A drawing, and how many guesses are wanted."""

    points: Int16Array
    top_k: int


def parse(body: bytes, settings: Settings) -> Record:
    """Returns the record of a body.

    Raises:
        RecordError: it is no record, or over a limit.
    """
    # The count of brackets bounds the depth; most records are settled by it.
    if body.count(b"[") + body.count(b"{") > settings.max_nesting and depth(body) > settings.max_nesting:
        raise RecordError((), f"more than {settings.max_nesting} lists inside each other", "too_deep")
    try:
        record = Record.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise RecordError(fault["loc"], fault["msg"], fault["type"]) from None
    if record.top_k > settings.max_top_k:
        raise RecordError(("top_k",), f"top_k: at most {settings.max_top_k} are given", "top_k")
    strokes = len(record.drawing)
    if strokes > settings.max_strokes:
        message = f"drawing: {strokes:,} strokes, at most {settings.max_strokes:,} are accepted"
        raise RecordError(("drawing",), message, "stroke_error")
    return record


def depth(body: bytes) -> int:
    """Returns how many lists and objects are inside each other; what looks like one in a string is none."""
    steps = STEP[np.frombuffer(STRING.sub(b"", body), np.uint8)]
    return int(np.cumsum(steps).max(initial=0))


def to_query(record: Record, settings: Settings) -> Query:
    """Returns a record as what the model takes.

    Raises:
        RecordError: the drawing is none, or over a limit.
    """
    points = _published(record.drawing)
    if points is not None and len(points) <= settings.max_points:
        return Query(points, record.top_k)
    try:
        return Query(from_record(record.drawing, max_points=settings.max_points), record.top_k)
    except StrokeError as error:
        raise RecordError(("drawing",), str(error), "stroke_error") from None


def _published(drawing: list[list[list[float]]]) -> Int16Array | None:
    """Returns the points of a drawing in the published form, in a third of `from_record`'s time; None for others."""
    if not drawing or any(len(stroke) != 2 or not 0 < len(stroke[0]) == len(stroke[1]) for stroke in drawing):
        return None
    axes = [[*chain.from_iterable(stroke[axis] for stroke in drawing)] for axis in (0, 1)]
    positions = np.array(axes)
    if positions.min() < 0 or positions.max() > BOX or (positions != np.rint(positions)).any():
        return None
    ends = np.cumsum([len(stroke[0]) for stroke in drawing])
    x, y = positions.astype(np.int64)
    return deltas(x, y, ends, ends[-1:])


def num_points(record: Record) -> int:
    """Returns how many points a record says it has."""
    return sum(len(stroke[0]) for stroke in record.drawing if stroke)


def predict(predictor: Predictor, queries: list[Query]) -> list[list[Guess]]:
    """Returns the guesses about some drawings, as many as each wants."""
    most = max(query.top_k for query in queries)
    found = predictor.predict([query.points for query in queries], most)
    return [guesses[: query.top_k] for guesses, query in zip(found, queries, strict=True)]


def to_body(guesses: Iterable[Guess]) -> dict[str, Any]:
    """Returns guesses as a `Predictions`."""
    return {"predictions": [{"label": label, "probability": probability} for label, probability in guesses]}


def lines_of(body: bytes) -> Iterator[list[tuple[int, bytes]]]:
    """Yields the lines of a batch that are not blank with their numbers, from 1, some at a time."""
    numbered = ((number, line) for number, line in enumerate(BytesIO(body), 1) if not line.isspace())
    while part := list(islice(numbered, LINES_AT_A_TIME)):
        yield part


def answer_lines(predictor: Predictor, lines: list[tuple[int, bytes]], settings: Settings) -> tuple[bytes, list[Guess]]:
    """Returns the answers to some lines of a batch, one line each, in order; and the first guesses."""
    answers: list[dict[str, Any]] = []
    good: list[tuple[int, Query]] = []
    for place, (number, line) in enumerate(lines):
        answers.append({})
        try:
            if len(line.rstrip(b"\r\n")) > settings.max_body_bytes:
                raise RecordError((), f"the line is over {settings.max_body_bytes:,} bytes", "too_large")
            good.append((place, to_query(parse(line, settings), settings)))
        except RecordError as fault:
            # A StrokeError names its place itself.
            where = "" if fault.type in {"stroke_error", "top_k"} else ".".join(map(str, fault.loc))
            answers[place] = {"error": f"{where}: {fault}" if where else str(fault), "line": number}
    firsts = []
    if good:
        for (place, _), guesses in zip(good, predict(predictor, [query for _, query in good]), strict=True):
            answers[place] = to_body(guesses)
            firsts.append(guesses[0])
    return b"".join(to_json(answer) + b"\n" for answer in answers), firsts
