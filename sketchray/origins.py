"""What a run starts and learns from besides drawings: weights to begin with, and teachers.

Source of the latter: Hinton et al. 2015, "Distilling the knowledge in a neural network".
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from sketchray import checkpoint as checkpoints
from sketchray.errors import CheckpointError
from sketchray.model import StrokeClassifier
from sketchray.recipe import TrainConfig
from sketchray.runs import first_difference
from sketchray.storage import absolute

logger = logging.getLogger(__name__)


def initial_weights(uri: str, config: TrainConfig, classes: Sequence[str]) -> dict[str, Tensor]:
    """Returns weights to start from, of a checkpoint or a run's best; other classes get a new head.

    The head's rows of classes that both have, by name, are kept; the others are as `config.seed` makes them.

    Raises:
        CheckpointError: there is no such checkpoint, or its architecture is another.
    """
    uri = checkpoints.best(absolute(uri))
    model, meta = checkpoints.load(uri)
    differing = first_difference(meta.model.model_dump(), config.model.model_dump())
    if differing:
        where, theirs, ours = differing
        raise CheckpointError(
            f"--from-checkpoint {uri}: its model has {where}={theirs}, not {ours}; leave --model.{where} out"
        )
    weights = model.state_dict()
    if meta.classes == list(classes):
        return weights
    torch.manual_seed(config.seed)
    fresh = StrokeClassifier(config.model, len(classes)).state_dict()
    index = {name: label for label, name in enumerate(meta.classes)}
    shared = [label for label, name in enumerate(classes) if name in index]
    for name in ("head.weight", "head.bias"):
        fresh[name][shared] = weights[name][[index[classes[label]] for label in shared]]
        weights[name] = fresh[name]
    logger.info("starting from %s: %d of %d classes are new to it", uri, len(classes) - len(shared), len(classes))
    return weights


def load_teachers(uris: Sequence[str], classes: Sequence[str]) -> list[StrokeClassifier]:
    """Returns the models that a run learns from.

    Raises:
        CheckpointError: there is no such checkpoint, or its classes are others.
    """
    teachers = []
    for uri in uris:
        model, meta = checkpoints.load(uri)
        if meta.classes != list(classes):
            others = sorted({*meta.classes} ^ {*classes})
            what = f"{others[0]!r} is not a class of both" if others else "the same in another order"
            raise CheckpointError(
                f"--teachers {uri}: its {len(meta.classes)} classes are not the {len(classes)} of the data ({what}); "
                "name checkpoints of runs on the same data"
            )
        teachers.append(model)
    return teachers
