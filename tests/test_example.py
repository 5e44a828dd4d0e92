"""`tf.train.Example`: against a writer by hand, and protobuf itself."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfrecord_writer import A, example, field, floats, frame, integers, outcome, texts, to_ink, varint

from sketchray.formats.example import parse_example

pytestmark = pytest.mark.filterwarnings("error")  # array arithmetic on numbers that are none warns


def test_features_of_every_kind_packed_or_not() -> None:
    numbers = [0, 1, -1, 127, 128, 2**63 - 1, -(2**63), 300]
    features = parse_example(
        example(
            {
                "packed": integers(numbers),
                "unpacked": integers(numbers, packed=False),
                "floats": floats([0.5, -2]),
                "unpacked floats": floats([0.5, -2], packed=False),
                "texts": texts([b"", b"\xff\x00"]),
                "none": texts([]),
                "unset": b"",
                "no integers": integers([]),
                "mixed": field(3, field(1, varint(5)) + b"\x08" + varint(-6) + field(1, b"") + b"\x08\x07"),
                "in parts": integers([1]) + integers([2]),
                "the last kind": integers([1]) + texts([b"a"]),
                "unknown parts": field(9, b"a") + b"\x78\x05\x7d1234\x7912345678" + floats([1]),
                "": integers([9]),
            }
        )
    )
    assert features.pop("texts") == [b"", b"\xff\x00"]
    assert features.pop("none") == []
    assert features.pop("the last kind") == [b"a"]
    arrays = {name: (str(value.dtype), value.tolist()) for name, value in features.items()}  # type: ignore[union-attr]
    assert arrays == {
        "packed": ("int64", numbers),
        "unpacked": ("int64", numbers),
        "floats": ("float32", [0.5, -2]),
        "unpacked floats": ("float32", [0.5, -2]),
        "no integers": ("int64", []),
        "mixed": ("int64", [5, -6, 7]),
        "in parts": ("int64", [1, 2]),
        "unknown parts": ("float32", [1]),
        "": ("int64", [9]),
    }


def test_a_name_that_is_no_text_leaves_the_others() -> None:
    entries = [field(1, field(1, name) + field(2, integers([5]))) for name in (b"\xff", b"shape")]
    assert parse_example(field(1, b"".join(entries)))["shape"].tolist() == [5]  # type: ignore[union-attr]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.booleans())
def test_integers_of_any_size(numbers: list[int], packed: bool) -> None:
    assert np.array_equal(parse_example(example({"a": integers(numbers, packed=packed)}))["a"], numbers)


def protobuf_example() -> Any:
    """The message class, made by protobuf from TensorFlow's definition."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    kinds = {"BytesList": 12, "FloatList": 2, "Int64List": 3}
    for name, kind in kinds.items():
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=3)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(kinds, 1):
        feature.field.add(name=name.lower(), number=number, type=11, label=1, type_name=f".tf.{name}", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".tf.Feature")
    features.field.add(name="feature", number=1, type=11, label=3, type_name=".tf.Features.FeatureEntry")
    file.message_type.add(name="Example").field.add(
        name="features", number=1, type=11, label=1, type_name=".tf.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def test_what_protobuf_writes_is_read() -> None:
    message = protobuf_example()()
    message.features.feature["ink"].floatlist.value.extend(to_ink(A).ravel().tolist())
    message.features.feature["shape"].int64list.value.extend([4, 3])
    message.features.feature["class_index"].int64list.value.append(2)
    found = outcome(frame(message.SerializeToString()))
    assert found.drawings == [A]
    assert found.rows[0]["class"] == "The Eiffel Tower"


@given(st.binary(max_size=60) | st.builds(lambda a, b: example({"a": a + b}), st.binary(max_size=40), st.binary()))
def test_protobuf_refuses_what_is_refused_and_reads_what_is_read(payload: bytes) -> None:
    from google.protobuf.message import DecodeError

    message = protobuf_example()()
    try:
        ours = parse_example(payload)
    except ValueError:
        ours = None
    try:
        message.ParseFromString(payload)
    except DecodeError:
        return  # it also refuses names that are not UTF-8, and fields numbered 0, which do no harm
    if ours is None:
        # Groups, an encoding that protobuf gave up, are the one thing that only it reads.
        assert any(byte & 7 in (3, 4) for byte in payload)
        return
    for name, feature in message.features.feature.items():
        kind = feature.WhichOneof("kind")
        assert (kind is None) == (name not in ours)
        if kind is not None:
            assert np.array_equal(
                np.array(ours[name]), np.array(getattr(feature, kind).value), equal_nan=kind == "floatlist"
            )
