"""The learner: its step, its schedule, its sums."""

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
from sketchray.batch import Batch
from sketchray.engine import RECIPES, Learner, TrainConfig, lr_at, make_optimizer, score, to_metrics
from sketchray.errors import RunError
from sketchray.model import PRESETS, StrokeClassifier
from sketchray.strokes import from_record

PLAIN = TINY.model_copy(
    update={"augment": AugmentConfig(), "model": TINY.model.model_copy(update={"dropout": 0.0}), "label_smoothing": 0.0}
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


def test_a_loss_that_is_no_number_names_its_first_step() -> None:
    batch = make_batch()
    learner = Learner(PLAIN, 4, total_steps=10)
    learner.step(batch)
    learner.check_finite()
    with torch.no_grad():
        learner.model.head.bias[0] = torch.nan
    learner.step(batch)
    learner.step(batch)
    with pytest.raises(RunError, match="in step 1 on rank 0; try a lower --lr"):
        learner.check_finite()


def test_the_sums_do_not_depend_on_the_batch_size() -> None:
    batch = make_batch()
    learner = Learner(TINY, 4, total_steps=1)  # with dropout, which evaluation leaves out
    whole = learner.evaluate([batch])
    ones = learner.evaluate(batch.slice(row, row + 1) for row in range(len(batch)))
    assert whole[0] == ones[0] == 32
    assert whole[2:].tolist() == pytest.approx(ones[2:].tolist())
    assert float(whole[1]) == pytest.approx(float(ones[1]), rel=1e-5)  # float32, rounded in another order


def test_a_learner_resumed_ends_with_the_weights_of_one_that_never_stopped(tmp_path: Path) -> None:
    batch = make_batch()
    through = Learner(TINY, 4, total_steps=6)  # with dropout, augmentation, clipping, momenta and a schedule
    for _ in range(3):
        through.step(batch)
    torch.save((through.model.state_dict(), through.state_dict()), tmp_path / "saved")
    for _ in range(3):
        through.step(batch)

    torch.manual_seed(99)  # another process
    resumed = Learner(TINY, 4, total_steps=6)
    resumed.load_state_dict(*torch.load(tmp_path / "saved", weights_only=True))
    resumed.start_epoch()
    for _ in range(3):
        resumed.step(batch)
    assert resumed.steps == through.steps == 6
    for name, tensor in through.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


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
