"""The demo's drawing of a drawing, and its ports."""

import socket

import numpy as np
import pytest

from sketchray import demo
from sketchray.demo import dots, free_port
from sketchray.strokes import from_record


def test_a_line_from_corner_to_corner_touches_both() -> None:
    lines = dots(from_record([[[0, 255], [0, 255]]])).splitlines()
    assert len(lines) == 10
    assert lines[0][0] != "\u2800"
    assert len(lines[-1]) == 24
    assert {0x2800 <= ord(character) <= 0x28FF for line in lines for character in line} == {True}


def test_a_single_dot_is_drawn() -> None:
    assert dots(np.array([[0, 0, 0], [0, 0, 1]], np.int16)).strip("\n") == "\u2801"


def test_a_free_port_is_free_and_below_what_kernels_give_out(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    assert 20_000 <= port < 30_000
    other = port - 1 if port > 20_000 else port + 1
    monkeypatch.setattr(demo.SystemRandom, "sample", lambda *_: [port, other])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        assert free_port() == other
