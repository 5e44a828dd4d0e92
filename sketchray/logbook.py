"""TensorBoard logs of a run: scalars, the confusion of classes, and drawings with what the model says of them.

`tensorboard --logdir RUN` shows them. Rank 0 only.
"""

import logging
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow.fs as pafs
import torch
from torch import Tensor

from sketchray.batch import pad
from sketchray.feed import collate
from sketchray.model import StrokeClassifier
from sketchray.order import EvalFeed
from sketchray.storage import child, open_filesystem
from sketchray.strokes import to_strokes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"
SAMPLES = 24  # drawings shown after each epoch, the same ones each time


class Logbook:
    """Writes event files into `RUN/tensorboard`: at once on a disk, after each epoch on other storage.

    Args:
        run: directory or URI of the run.
        classes: names, in label order.
        step: where the run goes on; what an earlier attempt logged after it is not shown.
    """

    def __init__(self, run: str, classes: list[str], step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.classes = classes
        self.filesystem, self.path = open_filesystem(child(run, FOLDER))
        self.mirror: tempfile.TemporaryDirectory[str] | None = None
        if not isinstance(self.filesystem, pafs.LocalFileSystem):
            self.mirror = tempfile.TemporaryDirectory()
        self.directory = self.mirror.name if self.mirror else self.path
        self.writer = SummaryWriter(self.directory, purge_step=step or None, flush_secs=5)

    def write_progress(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs where an epoch stands."""
        for name, value in scalars.items():
            self.writer.add_scalar(f"progress/{name}", value, step)

    def write_epoch(
        self, metrics: Mapping[str, float], confusion: Tensor, model: StrokeClassifier, valid: EvalFeed
    ) -> None:
        """Logs an epoch's metrics and pictures.

        Args:
            metrics: flat, `val_top1` and so on.
            confusion: `(K, K)` drawings of the valid split by true class (rows) and first guess (columns).
            model: what was validated.
            valid: where the sample drawings come from.
        """
        from matplotlib import pyplot as plt

        step = int(metrics["step"])
        for name, value in metrics.items():
            kind, _, rest = name.partition("_")
            title = f"{rest}/{kind}" if kind in ("val", "train") else f"epoch/{name}"
            self.writer.add_scalar(title, value, step)
        share = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
        image = plt.get_cmap("magma")(share.sqrt().numpy())[..., :3]  # the root, so that rare mistakes can be seen
        self.writer.add_image("confusion", image, step, dataformats="HWC")
        if valid.windows:
            self.writer.add_figure("guesses", self._draw_guesses(model, valid), step)
        self.writer.flush()
        if self.mirror is not None:
            try:
                self.filesystem.create_dir(self.path)
                pafs.copy_files(self.mirror.name, self.path, destination_filesystem=self.filesystem)
            except OSError as error:  # no reason to stop learning; the next epoch copies all of it
                logger.warning("%s: the TensorBoard logs of this epoch are not there yet (%s)", self.path, error)

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()
        if self.mirror is not None:
            self.mirror.cleanup()

    @torch.no_grad()
    def _draw_guesses(self, model: StrokeClassifier, valid: EvalFeed) -> "Figure":
        """Returns a figure of some drawings, with the class, the first guess and its probability over each."""
        from matplotlib.figure import Figure

        table = valid.rows.read(0, min(SAMPLES, len(valid.rows)))
        batch = collate(table)
        device = next(model.parameters()).device
        moved = batch.to(device)
        logits = model(*pad(moved.values, moved.offsets, model.config.max_points))
        probability, guess = logits.softmax(1).max(1)
        figure = Figure(figsize=(12, 8), layout="constrained")
        for number, axes in enumerate(figure.subplots(4, 6).flat):
            axes.axis("off")
            if number >= len(batch):
                continue
            drawing = batch.values[batch.offsets[number] : batch.offsets[number + 1]].numpy()
            for stroke in to_strokes(drawing):
                axes.plot(stroke[:, 0], stroke[:, 1], color="black", linewidth=1.2)
            axes.set_aspect("equal", adjustable="datalim")
            axes.invert_yaxis()
            truth, first = int(batch.labels[number]), int(guess[number])
            title = f"{self.classes[first]} {float(probability[number]):.0%}"
            if first != truth:
                title += f"\n({self.classes[truth]})"
            axes.set_title(title, fontsize=9, color="tab:green" if first == truth else "tab:red")
        return figure
