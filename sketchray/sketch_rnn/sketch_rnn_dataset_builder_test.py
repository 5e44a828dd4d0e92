"""TFDS's own test of a builder. It needs TensorFlow and dill, which are no requirements of sketchray.

python -m sketchray.sketch_rnn.sketch_rnn_dataset_builder_test
"""

from typing import ClassVar

import tensorflow_datasets as tfds

from sketchray.sketch_rnn import Builder, SketchRnnConfig
from sketchray.sketch_rnn.dummy_data_generation import CORNERS, DRAWINGS

DUMMY = SketchRnnConfig(name="dummy", classes=tuple(CORNERS), description="The classes of the dummy data.")


class SketchRnnTest(tfds.testing.DatasetBuilderTestCase):  # type: ignore[misc] # TFDS has no stubs
    """The dummy data are in `manual_dir`, built, read back, and counted."""

    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST: ClassVar = [DUMMY]
    SPLITS: ClassVar = {split: count * len(CORNERS) for split, count in DRAWINGS.items()}


if __name__ == "__main__":
    tfds.testing.test_main()
