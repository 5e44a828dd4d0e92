"""The layers of the house: a module imports only from lower ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors"},
    {"strokes", "columns", "storage", "batch", "fetch", "page", "haproxy"},
    {"augment", "model", "doodles", "sketch_rnn", "cluster", "clipping", "charts", "upload"},
    {"recipe"},
    {"formats", "shards", "checkpoint", "engine"},
    {"parts", "census", "order", "outcomes", "exported", "owner"},
    {"feed"},
    {"sources", "card", "logbook", "runs", "mistakes"},
    {"loop", "origins", "keeper"},
    {"ingest", "predictor", "report", "worker"},
    {"training", "evaluation", "service"},
    {"tuning", "command", "demo"},
    {"jobs"},
)
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}
PACKAGES = ("fetch", "formats", "ingest", "service", "tuning")
FILES = [
    *sorted((ROOT / "sketchray").glob("*.py")),
    *sorted(path for package in PACKAGES for path in (ROOT / "sketchray" / package).glob("*.py")),
    *sorted((ROOT / "jobs").glob("*.py")),
]


def module_of(path: Path) -> str:
    """A package is one module of the house; what is inside it may import each other."""
    return path.parent.name if path.parent.name in ("jobs", *PACKAGES) else path.stem


def imported(path: Path) -> set[str]:
    """The modules of sketchray that a file imports, anywhere in it, except for type checking only."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "sketchray":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sketchray."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sketchray.")}
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if module_of(path) != "__init__"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    module = module_of(path)
    assert module in LAYER_OF, f"{path.name} has no layer; give it one"
    wrong = {other for other in imported(path) - {module} if LAYER_OF[other] >= LAYER_OF[module]}
    assert not wrong


def test_the_layers_name_no_module_that_is_gone() -> None:
    assert set(LAYER_OF) == {module_of(path) for path in FILES} - {"__init__"} | {"sketch_rnn"}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(output.split())


def test_importing_sketchray_is_light() -> None:
    assert not loaded_by("import sketchray") & {"torch", "ray", "numpy", "pyarrow", "pydantic", "optuna"}


def test_engine_feed_and_predictor_need_no_ray() -> None:
    loaded = loaded_by("import sketchray.loop, sketchray.keeper, sketchray.feed, sketchray.predictor")
    assert "torch" in loaded
    assert not loaded & {"ray", "optuna", "tyro", "matplotlib", "tensorboard", "tensorflow_datasets", "fastapi"}


def test_reading_needs_no_torch() -> None:
    # What each of many tasks imports, of ingest and of training.
    loaded = loaded_by("import sketchray.ingest, sketchray.sources, sketchray.order")
    assert "pyarrow" in loaded
    assert not loaded & {"torch", "ray", "tyro", "matplotlib", "tensorflow_datasets", "s3fs", "gcsfs"}


def test_serving_imports_no_training_code() -> None:
    code = "import sketchray.service, sys; print(' '.join(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = set(output.split())
    assert "sketchray.predictor" in loaded
    assert not loaded & {
        "sketchray.training",
        "sketchray.engine",
        "sketchray.tuning",
        "ray.data",
        "ray.train",
        "optuna",
    }


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 340} == {}
    jobs = {name: lines for name, lines in lengths.items() if name.startswith("jobs")}
    assert {name: lines for name, lines in jobs.items() if lines > 90} == {}


def test_every_public_name_loads() -> None:
    import sketchray

    for name in sketchray.__all__:
        assert getattr(sketchray, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = sketchray.nothing_like_this
