"""The `sketch_rnn` dataset: the stroke sequences on which Sketch-RNN was trained."""

import dataclasses
import difflib
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets.public_api as tfds
from etils import epath

from sketchray.sketch_rnn.npz import SPLITS, Int16Array, read_npz

# One file a class, `<class>.npz`. Source: "Sketch-RNN QuickDraw Dataset" in quickdraw-dataset's README.
BASE_URL = "https://storage.googleapis.com/quickdraw_dataset/sketchrnn"

CLASSES: tuple[str, ...] = tuple((epath.Path(__file__).parent / "labels.txt").read_text().splitlines())

_POINT = """The points of the drawing in the order in which they were drawn, each of three numbers.
dx: pixels to the right of the point before. dy: pixels below the point before. (The first point: from an origin that
the files leave open.) pen_up: 1 if the pen is lifted after this point, which ends a stroke; else 0."""


@dataclasses.dataclass(eq=False, kw_only=True)
class SketchRnnConfig(tfds.core.BuilderConfig):  # type: ignore[misc] # TFDS has no stubs
    """Which classes to take, and from where.

    A subset needs a `name` of its own, since TFDS keeps one copy of a dataset for each name:
    `SketchRnnConfig(name="pets", classes=("cat", "dog"))`.

    Attributes:
        classes: Names among `CLASSES`; None for all 345. Labels count from 0 in the order of `CLASSES`.
        url: The folder that holds `<class>.npz`: the published one, or a mirror of it.
    """

    classes: Sequence[str] | None = None
    url: str = BASE_URL

    def __post_init__(self) -> None:
        if self.classes is None:
            return
        if isinstance(self.classes, str) or not self.classes:
            raise ValueError(f"classes={self.classes!r}: a sequence of class names is needed, or None for all")
        for name in self.classes:
            if name not in CLASSES:
                close = difflib.get_close_matches(name, CLASSES) or "see labels.txt"
                raise ValueError(f"classes: no class of Quick, Draw! is called {name!r}; close to it: {close}")

    @property
    def names(self) -> list[str]:
        """The class names, in the order of their labels."""
        return [name for name in CLASSES if self.classes is None or name in self.classes]

    def file_url(self, name: str) -> str:
        """Returns where the file of class `name` is; the spaces in names are quoted."""
        return f"{self.url}/{urllib.parse.quote(name)}.npz"


class Builder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc] # TFDS has no stubs
    """DatasetBuilder for the sketch_rnn dataset."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}  # noqa: RUF012 # as TFDS declares it
    BUILDER_CONFIGS = [  # noqa: RUF012 # as TFDS declares it
        SketchRnnConfig(name="quickdraw", description="All 345 classes of Quick, Draw!, 75,000 drawings of each."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""Optional: the files are downloaded from {BASE_URL} unless manual_dir holds
    them. To use files that you have, put `<class>.npz` of each class there, with the spaces of its name, as in
    `The Eiffel Tower.npz`."""

    _manual_dir_is_given = False

    def _info(self) -> Any:
        """Returns the dataset metadata."""
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    # As bytes, a point takes 6 of them; in the list of varints that is the default, 3 to 21.
                    "drawing": tfds.features.Tensor(
                        shape=(None, 3),
                        dtype=np.int16,
                        encoding=tfds.features.Encoding.BYTES,
                        doc=tfds.features.Documentation(desc=_POINT, value_range="dx, dy: pixels; pen_up: 0 or 1"),
                    ),
                    "label": tfds.features.ClassLabel(names=self.builder_config.names, doc="What the player drew."),
                }
            ),
            supervised_keys=("drawing", "label"),
            homepage="https://github.com/googlecreativelab/quickdraw-dataset",
            license="CC BY 4.0: https://creativecommons.org/licenses/by/4.0/",
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        # TFDS hands down a manual_dir in any case. Only one that the user named may not be passed over in silence.
        self._manual_dir_is_given = download_config.manual_dir is not None
        super()._download_and_prepare(dl_manager=dl_manager, download_config=download_config)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        """Returns the generator of each published split."""
        config = self.builder_config
        paths = self._find_manual_files(dl_manager)
        if paths is None:
            paths = dl_manager.download({name: config.file_url(name) for name in config.names})
        return {split: self._generate_examples(paths, split) for split in SPLITS}

    def _find_manual_files(self, dl_manager: Any) -> dict[str, epath.Path] | None:
        """Returns the file of each class in manual_dir, or None where nothing was put there.

        Raises:
            AssertionError: The manual_dir that the user named does not exist or is empty.
            FileNotFoundError: It lacks classes.
        """
        try:
            folder = dl_manager.manual_dir
        except AssertionError:
            if self._manual_dir_is_given:
                raise
            return None
        names = self.builder_config.names
        present = {path.name for path in folder.iterdir()}
        missing = [name for name in names if f"{name}.npz" not in present]
        if len(missing) == len(names) and not self._manual_dir_is_given:
            return None  # the default manual_dir, which other datasets use too
        if missing:
            some = ", ".join(f"{name}.npz" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise FileNotFoundError(
                f"manual_dir {folder} lacks {len(missing)} of {len(names)} classes: {some}. Put them there (from "
                f"{self.builder_config.url}), leave manual_dir out to download all, or build a subset: "
                'builder_kwargs={"config": SketchRnnConfig(name=..., classes=[...])}.'
            )
        return {name: folder / f"{name}.npz" for name in names}

    def _generate_examples(
        self, paths: Mapping[str, epath.Path], split: str
    ) -> Iterator[tuple[str, dict[str, Int16Array | str]]]:
        """Yields the drawings of a split, class by class; TFDS shuffles them by their keys."""
        for name, path in paths.items():
            with epath.Path(path).open("rb") as file:
                drawings = read_npz(file, splits=(split,))[split]
            for index, drawing in enumerate(drawings):
                yield f"{name}_{split}_{index}", {"drawing": drawing, "label": name}
