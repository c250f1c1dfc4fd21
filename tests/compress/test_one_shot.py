"""Networks that bench and tune prune: the same from the same words, and files that say which."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tvmopt.compress import saved
from tvmopt.compress.one_shot import OneShot
from tvmopt.errors import ModelError, UsageError
from tvmopt.model import load_model
from tvmopt.options import BuildOptions


def test_the_same_words_make_the_same_network_under_the_same_name(tmp_path: Path) -> None:
    made = OneShot.of(None, "block", 0.8, BuildOptions())
    path = made.write(load_model("digits_cnn"), tmp_path)
    assert path == tmp_path / "digits_cnn-block-16x1-0.8.pt2"
    file, again = load_model(str(path)), made.load()
    assert file.log_name == again.log_name and file.digest == again.digest
    for name, weight in file.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name
    # The file is of a folder that goes away; what it was made from stays.
    assert again.spec == "digits_cnn --sparsity 0.8 --method block-16x1"
    assert OneShot.of_model(file) == OneShot.of_model(again) == made


def test_batch_and_shape_are_among_the_words() -> None:
    made = OneShot.of("digits_cnn", "2:4", 0.5, BuildOptions(batch=2, input_shape=(1, 12, 12)))
    assert made.arguments == "digits_cnn --batch 2 --input-shape 1,12,12 --sparsity 0.5 --method 2:4"
    assert made.load().input_shape == (2, 1, 12, 12)
    assert OneShot.from_json(json.loads(json.dumps(made.to_json()))) == made
    spaced = OneShot("my nets/net.py:make", "block-16x1", 0.9)
    assert spaced.arguments == "'my nets/net.py:make' --sparsity 0.9 --method block-16x1"


def test_what_cannot_be_pruned_is_one_line(tmp_path: Path) -> None:
    for method, sparsity, said in (("ice", 0.5, "unknown pruning method"), ("2:4", 0.8, "is always 0.5")):
        with pytest.raises(UsageError, match=said):
            OneShot.of("digits_cnn", method, sparsity, BuildOptions())
    path = OneShot("digits_cnn", "block-16x1", 0.8).write(load_model("digits_cnn"), tmp_path)
    with pytest.raises(ModelError, match="exported program"):
        OneShot(str(path), "block-16x1", 0.8).load()
    with pytest.raises(ModelError, match="damaged"):
        OneShot.from_json({"spec": "digits_cnn"})


def test_other_files_are_not_made_in_one_shot(tmp_path: Path) -> None:
    model, path = load_model("digits_cnn"), tmp_path / "trained.pt2"
    assert OneShot.of_model(model) is None
    saved.save(model.module, model.example_inputs, path, saved.record_of(model.module, "block-16x1", 0.8, {}, 1))
    assert OneShot.of_model(load_model(str(path))) is None
