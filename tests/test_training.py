"""The training loop, and the committed weights of the built-in network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tvmopt.data import Dataset, load_dataset
from tvmopt.errors import DataError, UsageError
from tvmopt.model import load_model
from tvmopt.models.digits_cnn import WEIGHTS, digits_cnn
from tvmopt.training.distill import SHARE, TEMPERATURE, distillation
from tvmopt.training.loop import evaluate, train
from tvmopt.training.train_digits import shift


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", split="train", limit=400)


def test_the_committed_weights_reach_their_accuracy_on_held_back_digits() -> None:
    assert evaluate(load_model("digits_cnn").module, load_dataset("digits")) >= 0.97
    assert WEIGHTS.stat().st_size < 300_000
    torch.load(WEIGHTS, weights_only=True)


def test_training_learns_reports_and_repeats(digits: Dataset) -> None:
    torch.manual_seed(0)
    start = digits_cnn().state_dict()
    runs = []
    for _ in range(2):
        module, seen = digits_cnn(), []
        module.load_state_dict(start)
        history = train(module, digits, epochs=3, seed=1, augment=shift, progress=seen.append, validation=digits)
        assert seen == history and [epoch.number for epoch in history] == [1, 2, 3]
        assert history[-1].loss < history[0].loss and not module.training
        assert history[-1].validation == evaluate(module, digits)
        runs.append([epoch.loss for epoch in history])
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
    assert history[-1].accuracy > 0.5


def test_a_teacher_counts_more_than_the_labels_and_stays_as_it_is(digits: Dataset, tmp_path: Path) -> None:
    teacher = load_model("digits_cnn").module
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    wrong = Dataset("digits", "train", digits.images, (digits.labels + 1) % 10, digits.classes)
    torch.manual_seed(0)
    module = digits_cnn()
    train(module, wrong, epochs=10, teacher=teacher, checkpoint=tmp_path / "a.ckpt")
    assert evaluate(module, digits) > 0.8 > 0.2 > evaluate(module, wrong)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with pytest.raises(DataError, match="with a teacher"):
        train(module, wrong, epochs=10, checkpoint=tmp_path / "a.ckpt")


def test_the_loss_of_distillation_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 5, 3, generator=generator)
    labels = torch.tensor([0, 1, 2, 1, 0])
    soft, target = torch.softmax(logits / TEMPERATURE, 1), torch.softmax(taught / TEMPERATURE, 1)
    divergence = (target * (target / soft).log()).sum(1).mean()
    hard = -torch.softmax(logits, 1)[range(5), labels].log().mean()
    expected = SHARE * TEMPERATURE**2 * divergence + (1 - SHARE) * hard
    torch.testing.assert_close(distillation(logits, taught, labels), expected)
    torch.testing.assert_close(distillation(taught, taught, labels), (1 - SHARE) * cross_entropy(taught, labels))


def test_evaluation_counts_by_hand_and_keeps_the_mode(digits: Dataset) -> None:
    module = digits_cnn().train()
    accuracy = evaluate(module, digits, batch=7)
    assert module.training
    predicted = module.eval()(digits.images).argmax(1)
    assert accuracy == pytest.approx(float((predicted == digits.labels).float().mean()))


def test_a_shift_moves_by_at_most_one_pixel() -> None:
    images = torch.zeros(64, 1, 8, 8)
    images[:, :, 4, 4] = 1
    moved = shift(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    positions = {(int(row), int(column)) for _, _, row, column in moved.nonzero()}
    assert positions == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_bad_input_is_refused(digits: Dataset) -> None:
    with pytest.raises(UsageError, match="epochs"):
        train(digits_cnn(), digits, epochs=0)
    empty = Dataset("digits", "train", digits.images[:0], digits.labels[:0], digits.classes)
    with pytest.raises(DataError, match="no images"):
        train(digits_cnn(), empty)
    with pytest.raises(DataError, match="no images"):
        evaluate(digits_cnn(), empty)
    with pytest.raises(DataError, match="not finite"):
        train(digits_cnn(), digits, epochs=2, lr=1e20)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvmopt.training.train_digits", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_script_writes_weights_that_load(tmp_path: Path) -> None:
    result = run_script("--epochs", "1", "-o", str(tmp_path / "new.pt"))
    assert result.returncode == 0 and "held-back digits" in result.stdout
    assert load_model("digits_cnn", weights=str(tmp_path / "new.pt")).digest == load_model().digest
    assert [path.name for path in tmp_path.iterdir()] == ["new.pt"]


def test_the_script_refuses_bad_input(tmp_path: Path) -> None:
    for arguments, code in ((["--epochs", "0"], 2), (["--epochs", "1", "-o", str(tmp_path / "no" / "x.pt")], 1)):
        result = run_script(*arguments)
        assert result.returncode == code and result.stderr.count("\n") == 1, result.stderr
