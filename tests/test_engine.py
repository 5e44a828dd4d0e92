"""The learner: its step, its schedule, its sums."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import TINY, real_records
from pydantic import ValidationError
from torch import nn

from sketchray.augment import AugmentConfig
from sketchray.batch import Batch, pad
from sketchray.clipping import clip, clip_adaptive
from sketchray.engine import TEMPERATURES, Learner, balanced_weights, make_optimizer, score, to_metrics
from sketchray.errors import RunError
from sketchray.model import PRESETS, StrokeClassifier
from sketchray.recipe import RECIPES, TrainConfig, lr_at
from sketchray.strokes import from_record

PLAIN = TINY.model_copy(
    update={
        "augment": AugmentConfig(),
        "model": TINY.model.model_copy(update={"dropout": 0.0}),
        "label_smoothing": 0.0,
        "ema_decay": 0.0,
    }
)

# AdamW divides by the size of the gradient, and so makes noise of rounding where that is nearly 0; SGD does not.
SGD = PLAIN.model_copy(update={"optimizer": "sgd", "weight_decay": 0.0, "lr": 0.1, "schedule": "constant"})


def make_batch(number: int = 32) -> Batch:
    records = real_records(number // 4, classes=4)
    names = sorted({record["word"] for record in records})
    drawings = [torch.from_numpy(from_record(record["drawing"])) for record in records]
    lengths = torch.tensor([len(points) for points in drawings])
    labels = torch.tensor([names.index(record["word"]) for record in records])
    return Batch(torch.cat(drawings), torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]), labels)


def test_sums_agree_with_a_sorted_list() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 12)).astype(np.float32), rng.integers(0, 12, 200)
    order = np.argsort(-logits, axis=1)
    place = np.array([row.tolist().index(label) for row, label in zip(order, labels, strict=True)])
    powers = np.exp(logits.astype(np.float64))
    loss = -np.log(powers[np.arange(200), labels] / powers.sum(1)).mean()
    metrics = to_metrics(score(torch.from_numpy(logits), torch.from_numpy(labels)), "val_")
    assert metrics == {
        "val_loss": pytest.approx(loss, rel=1e-5),  # float32
        "val_top1": pytest.approx((place < 1).mean()),
        "val_top5": pytest.approx((place < 5).mean()),
        "val_map3": pytest.approx(np.where(place < 3, 1 / (place + 1), 0).mean()),
    }


def test_nan_is_no_hit() -> None:
    sums = score(torch.full((3, 5), torch.nan), torch.zeros(3, dtype=torch.long))
    assert sums[[0, 2, 3, 4]].tolist() == [3, 0, 0, 0]


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(lr=1.0, warmup=0.25)
    rates = [lr_at(step, 1000, config) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[250] == pytest.approx(1.0)
    assert rates[:251] == sorted(rates[:251])
    assert rates[250:] == sorted(rates[250:], reverse=True)
    assert rates[-1] < 1e-3
    assert {lr_at(step, 10, RECIPES["seed"]) for step in range(10)} == {1e-3}


def test_a_cosine_starts_with_a_line_and_ends_at_nothing() -> None:
    config = TrainConfig(lr=1.0, warmup=0.1, schedule="cosine")
    rates = [lr_at(step, 1000, config) for step in range(1000)]
    assert np.diff(rates[:100]) == pytest.approx(np.full(99, 1 / 101))
    assert rates[0] == pytest.approx(1 / 101)
    assert rates[100] == 1.0
    assert rates[550] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-5


def test_only_matrices_decay() -> None:
    model = StrokeClassifier(PRESETS["base"], 5)
    decaying, others = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {parameter.ndim for parameter in others["params"]} == {1}
    assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("preset", RECIPES)
def test_every_recipe_learns_a_batch_by_heart(preset: str) -> None:
    batch = make_batch(16).prefix(0.4)  # short, since length is what costs time
    config = RECIPES[preset].model_copy(update={"augment": AugmentConfig(), "schedule": "constant", "lr": 2e-3})
    learner = Learner(config, 4, total_steps=30)
    losses = []
    for _ in range(30):
        learner.start_epoch()
        learner.step(batch)
        losses.append(to_metrics(learner.sums, "")["loss"])
    assert min(losses) < 0.85 * losses[0]  # of three seeds, 0.74 at worst; dropout alone moves it by a few hundredths


def test_clipping_bounds_the_step_and_is_counted() -> None:
    batch = make_batch()

    def distance(clip_norm: float) -> tuple[float, float]:
        config = PLAIN.model_copy(
            update={"clip_norm": clip_norm, "optimizer": "sgd", "lr": 1.0, "schedule": "constant", "weight_decay": 0.0}
        )
        learner = Learner(config, 4, total_steps=1)
        before = nn.utils.parameters_to_vector(learner.model.parameters()).detach().clone()
        learner.step(batch)
        after = nn.utils.parameters_to_vector(learner.model.parameters()).detach()
        return float((after - before).norm()), float(learner.clipped)

    free, not_clipped = distance(0.0)
    assert not_clipped == 0
    clipped, count = distance(free / 10)
    assert clipped == pytest.approx(free / 10, rel=1e-3)  # plain SGD at lr 1 moves by the gradient
    assert count == 1


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def loud_model() -> StrokeClassifier:
    """A model with large gradients of many sizes."""
    torch.manual_seed(0)
    model = StrokeClassifier(PLAIN.model, 4)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 3
    return model


def test_clipping_by_value_cuts_each_number_and_leaves_the_small_ones() -> None:
    model = loud_model()
    before = gradient(model)
    norm, clipped = clip(model, norm=0, value=0.5, adaptive=0)
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-5)  # float32 sums in another order
    assert bool(clipped)
    assert torch.equal(gradient(model), before.clamp(-0.5, 0.5))
    assert not bool(clip(model, norm=0, value=0.6, adaptive=0)[1])


def test_clipping_by_norm_takes_what_the_others_left() -> None:
    model = loud_model()
    clip(model, norm=0.1, value=0.5, adaptive=0)
    assert float(gradient(model).norm()) == pytest.approx(0.1, rel=1e-3)  # PyTorch adds 1e-6 to the norm it divides by


def test_adaptive_clipping_bounds_each_unit_by_its_weights_and_leaves_the_head() -> None:
    model = loud_model()
    head = model.head.weight.grad
    assert head is not None
    before = head.clone()
    _, clipped = clip(model, norm=0, value=0, adaptive=0.05)
    assert bool(clipped)
    assert torch.equal(head, before)
    for name, parameter in model.named_parameters():
        if not name.startswith("head."):
            assert parameter.grad is not None
            rows = parameter.detach().flatten(1) if parameter.ndim > 1 else parameter.detach()[None]
            gradients = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[None]
            limit = 0.05 * rows.norm(dim=1).clamp(min=1e-3)
            assert (gradients.norm(dim=1) <= limit * 1.0001).all(), name
    assert not bool(clip(model, norm=0, value=0, adaptive=0.051)[1])


def test_adaptive_clipping_is_the_papers_formula() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    weight.grad = torch.tensor([[0.0, 1.0], [0.3, 0.4]])
    assert bool(clip_adaptive([weight], 0.1))
    # |w| = 5 allows 0.5; a unit of zeros counts as 1e-3 and allows 1e-4.
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 0.5], [6e-5, 8e-5]]))


def test_parts_of_a_batch_add_up_to_it() -> None:
    batch = make_batch()
    whole, parts = (
        Learner(SGD.model_copy(update={"gradient_accumulation_steps": steps}), 4, total_steps=5) for steps in (1, 5)
    )
    for _ in range(5):
        whole.step(batch)
        parts.step(batch)  # 32 drawings in parts of 6 and 7
    assert parts.steps == whole.steps == 5
    assert parts.sums[0] == whole.sums[0] == 160
    for name, tensor in whole.model.state_dict().items():
        if "running" not in name:
            # Float32 sums in another order.
            torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_average_follows_the_weights_and_is_what_is_judged_and_kept() -> None:
    batch = make_batch()
    learner = Learner(PLAIN.model_copy(update={"ema_decay": 0.999, "lr": 0.1}), 4, total_steps=4)
    name = "head.weight"
    expected = None
    for step in range(4):
        learner.step(batch)
        now = learner.model.state_dict()[name].clone()
        decay = (1 + step) / (10 + step)
        expected = now if expected is None else decay * expected + (1 - decay) * now
    assert expected is not None
    torch.testing.assert_close(learner.kept.state_dict()[name], expected)
    assert not torch.allclose(expected, learner.model.state_dict()[name])
    assert learner.kept is not learner.model
    judged = learner.evaluate([batch])
    other = Learner(PLAIN, 4, total_steps=4)
    other.start_from(learner.kept.state_dict())
    assert torch.equal(other.evaluate([batch]), judged)


def test_bfloat16_starts_where_float32_does_learns_too_and_keeps_float32_weights() -> None:
    batch = make_batch()
    losses: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for precision, found in losses.items():
        learner = Learner(PLAIN.model_copy(update={"precision": precision}), 4, total_steps=20)
        for _ in range(20):
            learner.start_epoch()
            learner.step(batch)
            found.append(to_metrics(learner.sums, "")["loss"])
        assert {tensor.dtype for tensor in learner.model.state_dict().values()} <= {torch.float32, torch.long}
    assert losses["float32"][0] != losses["bfloat16"][0]
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.01)  # 8 bits of fraction
    assert losses["bfloat16"][-1] < 0.1 * losses["bfloat16"][0]


def test_teachers_alone_are_learned_and_stay_as_they_are() -> None:
    batch = make_batch()
    torch.manual_seed(5)
    teachers = [StrokeClassifier(PLAIN.model, 4) for _ in range(2)]
    with torch.no_grad():
        for teacher in teachers:
            teacher.head.weight.mul_(20)  # so that they believe something
    before = [{name: tensor.clone() for name, tensor in teacher.state_dict().items()} for teacher in teachers]
    config = PLAIN.model_copy(update={"distillation_weight": 1.0, "lr": 0.02, "schedule": "constant"})
    mixed = batch.labels[torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))]
    learners = [Learner(config, 4, total_steps=60, teachers=teachers) for _ in range(2)]
    for learner, labels in zip(learners, (batch.labels, mixed), strict=True):
        for _ in range(60):
            learner.step(Batch(batch.values, batch.offsets, labels))
    with torch.no_grad():
        beliefs = sum(teacher(*pad_all(batch)).softmax(1) for teacher in teachers) / 2
        learned = learners[0].kept.eval()(*pad_all(batch)).softmax(1)
    assert float((learned - beliefs).abs().mean()) < 0.05  # of probabilities whose mean is 0.25
    assert float((beliefs - 0.25).abs().mean()) > 0.1
    for name, tensor in learners[0].kept.state_dict().items():
        assert torch.equal(tensor, learners[1].kept.state_dict()[name])  # no label mattered
    for teacher, known in zip(teachers, before, strict=True):
        assert not teacher.training
        assert all(torch.equal(tensor, known[name]) for name, tensor in teacher.state_dict().items())


def test_labels_and_teachers_share_the_loss_as_the_weight_says() -> None:
    batch = make_batch()
    torch.manual_seed(6)
    teacher = StrokeClassifier(PLAIN.model, 4)
    gradients = {}
    for weight in (0.0, 0.3, 1.0):
        learner = Learner(
            SGD.model_copy(update={"distillation_weight": weight, "clip_norm": 0.0}),
            4,
            total_steps=1,
            teachers=[teacher],
        )
        learner.step(batch)
        gradients[weight] = learner.model.head.weight.grad
    assert gradients[0.0] is not None
    # Float32 sums in another order.
    torch.testing.assert_close(gradients[0.3], 0.7 * gradients[0.0] + 0.3 * gradients[1.0], rtol=1e-4, atol=1e-6)


def test_mixed_drawings_are_learned_with_mixed_labels() -> None:
    batch = make_batch()
    config = SGD.model_copy(update={"mixup": 4.0, "label_smoothing": 0.1, "clip_norm": 0.0})
    learner = Learner(config, 4, total_steps=1)
    before = copy.deepcopy(learner.model).train()
    torch.manual_seed(0)  # as the first step does
    share = torch.distributions.Beta(torch.tensor(4.0), torch.tensor(4.0)).sample()
    share = torch.maximum(share, 1 - share)
    other = torch.randperm(len(batch))
    assert 0.5 < float(share) < 0.9
    learner.step(batch)
    logits = before(*pad_all(batch))
    logits = share * logits + (1 - share) * logits[other]  # the head is linear, and nothing is dropped
    loss = sum(
        part * nn.functional.cross_entropy(logits, batch.labels[which], label_smoothing=0.1)
        for part, which in ((share, torch.arange(len(batch))), (1 - share, other))
    )
    loss.backward()
    assert before.head.weight.grad is not None
    assert before.convs[0].conv.weight.grad is not None
    for ours, expected in (
        (learner.model.head.weight.grad, before.head.weight.grad),
        (learner.model.convs[0].conv.weight.grad, before.convs[0].conv.weight.grad),
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)  # float32 sums in another order


def test_calibration_finds_the_temperature_of_the_lowest_loss_and_changes_no_guess() -> None:
    batch = make_batch()
    learner = Learner(PLAIN.model_copy(update={"lr": 0.02, "schedule": "constant"}), 4, total_steps=40)
    for _ in range(4):
        learner.step(batch)
    with torch.no_grad():
        learner.model.head.weight.mul_(2)  # too sure of itself
        learner.model.head.bias.mul_(2)
    before = learner.evaluate([batch])
    confusion, losses = torch.zeros(4, 4, dtype=torch.long), torch.zeros(len(TEMPERATURES), dtype=torch.float64)
    learner.evaluate([batch.slice(0, 20), batch.slice(20, 32)], confusion, losses)
    best = learner.calibrate(losses)
    after = learner.evaluate([batch])
    assert float(after[1]) == pytest.approx(best, rel=1e-5)  # float32, in batches of another size
    assert after[2:].tolist() == before[2:].tolist()
    for other in (0.9, 1.1):
        learner.model.temperature *= other
        assert float(learner.evaluate([batch])[1]) > best
        learner.model.temperature /= other
    assert int(confusion.sum()) == 32

    fixed = Learner(PLAIN.model_copy(update={"temperature": 1.3}), 4, total_steps=1)
    fixed.calibrate(losses)
    assert float(fixed.model.temperature) == pytest.approx(1.3)
    assert torch.equal(fixed.model.train()(*pad_all(batch)), fixed.model(*pad_all(batch)))  # none in training


def pad_all(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return pad(batch.values, batch.offsets, 256)


def test_balanced_weights_make_a_rare_class_count_as_much() -> None:
    assert balanced_weights([30, 10, 0]).tolist() == pytest.approx([40 / 60, 2.0, 0.0])
    counts = torch.tensor([30.0, 10.0])
    assert float((balanced_weights([30, 10]) * counts).sum()) == pytest.approx(
        40
    )  # the learning rate keeps its meaning
    batch = make_batch()
    skewed = Learner(SGD.model_copy(update={"class_weights": "balanced"}), 4, total_steps=1, class_counts=[8, 8, 8, 0])
    plain = Learner(SGD, 4, total_steps=1)
    for learner in (skewed, plain):
        learner.step(batch)
    assert not torch.equal(skewed.model.head.weight, plain.model.head.weight)


def test_a_loss_that_is_no_number_names_its_first_step() -> None:
    batch = make_batch()
    learner = Learner(PLAIN, 4, total_steps=10)
    learner.step(batch)
    learner.check_finite()
    with torch.no_grad():
        learner.model.head.bias[0] = torch.nan
    learner.step(batch)
    learner.step(batch)
    with pytest.raises(RunError, match="the loss became NaN or infinite in step 1 on rank 0; try a lower --lr"):
        learner.check_finite()


def test_the_sums_do_not_depend_on_the_batch_size() -> None:
    batch = make_batch()
    learner = Learner(TINY, 4, total_steps=1)  # with dropout, which evaluation leaves out
    whole = learner.evaluate([batch])
    ones = learner.evaluate(batch.slice(row, row + 1) for row in range(len(batch)))
    assert whole[0] == ones[0] == 32
    assert whole[2:].tolist() == pytest.approx(ones[2:].tolist())
    assert float(whole[1]) == pytest.approx(float(ones[1]), rel=1e-5)  # float32, rounded in another order


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_learner_resumed_ends_with_the_weights_of_one_that_never_stopped(tmp_path: Path, ema_decay: float) -> None:
    batch = make_batch()
    config = TINY.model_copy(update={"ema_decay": ema_decay})
    through = Learner(config, 4, total_steps=6)  # with dropout, augmentation, clipping, momenta and a schedule
    for _ in range(3):
        through.step(batch)
    torch.save((through.kept.state_dict(), through.state_dict()), tmp_path / "saved")
    for _ in range(3):
        through.step(batch)

    torch.manual_seed(99)  # another process
    resumed = Learner(config, 4, total_steps=6)
    resumed.load_state_dict(*torch.load(tmp_path / "saved", weights_only=True))
    for _ in range(3):
        resumed.step(batch)
    assert resumed.steps == through.steps == 6
    assert torch.equal(resumed.sums, through.sums)  # of the epoch that was cut
    assert (resumed.epoch_steps, resumed.norms, resumed.clipped) == (6, through.norms, through.clipped)
    for ours, theirs in ((resumed.model, through.model), (resumed.kept, through.kept)):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name


def test_steps_and_ranks_have_a_randomness_of_their_own() -> None:
    batch = make_batch()
    config = TINY.model_copy(update={"optimizer": "sgd", "weight_decay": 0.0, "lr": 1e-30})  # nothing is learned

    def losses(rank: int) -> list[float]:
        learner = Learner(config, 4, total_steps=2, rank=rank)
        return [(learner.step(batch), learner.sums[1].item(), learner.start_epoch())[1] for _ in range(2)]

    first, again, other = losses(0), losses(0), losses(1)
    assert first == again
    assert len({*first, *other}) == 4


def test_no_decay_reaches_a_vector() -> None:
    model = StrokeClassifier(PRESETS["conv1d"], 5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, TrainConfig(lr=0.1, weight_decay=0.5)).step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim > 1 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)


def test_unknown_and_impossible_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainConfig(learning_rate=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="greater than 0"):
        TrainConfig(lr=-1)
    with pytest.raises(ValidationError, match="is for optimizer=adamw only"):
        TrainConfig(optimizer="sgd", weight_decay=0.1)


def two_halves(rank: int, address: str, out: str) -> None:
    """One of two DDP processes, which learns from its half of each batch."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    wrap: Callable[[nn.Module], nn.Module] = nn.parallel.DistributedDataParallel
    learner = Learner(SGD, 4, total_steps=20, rank=rank, wrap=wrap)
    batch = make_batch()
    for _ in range(5):
        learner.step(batch.slice(16 * rank, 16 * rank + 16))
    if rank == 0:
        torch.save(learner.model.state_dict(), out)
    dist.destroy_process_group()


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    mp.start_processes(
        two_halves, (f"file://{tmp_path}/rendezvous", str(tmp_path / "weights")), nprocs=2, start_method="spawn"
    )
    alone = Learner(SGD, 4, total_steps=20)
    for _ in range(5):
        alone.step(make_batch())
    together = torch.load(tmp_path / "weights", weights_only=True)
    for name, tensor in alone.model.state_dict().items():
        # The mean of two halves' means is rounded otherwise than the mean of the whole.
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-6)
    assert math.isfinite(float(alone.sums[1]))
