"""Two objectives: accuracy, and the drawings a second that an architecture serves.

A trial belongs to the front if no other is better in one and at least as good in the other. How fast an architecture is
does not depend on its weights, so the driver measures it before the trial trains: all on one machine, with one thread.
"""

import statistics
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from sketchray.batch import pad
from sketchray.exported import ExportedModel, to_onnx
from sketchray.feed import batches
from sketchray.loop import METRIC
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.order import EVAL_ROWS, EvalFeed
from sketchray.recipe import TrainConfig
from sketchray.runs import make_meta
from sketchray.shards import ShardSet
from sketchray.tuning.search import EpochASHA

BATCH, BATCHES, ROUNDS = 32, 4, 3  # drawings together, as a busy service has them; how many of these, how often


class Speedometer:
    """Measures the drawings that an architecture classifies in a second of one CPU, by ONNX Runtime, as the service.

    Args:
        shards: has the drawings, of the valid split: short ones together, and long ones, as the service pads them.
    """

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        window = list(islice(batches(EvalFeed(shards.rows("valid"), BATCH)), EVAL_ROWS // BATCH))  # shortest first
        self.batches = window[:: max(1, len(window) // BATCHES)]
        self.known: dict[ModelConfig, float] = {}

    def __call__(self, config: TrainConfig) -> float:
        """Returns drawings/s of the architecture of a configuration."""
        if config.model not in self.known:
            self.known[config.model] = self._measure(config)
        return self.known[config.model]

    def _measure(self, config: TrainConfig) -> float:
        model = StrokeClassifier(config.model, len(self.shards.classes)).eval()
        content, _ = to_onnx("a proposal", model, make_meta(config, self.shards, step=0, epoch=0, history=()))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # ONNX Runtime takes as many
        exported = ExportedModel(content)
        torch.set_num_threads(threads)
        inputs = [pad(batch.values, batch.offsets, config.model.max_points) for batch in self.batches]
        drawings = sum(len(lengths) for _, lengths in inputs)
        taken = []
        for _ in range(1 + ROUNDS):
            began = time.thread_time()
            for points, lengths in inputs:
                exported(points, lengths)
            taken.append(time.thread_time() - began)
        return drawings / statistics.median(taken[1:])


class FrontASHA(EpochASHA):
    """ASHA that compares a trial only with those that are at least as fast: who is good for its speed goes on.

    Args:
        *asha: as of `EpochASHA`.
        speeds: drawings/s of each trial, by its number; may grow.
    """

    def __init__(self, *asha: Any, speeds: Mapping[int, float]) -> None:
        num_epochs, grace_epochs, self.factor, *_ = asha
        self.speeds = speeds
        self.rungs: dict[int, dict[int, float]] = {}  # `val_top1` by epoch and number
        epoch = grace_epochs
        while epoch < num_epochs:
            self.rungs[epoch] = {}
            epoch *= self.factor
        super().__init__(*asha)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns whether a trial goes on."""
        rung, number = self.rungs.get(result["epoch"]), trial.config["number"]
        if rung is None:
            return str(self.CONTINUE)
        rivals = [value for other, value in rung.items() if self.speeds[other] >= self.speeds[number]]
        rung[number] = result[METRIC]
        if rivals and result[METRIC] < np.percentile(rivals, 100 * (1 - 1 / self.factor)):
            self.stopped.add(number)
            return str(self.STOP)
        return str(self.CONTINUE)
