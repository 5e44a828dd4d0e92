"""Checkpoints of small models whose weights are random."""

from pathlib import Path

import torch

from sketchray.checkpoint import Meta, save
from sketchray.model import ModelConfig, StrokeClassifier

CLASSES = ["arrow", "bee", "cat", "dog", "eye", "fish"]
SMALL = ModelConfig(
    max_points=30, conv_channels=(6,), conv_kernels=(3,), conv_strides=(2,), rnn_layers=1, rnn_size=4, conv_norm="batch"
)
CONV = ModelConfig(features="deltas", conv_channels=(6,), conv_kernels=(5,), conv_strides=(1,), rnn_layers=0)


def write(directory: Path, model: ModelConfig = CONV, *, top1: float = 0.5, seed: int = 0, poison: bool = False) -> str:
    """Writes a checkpoint of an untrained model, and returns its path."""
    directory.mkdir(parents=True)
    torch.manual_seed(seed)
    classifier = StrokeClassifier(model, len(CLASSES))
    if poison:
        torch.nn.init.constant_(classifier.head.bias, torch.nan)
    meta = Meta(
        model=model,
        config={},
        classes=CLASSES,
        epoch=1,
        step=1,
        metrics={"val_top1": top1},
        data={},
        licence="none",
        versions={},
    )
    save(directory, classifier.state_dict(), meta)
    return str(directory)
