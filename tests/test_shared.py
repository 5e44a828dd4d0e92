"""What nodes share, asked before a job runs; tests/cluster asks nodes with disks of their own."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import ray

from sketchray import cluster as module
from sketchray.cluster import Question, ask_nodes, check_shared, look
from sketchray.errors import RunError

Wrong = tuple[str, str, str] | None


@pytest.fixture
def second(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Question], Wrong]], None]:
    """Adds a node `h2` that answers as the test says."""

    def add(answer: Callable[[Question], Wrong]) -> None:
        def ask(nodes: Mapping[str, str], question: Question) -> dict[str, Wrong]:
            return {name: answer(question) for name in nodes.values()}

        monkeypatch.setattr(module, "other_nodes", lambda: {"id": "h2 (10.0.0.2)"})
        monkeypatch.setattr(module, "ask_nodes", ask)

    return add


def elsewhere(question: Question, moved: Path) -> Wrong:
    """Answers as a node does that has no `moved`."""
    away = moved.with_name("away")
    moved.rename(away)
    try:
        return question.answer()
    finally:
        away.rename(moved)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.mark.usefixtures("cluster")
def test_on_a_single_node_nothing_is_asked_and_nothing_written(tmp_path: Path) -> None:
    check_shared({"--data": ["/nowhere"]}, {"--storage-path": str(tmp_path / "runs")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("cluster")
def test_a_node_answers_by_a_task(data: Path) -> None:
    own = ray.get_runtime_context().get_node_id()
    question = Question((("--data", str(data), look(str(data))),), ())
    assert ask_nodes({own: "h1"}, question) == {"h1": None}
    (data / "shard.parquet").write_text("another")
    assert ask_nodes({own: "h1"}, question) == {"h1": ("--data", str(data), "has another one, or none")}


def test_what_is_shared_passes_and_only_the_directory_stays(
    second: Callable[[Callable[[Question], Wrong]], None], data: Path, tmp_path: Path
) -> None:
    second(Question.answer)
    storage = tmp_path / "a" / "runs"
    check_shared({"--data": [str(data)], "--teachers": []}, {"--storage-path": str(storage)})
    assert list(storage.iterdir()) == []


def test_data_that_a_node_lacks_is_refused(
    second: Callable[[Callable[[Question], Wrong]], None], data: Path, tmp_path: Path
) -> None:
    second(lambda question: elsewhere(question, data))
    with pytest.raises(RunError) as refused:
        check_shared({"--data": [str(data)]}, {"--storage-path": str(tmp_path / "runs")})
    assert str(refused.value) == (
        f"--data {data}: node h2 (10.0.0.2) has another one, or none; name a directory that every node mounts at this "
        "path, or a bucket (s3://, gs://)"
    )
    assert list(tmp_path.iterdir()) == [data]


def test_a_storage_path_of_one_node_is_refused_and_nothing_is_left(
    second: Callable[[Callable[[Question], Wrong]], None], data: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "a" / "runs"
    second(lambda question: elsewhere(question, tmp_path / "a"))
    with pytest.raises(RunError, match=rf"--storage-path {storage}: node h2 \(10.0.0.2\) does not see what is written"):
        check_shared({"--data": [str(data)]}, {"--storage-path": str(storage)})
    assert list(tmp_path.iterdir()) == [data]

    storage.mkdir(parents=True)
    (storage / "other").mkdir()
    with pytest.raises(RunError, match="does not see"):
        check_shared({}, {"--storage-path": str(storage)})
    assert list(storage.iterdir()) == [storage / "other"]  # another run's


def test_a_storage_path_that_a_node_cannot_write_to_is_refused(
    second: Callable[[Callable[[Question], Wrong]], None], tmp_path: Path
) -> None:
    def read_only(question: Question) -> Wrong:
        (flag, uri, name), *_ = question.written
        long = name + "x" * (255 - len(name))  # the name of a node's own file is then too long
        (Path(uri) / name).rename(Path(uri) / long)
        try:
            return Question((), ((flag, uri, long),)).answer()
        finally:
            (Path(uri) / long).rename(Path(uri) / name)

    second(read_only)
    with pytest.raises(RunError, match=r"node h2 \(10.0.0.2\) cannot write there \("):
        check_shared({}, {"--storage-path": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_the_job_itself_cannot_write_is_refused(
    second: Callable[[Callable[[Question], Wrong]], None], tmp_path: Path
) -> None:
    second(Question.answer)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--out .*file/out: cannot write there .*; choose another place"):
        check_shared({}, {"--out": str(tmp_path / "file" / "out")})


def test_a_look_tells_missing_from_present_and_does_not_mind_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("four")
    seen = [look(str(tmp_path / "file")), look(str(tmp_path / "none")), look(str(tmp_path)), look("nothing://x")]
    assert seen[0] == "File 4" or "4" in seen[0]
    assert len(set(seen)) == 4
    assert seen[3].startswith("cannot read it (nothing://x: not a URI")
