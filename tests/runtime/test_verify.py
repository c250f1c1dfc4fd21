"""What the check lets pass and what not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tvmopt.errors import VerificationError
from tvmopt.runtime.verify import TOLERANCES, check, tolerance


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 64, 16, 16))


def test_rounding_passes(reference: np.ndarray) -> None:
    verdict = check(reference.astype(np.float32), reference)
    assert verdict.ok
    assert 0 < verdict.rel_err < 1e-6
    assert check(torch.from_numpy(reference).float(), torch.from_numpy(reference)).ok


def test_one_per_cent_in_one_tile_is_caught(reference: np.ndarray) -> None:
    wrong = reference.astype(np.float32)
    wrong[:, 16:32, 3, 8:16] *= 1.01
    verdict = check(wrong, reference)
    assert not verdict.ok
    assert "error" in verdict.message
    with pytest.raises(VerificationError, match="conv3 is wrong"):
        verdict.require("conv3")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes(reference: np.ndarray, bad: float) -> None:
    wrong = reference.astype(np.float32)
    wrong[0, 0, 0, 0] = bad
    for dtype in TOLERANCES:
        assert not check(wrong, reference, dtype, output_dtype="float32").ok
    poisoned = reference.copy()
    poisoned[0, 0, 0, 0] = bad
    assert not check(wrong, poisoned).ok


def test_another_shape_dtype_or_number_of_outputs_never_passes(reference: np.ndarray) -> None:
    right = reference.astype(np.float32)
    assert "shape" in check(right[..., :8], reference).message
    assert "dtype float64" in check(reference, reference).message
    assert "outputs" in check([right, right], reference).message
    assert not check([], []).ok
    assert check({"a": right, "b": [right]}, (reference, reference)).ok


def test_integers_must_be_equal() -> None:
    numbers = np.arange(6)
    assert check(numbers, numbers).ok
    assert not check(numbers + (numbers == 3), numbers).ok
    assert not check(numbers.astype(np.int32), numbers).ok


def test_the_best_class_counts_only_where_pytorch_is_sure() -> None:
    allowed = tolerance("float32")
    scores = np.array([[1.0, 1.0 - allowed / 2, 0.0], [1.0, 1.0 - 1.5 * allowed, 0.0]])
    swapped = scores[:, [1, 0, 2]].astype(np.float32)
    assert check(swapped[:1], scores[:1]).ok
    # Within the tolerance value by value, if both move; but PyTorch was sure.
    moved = np.array([[1.0 - 0.8 * allowed, 1.0 - 0.7 * allowed, 0.0]], np.float32)
    assert not check(moved, scores[1:]).ok
    assert check(moved, scores[1:], top1=False).ok


def test_a_strategy_loosens_only_its_own() -> None:
    assert tolerance("float32", {"conv2d": "winograd"}) > tolerance("float32", {"conv2d": "gemm"})
    assert tolerance("float32", "winograd") == TOLERANCES["float32"]["winograd"]
    assert tolerance("float16") > tolerance("float32")


def test_bfloat16_tensors_are_understood(reference: np.ndarray) -> None:
    low = torch.from_numpy(reference).to(torch.bfloat16)
    assert check(low, reference, "bfloat16").ok
    assert not check(low, reference, "float32").ok
