"""The model: padding, place and scale of a drawing change nothing; batches and augmentation."""

import pytest
import torch
from conftest import real_records
from pydantic import ValidationError
from torch import Tensor, nn

from sketchray.augment import AugmentConfig, augment
from sketchray.batch import Batch, pad
from sketchray.model import (
    PRESETS,
    MaskedBatchNorm,
    ModelConfig,
    RecurrentLayer,
    StrokeClassifier,
    point_features,
    real_points,
)
from sketchray.strokes import from_record

VARIANTS = {
    **PRESETS,
    "batch norm": ModelConfig(cell="gru", conv_norm="batch", pooling=("last", "max"), rnn_size=32),
    "pooled": ModelConfig(rnn_layers=1, rnn_size=16, pooling=("last", "mean", "max", "sum", "attention")),
    "strided": ModelConfig(conv_channels=(8, 8), conv_kernels=(7, 3), conv_strides=(3, 2), rnn_size=16),
}


def make_batch(number: int = 12) -> Batch:
    drawings = [torch.from_numpy(from_record(record["drawing"])) for record in real_records(number // 3, classes=3)]
    drawings[0] = drawings[0][:1]  # a drawing of one point is a drawing
    lengths = torch.tensor([len(points) for points in drawings])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return Batch(torch.cat(drawings), offsets, torch.arange(len(drawings)))


def make_model(config: ModelConfig) -> StrokeClassifier:
    torch.manual_seed(0)
    return StrokeClassifier(config, 7).eval()


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("homl", 344_665),
        ("tutorial", 1_145_337),
        ("seed", 355_929),
        ("conv1d", 704_377),
        ("gru", 1_697_049),
        ("base", 1_960_217),
    ],
)
def test_parameter_counts(preset: str, parameters: int) -> None:
    model = StrokeClassifier(PRESETS[preset], 345)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_never_changes_a_logit(name: str) -> None:
    model, batch = make_model(VARIANTS[name]), make_batch()
    points, lengths = pad(batch.values, batch.offsets, 10_000)
    together = model(points, lengths)
    more = torch.randint(-99, 99, (len(batch), points.shape[1] + 23, 3))  # what lies past the end is anything
    inside = real_points(lengths, more.shape[1])[..., None]
    more[:, : points.shape[1]] = torch.where(inside[:, : points.shape[1]], points, more[:, : points.shape[1]])
    # Float32 sums of another length are rounded in another order.
    torch.testing.assert_close(model(more, lengths), together, rtol=1e-4, atol=2e-6)
    for row in range(len(batch)):
        alone = model(points[row : row + 1, : int(lengths[row])], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", ["deltas", "rich"])
def test_a_moved_and_scaled_copy_has_the_same_features(kind: str) -> None:
    batch = make_batch()
    points, lengths = pad(batch.values, batch.offsets, 10_000)
    mask = real_points(lengths, points.shape[1])
    copy = points.float()
    copy[..., :2] *= 4  # a power of two, so that no rounding differs
    copy[:, 0, :2] += torch.tensor([1000.0, -77.0])
    torch.testing.assert_close(
        point_features(copy, mask, kind), point_features(points.float(), mask, kind), rtol=0, atol=0
    )


def test_another_drawing_has_other_logits() -> None:
    batch = make_batch()
    model = make_model(PRESETS["base"])
    logits = model(*pad(batch.values, batch.offsets, 256))
    distances = torch.cdist(logits, logits) + torch.eye(len(batch))
    assert (distances > 1e-4).all()


def test_the_backward_layer_starts_at_the_last_real_point() -> None:
    torch.manual_seed(0)
    layer = RecurrentLayer(3, ModelConfig(rnn_size=4))
    assert layer.back is not None
    x, lengths = torch.randn(2, 9, 3), torch.tensor([9, 5])
    out = layer(x, lengths, real_points(lengths, 9))
    short = x[1:2, :5]
    expected = torch.cat([layer.ahead(short)[0], layer.back(short.flip(1))[0].flip(1)], dim=2)
    torch.testing.assert_close(out[1:2, :5], expected)
    assert (out[1, 5:] == 0).all()


def test_masked_batch_norm_counts_real_points_only() -> None:
    x, lengths = torch.randn(4, 6, 10), torch.tensor([10, 3, 7, 1])
    mask = real_points(lengths, 10)
    ours, theirs = MaskedBatchNorm(6), nn.BatchNorm1d(6)
    out = ours(x, mask).transpose(1, 2)[mask]
    torch.testing.assert_close(out, theirs(x.transpose(1, 2)[mask]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x, mask), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_finite_on_degenerate_drawings(name: str) -> None:
    model = make_model(VARIANTS[name]).train()
    points = torch.zeros(3, 4, 3)  # all points at one place
    points[0, :, 0] = 5
    model(points, torch.tensor([4, 4, 1])).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_points_past_the_maximum_are_cut_off() -> None:
    model = make_model(PRESETS["homl"].model_copy(update={"max_points": 5}))
    points = torch.randint(-9, 9, (2, 8, 3))
    torch.testing.assert_close(model(points, torch.tensor([8, 3])), model(points[:, :5], torch.tensor([5, 3])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_kernels": (5,)}, "one entry a layer"),
        ({"conv_kernels": (4, 5, 5)}, "must be odd"),
        ({"conv_channels": (), "conv_kernels": (), "conv_strides": (), "rnn_layers": 0}, "at least one convolution"),
        ({"pooling": ()}, "one or several different names"),
        ({"pooling": ("max", "max")}, "one or several different names"),
        ({"rnn_width": 3}, "Extra inputs"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_points", [1, 4, 100])
def test_padding_is_zero_past_the_end_or_the_maximum(max_points: int) -> None:
    lengths = [3, 1, 7]
    values = torch.arange(1, 34, dtype=torch.int16).view(11, 3)  # no zero among them
    points, found = pad(values, torch.tensor([0, 3, 4, 11]), max_points)
    assert found.tolist() == [min(length, max_points) for length in lengths]
    assert points.shape == (3, min(7, max_points), 3)
    assert points.dtype == torch.int16
    for row, drawing in enumerate(values.split(lengths)):
        kept = int(found[row])
        assert points[row, :kept].tolist() == drawing[:kept].tolist()
        assert not points[row, kept:].any()


def test_slices_and_prefixes_are_those_of_each_drawing() -> None:
    batch = make_batch()
    part = batch.slice(2, 5)
    assert part.labels.tolist() == [2, 3, 4]
    for fraction in (0.25, 0.5, 0.999, 1.0):
        shown = part.prefix(fraction)
        for row in range(3):
            whole = part.values[part.offsets[row] : part.offsets[row + 1]]
            beginning = shown.values[shown.offsets[row] : shown.offsets[row + 1]]
            assert len(beginning) == -(-len(whole) * round(fraction * 1000) // 1000)
            assert (beginning == whole[: len(beginning)]).all()


def strokes_and_points(points: Tensor, lengths: Tensor) -> tuple[list[int], list[int]]:
    return points[..., 2].sum(1).int().tolist(), lengths.tolist()


def test_augmentation_off_changes_nothing() -> None:
    points, lengths = pad(make_batch().values, make_batch().offsets, 256)
    assert augment(points, lengths, AugmentConfig()) == (points, lengths)


def test_augmentation_repeats_with_the_seed_and_keeps_padding_empty() -> None:
    batch = make_batch()
    points, lengths = pad(batch.values, batch.offsets, 256)
    config = AugmentConfig(
        rotate=1, scale=0.5, shear=0.3, flip=0.5, jitter=2, drop_points=0.5, drop_strokes=0.5, prefix=0.5
    )
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(points, lengths, config))
    (first, first_lengths), (second, second_lengths) = results
    assert torch.equal(first, second)
    assert torch.equal(first_lengths, second_lengths)
    assert (first_lengths >= 1).all()
    assert (first_lengths <= lengths).all()
    assert (first[~real_points(first_lengths, first.shape[1])] == 0).all()


def test_each_change_does_what_it_says() -> None:
    batch = make_batch()
    points, lengths = pad(batch.values, batch.offsets, 256)
    strokes, _ = strokes_and_points(points, lengths)
    mirrored, _ = augment(points, lengths, AugmentConfig(flip=1))
    torch.testing.assert_close(mirrored[..., 0], -points[..., 0].float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(mirrored[..., 1:], points[..., 1:].float(), rtol=0, atol=1e-3)
    turned, _ = augment(points, lengths, AugmentConfig(rotate=3))
    torch.testing.assert_close(turned[..., :2].norm(dim=2), points[..., :2].float().norm(dim=2), rtol=0, atol=1e-3)
    fewer, kept = augment(points, lengths, AugmentConfig(drop_points=0.9))
    assert strokes_and_points(fewer, kept)[0] == strokes  # a stroke's end stays
    assert kept.sum() < lengths.sum()
    torch.manual_seed(0)
    lost, kept = augment(points, lengths, AugmentConfig(drop_strokes=0.6))
    left = strokes_and_points(lost, kept)[0]
    assert all(0 <= now <= before for now, before in zip(left, strokes, strict=True))
    assert sum(left) < sum(strokes)
    cut, kept = augment(points, lengths, AugmentConfig(prefix=1))
    for row in range(len(batch)):
        number = int(kept[row])
        torch.testing.assert_close(cut[row, :number], points[row, :number].float(), rtol=0, atol=1e-3)
