"""Where the files of each class are."""

import pytest

from sketchray.errors import DataError
from sketchray.fetch import bucket


def test_the_bucket_has_a_file_for_each_class_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    names = bucket.class_names()
    assert len(set(names)) == 345
    base = "https://storage.googleapis.com/quickdraw_dataset"
    assert bucket.urls("simplified", ["The Eiffel Tower"]) == [f"{base}/full/simplified/The%20Eiffel%20Tower.ndjson"]
    assert bucket.urls("raw", ["dog", "cat"]) == [f"{base}/full/raw/dog.ndjson", f"{base}/full/raw/cat.ndjson"]
    assert bucket.urls("binary", ["cat"]) == [f"{base}/full/binary/cat.bin"]
    assert len(bucket.urls("npz")) == 345
    monkeypatch.setenv("SKETCHRAY_BUCKET", "http://127.0.0.1:1/mirror/")
    assert bucket.urls("npz", ["cat"], base_url=bucket.base_url()) == ["http://127.0.0.1:1/mirror/sketchrnn/cat.npz"]


def test_the_builder_takes_its_files_from_the_same_bucket() -> None:
    from sketchray.sketch_rnn.sketch_rnn_dataset_builder import CLASSES, SketchRnnConfig

    config = SketchRnnConfig(name="all")
    assert [config.file_url(name) for name in CLASSES] == bucket.urls("npz")


def test_a_class_that_is_none_is_named_with_what_is_close() -> None:
    with pytest.raises(DataError, match=r"class 'eifel tower': .*; did you mean .*'The Eiffel Tower'"):
        bucket.urls("raw", ["cat", "eifel tower"])
    with pytest.raises(DataError, match=r"class 'xyzzy': Quick, Draw! has none of this name; see"):
        bucket.urls("raw", ["xyzzy"])
