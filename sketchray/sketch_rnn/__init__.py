"""The dataset that TensorFlow Datasets lacks. After `import sketchray.sketch_rnn` TFDS knows `sketch_rnn/quickdraw`."""

from sketchray.sketch_rnn.sketch_rnn_dataset_builder import Builder, SketchRnnConfig

__all__ = ["Builder", "SketchRnnConfig"]
