"""The space of a sweep: which configurations may be tried, as one conditional function, and how users narrow it.

`propose` is the space: it asks for one choice after the other, by name, and later choices depend on earlier ones.
`DIMENSIONS` says what each name may be. A name is that of a field of the configuration where there is one
(`model.cell`, `lr`), with the layer's number where the field is a list (`model.conv_channels.0`).
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from sketchray.augment import AugmentConfig
from sketchray.model import ModelConfig, StrokeClassifier
from sketchray.recipe import RECIPES, TrainConfig
from sketchray.tuning.dimensions import Dimension, Range, contains, draw_value, parse_value, size, to_dimension, values

if TYPE_CHECKING:
    import optuna

Choices = dict[str, Any]
CONV = ("conv_channels", "conv_kernels", "conv_strides")
LAYERS = 8  # convolutions at most
CLIPPING = ("norm", "value", "adaptive")
PRESETS = ("base", "gru", "conv1d", "student", "homl", "tutorial", "seed")  # in the order in which they are tried
ELSEWHERE = {"num_epochs": "--num-epochs", "seed": "--seed", "train_split": "nothing else: a sweep judges by `valid`"}


DIMENSIONS: dict[str, Dimension] = {
    "family": ("rnn", "conv", "conv_rnn"),
    "model.features": ("deltas", "rich"),
    "model.max_points": (100, 256),
    "conv_layers": Range(1, 4),
    **{f"model.conv_channels.{layer}": (32, 48, 64, 96, 128, 192, 256) for layer in range(LAYERS)},
    **{f"model.conv_kernels.{layer}": (3, 5, 7) for layer in range(LAYERS)},
    **{f"model.conv_strides.{layer}": (1, 2) for layer in range(LAYERS)},
    "model.conv_activation": ("relu", "gelu", "linear"),
    "model.conv_norm": ("none", "batch", "layer"),
    "model.cell": ("lstm", "gru"),
    "model.rnn_layers": Range(1, 3),
    "model.rnn_size": (64, 96, 128, 192, 256),
    "model.bidirectional": (True, False),
    "model.pooling": ("last", "mean", "max", "sum", "attention", "mean+max", "attention+mean+max"),
    "model.dropout": Range(0.0, 0.5),
    "batch_size": (64, 128, 256, 512),
    "optimizer": ("adamw", "adam"),
    "lr": Range(1e-4, 2e-2, log=True),
    "weight_decay": Range(1e-4, 0.3, log=True),
    "schedule": ("one_cycle", "cosine", "constant"),
    "warmup": Range(0.0, 0.4),
    "clipping": ("none", *CLIPPING),
    "clip_norm": Range(0.05, 20.0, log=True),
    "clip_value": Range(1e-4, 1.0, log=True),
    "clip_adaptive": Range(1e-3, 0.3, log=True),
    "ema_decay": (0.0, 0.99, 0.998),
    "label_smoothing": Range(0.0, 0.2),
    "mixup": Range(0.0, 0.6),
    "augmentation": ("none", "each"),
    "augment.rotate": Range(0.0, 0.4),
    "augment.scale": Range(0.0, 0.4),
    "augment.shear": Range(0.0, 0.3),
    "augment.flip": Range(0.0, 0.5),
    "augment.warp": Range(0.0, 12.0),
    "augment.stroke_shift": Range(0.0, 6.0),
    "augment.stroke_scale": Range(0.0, 0.25),
    "augment.stroke_rotate": Range(0.0, 0.25),
    "augment.jitter": Range(0.0, 3.0),
    "augment.drop_points": Range(0.0, 0.25),
    "augment.drop_strokes": Range(0.0, 0.15),
    "augment.prefix": Range(0.0, 0.6),
}


def propose(pick: Callable[[str], Any]) -> dict[str, Any]:
    """Returns the fields of a configuration, from what `pick` chooses for each name that it is asked for."""
    family = pick("family")
    model = {name: pick(f"model.{name}") for name in ("features", "max_points", "dropout")}
    model["pooling"] = tuple(pick("model.pooling").split("+"))
    layers = range(0 if family == "rnn" else pick("conv_layers"))
    for part in CONV:
        model[part] = tuple(pick(f"model.{part}.{layer}") for layer in layers)
    if family != "rnn":
        model |= {name: pick(f"model.{name}") for name in ("conv_activation", "conv_norm")}
    if family == "conv":
        model["rnn_layers"] = 0
    else:
        model |= {name: pick(f"model.{name}") for name in ("cell", "rnn_layers", "rnn_size", "bidirectional")}

    plain = ("batch_size", "optimizer", "lr", "schedule", "ema_decay", "label_smoothing", "mixup")
    fields = {name: pick(name) for name in plain}
    fields["weight_decay"] = pick("weight_decay") if fields["optimizer"] == "adamw" else 0.0
    if fields["schedule"] != "constant":
        fields["warmup"] = pick("warmup")
    clipping = pick("clipping")
    fields |= {f"clip_{kind}": pick(f"clip_{kind}") if kind == clipping else 0.0 for kind in CLIPPING}
    changes = AugmentConfig.model_fields if pick("augmentation") == "each" else ()
    fields["augment"] = {name: pick(f"augment.{name}") for name in changes}
    return {**fields, "model": model}


def needs(name: str) -> tuple[str, tuple[Any, ...]] | None:
    """Returns which choice, and which values of it, make `propose` ask for a name; None if it always does."""
    kind = name.removeprefix("clip_")
    if name == "conv_layers" or name.startswith("model.conv_"):
        return "family", ("conv", "conv_rnn")
    if name in ("model.cell", "model.rnn_layers", "model.rnn_size", "model.bidirectional"):
        return "family", ("rnn", "conv_rnn")
    if name == "weight_decay":
        return "optimizer", ("adamw",)
    if name == "warmup":
        return "schedule", ("one_cycle", "cosine")
    if kind in CLIPPING:
        return "clipping", (kind,)
    return ("augmentation", ("each",)) if name.startswith("augment.") else None


def choices_of(config: TrainConfig) -> Choices:
    """Returns what would have been chosen for each name, had `propose` made a configuration."""
    model, fields = config.model, config.model_dump()
    flat: Choices = {name: value for name, value in fields.items() if name not in ("model", "augment")}
    flat |= {f"augment.{name}": value for name, value in fields["augment"].items()}
    flat |= {f"model.{name}": value for name, value in fields["model"].items()}
    for part in CONV:
        flat |= {f"model.{part}.{layer}": value for layer, value in enumerate(getattr(model, part))}
    families = {(False, True): "rnn", (True, False): "conv", (True, True): "conv_rnn"}
    clipping = [kind for kind in CLIPPING if flat[f"clip_{kind}"]]
    return flat | {
        "family": families[bool(model.conv_channels), bool(model.rnn_layers)],
        "conv_layers": len(model.conv_channels),
        "model.pooling": "+".join(model.pooling),
        "clipping": clipping[0] if clipping else "none",
        "augmentation": "none" if config.augment == AugmentConfig() else "each",
    }


@lru_cache(maxsize=256)
def count_parameters(model: ModelConfig, num_classes: int) -> int:
    """Returns how many numbers a model learns; none is made."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in StrokeClassifier(model, num_classes).parameters())


class Space:
    """The space of one sweep: `DIMENSIONS`, overridden and narrowed, and a budget of parameters.

    Args:
        num_classes: K.
        num_epochs, seed: of every trial.
        max_params: of a model. A proposal that is larger is made smaller, a step of a width at a time.
        overrides: other choices (a list) or another range (`{"low", "high", "log"}`) for some names.
        fix: `name=value`, a name of the space or any other field of the configuration.

    Raises:
        ValueError: a name or a value is not possible, or nothing fits the budget.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_epochs: int,
        seed: int,
        max_params: int,
        overrides: Mapping[str, Any] | None = None,
        fix: Sequence[str] = (),
    ) -> None:
        self.num_classes, self.max_params = num_classes, max_params
        self.dimensions = dict(DIMENSIONS)
        self.settings: Choices = {"num_epochs": num_epochs, "seed": seed}  # beside the space
        self.fixed: Choices = {}
        for name, value in (overrides or {}).items():
            self.dimensions[self._known(name)] = to_dimension(name, value)
        for text in fix:
            name, mark, value = text.partition("=")
            if not mark:
                raise ValueError(f"--fix {text}: expected name=value, such as model.cell=lstm")
            self._fix(name, parse_value(value))
        self._check()

    def _known(self, name: str) -> str:
        if name not in self.dimensions:
            raise ValueError(f"{name}: no such name in the space; it has {', '.join(self.dimensions)}")
        return name

    def _fix(self, name: str, value: Any) -> None:
        if name in ELSEWHERE:
            raise ValueError(f"--fix {name}: this is for {ELSEWHERE[name]}")
        if name.removeprefix("model.") in CONV and isinstance(value, list):
            self._fix("conv_layers", len(value))
            for layer, one in enumerate(value):
                self._fix(f"{name}.{layer}", one)
            return
        if name == "model.rnn_layers" and value == 0:
            name, value = "family", "conv"
        if name == "model.pooling" and isinstance(value, list):
            value = "+".join(value)
        if name in self.dimensions:
            self.dimensions[name] = to_dimension(name, value)
            self.fixed[name] = value
            condition = needs(name)
            if condition is not None:
                self._narrow(name, *condition)
        elif name in choices_of(TrainConfig()):
            self.settings[name] = value
        else:
            raise ValueError(f"--fix {name}: no such name; name one of the space or a field of the configuration")

    def _narrow(self, name: str, parent: str, allowed: tuple[Any, ...]) -> None:
        """Leaves of a choice what a name that is fixed needs."""
        left = tuple(choice for choice in values(self.dimensions[parent]) if choice in allowed)
        if not left:
            raise ValueError(f"--fix {name}: this is for {parent}={' or '.join(allowed)}, which is ruled out")
        self.dimensions[parent] = left
        if len(left) == 1:
            self.fixed[parent] = left[0]

    def _check(self) -> None:
        """Rules out the families that no smaller width brings within the budget, and builds some configurations."""
        if values(self.dimensions["conv_layers"])[-1] > LAYERS:
            raise ValueError(f"conv_layers: at most {LAYERS}, got {self.dimensions['conv_layers']}")
        families = self.dimensions["family"]
        assert isinstance(families, tuple)
        least = {family: self._least(family) for family in families}
        if min(least.values()) > self.max_params:
            raise ValueError(
                f"--max-params {self.max_params:,}: the smallest model of the space has {min(least.values()):,} "
                f"parameters for {self.num_classes} classes; allow more, or fix less"
            )
        self.dimensions["family"] = tuple(family for family in families if least[family] <= self.max_params)
        source = random.Random(0)
        for _ in range(20):
            self.draw(source)

    def _least(self, family: str) -> int:
        """Returns the parameters of a family's narrowest architecture, with whatever cannot be made smaller."""
        smallest = {name: values(dimension)[0] for name, dimension in self.dimensions.items()}
        free = ("model.features", "model.cell", "model.conv_norm")
        sizes = []
        for chosen in itertools.product(*(values(self.dimensions[name]) for name in free)):
            config = self._build({**smallest, "family": family, **dict(zip(free, chosen, strict=True))})
            sizes.append(count_parameters(config.model, self.num_classes))
        return max(sizes)

    def suggest(self, trial: "optuna.Trial") -> TrainConfig:
        """Returns the configuration of a trial, which keeps what was chosen for it."""

        def pick(name: str) -> Any:
            dimension = self.dimensions[name]
            if not isinstance(dimension, Range):
                return trial.suggest_categorical(name, dimension)
            if dimension.whole:
                return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
            return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)

        return self._choose(pick)

    def draw(self, source: random.Random) -> TrainConfig:
        """Returns a configuration at random."""
        return self._choose(lambda name: draw_value(self.dimensions[name], source))

    def preset(self, name: str) -> Choices | None:
        """Returns the choices that make a preset, with what is fixed of its recipe; None if it is not of this space."""
        wanted = choices_of(RECIPES[name])
        wanted |= {key: value for key, value in self.fixed.items() if not key.startswith(("model.", "family", "conv_"))}
        asked: Choices = {}

        def pick(key: str) -> Any:
            asked[key] = wanted[key]
            return wanted[key]

        config = self._build_from(pick)
        inside = all(contains(self.dimensions[key], value) for key, value in asked.items())
        fits = count_parameters(config.model, self.num_classes) <= self.max_params
        return asked if inside and fits and config.model == RECIPES[name].model else None

    def _choose(self, pick: Callable[[str], Any]) -> TrainConfig:
        """Returns the configuration of some choices, made smaller until it is within the budget."""
        choices: Choices = {}

        def keep(name: str) -> Any:
            choices[name] = pick(name)
            return choices[name]

        config = self._build_from(keep)
        while count_parameters(config.model, self.num_classes) > self.max_params:
            choices = self._smaller(choices)
            config = self._build(choices)
        return config

    def _smaller(self, choices: Choices) -> Choices:
        """Returns the choices with the widest layer a step narrower; or else with one layer less, or simpler."""
        widths = [name for name in choices if name == "model.rnn_size" or name.startswith("model.conv_channels.")]
        widths.sort(key=lambda name: float(choices[name]), reverse=True)
        kernels = [name for name in choices if name.startswith("model.conv_kernels.")]
        simpler = ("model.rnn_layers", "conv_layers", "model.pooling", "model.bidirectional", *kernels)
        for name in (*widths, *simpler):
            if name in choices:
                lower = [value for value in values(self.dimensions[name]) if size(value) < size(choices[name])]
                if lower:
                    return {**choices, name: lower[-1]}
        raise AssertionError("a family that cannot be made small enough was not ruled out")

    def _build(self, choices: Choices) -> TrainConfig:
        return self._build_from(choices.__getitem__)

    def _build_from(self, pick: Callable[[str], Any]) -> TrainConfig:
        fields = propose(pick)
        for name, value in self.settings.items():
            group, _, rest = name.rpartition(".")
            (fields[group] if group else fields)[rest] = value
        return TrainConfig.model_validate(fields)
