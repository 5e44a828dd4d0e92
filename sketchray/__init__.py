"""Train, tune and serve stroke-sequence classifiers for Quick, Draw! drawings on Ray.

`import sketchray` is light: the public names below load their module when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sketchray.checkpoint import best, load, save
    from sketchray.errors import CheckpointError, DataError, Error, RunError, StrokeError
    from sketchray.evaluation import evaluate, predict
    from sketchray.ingest import ingest
    from sketchray.model import ModelConfig, StrokeClassifier
    from sketchray.predictor import Predictor
    from sketchray.recipe import TrainConfig
    from sketchray.shards import ShardSet, open_shards
    from sketchray.training import train
    from sketchray.tuning import SweepConfig, tune

__version__ = "0.1.0"

_MODULE_OF = {
    "best": "checkpoint",
    "load": "checkpoint",
    "save": "checkpoint",
    "TrainConfig": "recipe",
    "CheckpointError": "errors",
    "DataError": "errors",
    "Error": "errors",
    "RunError": "errors",
    "StrokeError": "errors",
    "evaluate": "evaluation",
    "predict": "evaluation",
    "ingest": "ingest",
    "ModelConfig": "model",
    "StrokeClassifier": "model",
    "Predictor": "predictor",
    "ShardSet": "shards",
    "open_shards": "shards",
    "train": "training",
    "SweepConfig": "tuning",
    "tune": "tuning",
}
__all__ = [  # noqa: RUF022
    "__version__",
    "best",
    "load",
    "save",
    "TrainConfig",
    "CheckpointError",
    "DataError",
    "Error",
    "RunError",
    "StrokeError",
    "evaluate",
    "predict",
    "ingest",
    "ModelConfig",
    "StrokeClassifier",
    "Predictor",
    "ShardSet",
    "open_shards",
    "train",
    "SweepConfig",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sketchray' has no attribute {name!r}")
    return getattr(import_module(f"sketchray.{_MODULE_OF[name]}"), name)
