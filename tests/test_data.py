"""Data sets: preprocessing by hand, image folders, and what a missing or damaged set says."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tvmopt import data
from tvmopt.data import DATA_DIR_VARIABLE, SOURCES, default_dataset, load_dataset
from tvmopt.errors import DataError
from tvmopt.model import load_model

MNIST_DIR = Path(os.environ.get(DATA_DIR_VARIABLE) or Path(__file__).resolve().parents[2] / "shared" / "data")


def write_idx(root: Path, kind: str = "MNIST", count: int = 30) -> np.ndarray:
    """The four IDX files of an MNIST-like set of random images; returns the test images (uint8)."""
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return images


def write_folder(root: Path, size: tuple[int, int] = (40, 30)) -> Path:
    """Two classes of three plain-coloured images each, in train/ and val/."""
    from PIL import Image

    for split in ("train", "val"):
        for label, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
            (root / split / label).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", size, colour).save(root / split / label / f"{number}.png")
    return root


def refused(name: str, directory: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(name, directory, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_digits_are_split_once_and_for_all() -> None:
    train, test = load_dataset("digits", split="train"), load_dataset("digits")
    assert len(train) + len(test) == 1797 and len(test) == 359
    assert test.images.shape == (359, 1, 8, 8) and test.images.dtype == torch.float32
    assert test.labels.dtype == torch.int64 and test.classes == tuple("0123456789")
    assert int(torch.bincount(test.labels).min()) >= 34
    assert test.labels[:12].tolist() == load_dataset("digits").labels[:12].tolist()
    both = torch.cat([train.images, test.images])
    assert abs(float(both.mean())) < 2e-3 and abs(float(both.std()) - 1) < 2e-3


def test_a_limit_is_spread_over_the_set() -> None:
    whole, part = load_dataset("digits"), load_dataset("digits", limit=36)
    assert len(part) == 36 and torch.equal(part.images[1], whole.images[359 // 36])
    assert len(load_dataset("digits", limit=10_000)) == 359


def test_images_take_the_shape_of_the_model() -> None:
    gray, colour = load_dataset("digits", limit=4), load_dataset("digits", limit=4, input_shape=(3, 32, 32))
    assert colour.images.shape == (4, 3, 32, 32)
    assert torch.equal(colour.images[:, 0], colour.images[:, 2])
    same = load_dataset("digits", limit=4, input_shape=(9, 1, 8, 8))
    assert torch.equal(gray.images, same.images)


def test_the_default_belongs_to_the_model() -> None:
    assert default_dataset(load_model("digits_cnn")) == "digits"
    assert default_dataset(load_model("mnist_cnn")) == "mnist"
    assert default_dataset(load_model("mnist_cnn", input_shape=(1, 8, 8))) == "digits"


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files(tmp_path: Path, name: str, kind: str) -> None:
    pixels = write_idx(tmp_path, kind)
    loaded = load_dataset(name, tmp_path)
    source = SOURCES[kind.lower()]
    expected = (torch.from_numpy(pixels).float() / 255 - source.mean[0]) / source.std[0]
    torch.testing.assert_close(loaded.images[:, 0], expected)
    assert loaded.labels[:11].tolist() == [*range(10), 0] and len(loaded.classes) == 10


def test_the_data_directory_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    assert len(load_dataset("MNIST", limit=5)) == 5


@pytest.mark.skipif(not (MNIST_DIR / "MNIST" / "raw").is_dir(), reason=f"no MNIST under {DATA_DIR_VARIABLE}")
def test_the_real_mnist() -> None:
    loaded = load_dataset("mnist", MNIST_DIR)
    assert loaded.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(loaded.labels).tolist()[:3] == [980, 1135, 1032]
    assert abs(float(loaded.images.mean())) < 0.02


def test_cifar_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmopt.torchvision_compat import torchvision

    torchvision()
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3, 4, 5]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision unpickles nothing whose checksum is not the published one.
    assert "expected cifar-10-batches-py/" in refused("cifar10", tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    loaded = load_dataset("cifar10", tmp_path)
    expected = (pixels[2].reshape(3, 32, 32)[1] / 255 - 0.4822) / 0.2435
    np.testing.assert_allclose(loaded.images[2, 1].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mnist", "fashionmnist", "cifar10", "cifar100"])
def test_a_missing_set_says_where_it_was_looked_for(tmp_path: Path, name: str) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        message = refused(name, directory)
        assert str(directory) in message and "expected" in message


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    write_idx(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged" in refused("mnist", tmp_path)


def test_an_image_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "colours")
    loaded = load_dataset("colours", tmp_path, input_shape=(3, 16, 16))
    assert loaded.images.shape == (6, 3, 16, 16) and loaded.classes == ("blue", "red")
    assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 1]
    blue = [(0 - 0.485) / 0.229, (0 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(loaded.images[0].mean((1, 2)), torch.tensor(blue), rtol=1e-4, atol=1e-4)
    limited = load_dataset(str(tmp_path / "colours"), split="train", limit=2, input_shape=(1, 8, 8))
    assert limited.labels.tolist() == [0, 1] and limited.images.shape == (2, 1, 8, 8)
    # A folder of classes alone is one set.
    assert len(load_dataset(f"folder:{tmp_path / 'colours' / 'val'}", input_shape=(3, 8, 8))) == 6


def test_an_image_is_cropped_at_its_centre(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 48:80] = 255
    (tmp_path / "set" / "only").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "set" / "only" / "a.png")
    image = load_dataset("set", tmp_path, input_shape=(3, 56, 56)).images[0, 0]
    bright = (image > 1).float().mean(0)
    assert float(bright[28]) == 1 and float(bright[8]) == 0 and float(bright[47]) == 0


def test_a_bad_image_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "one directory per class" in refused("empty", tmp_path)
    write_folder(tmp_path / "colours")
    (tmp_path / "colours" / "val" / "red" / "0.png").write_bytes(b"not an image")
    assert "0.png is not a readable image" in refused("colours", tmp_path, input_shape=(3, 8, 8))
    import shutil

    shutil.rmtree(tmp_path / "colours" / "train")
    assert "no train split" in refused("colours", tmp_path, split="train")


def test_bad_options_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Did you mean mnist?" in refused("mnst", tmp_path)
    assert "train or test" in refused("digits", tmp_path, split="val")
    assert "at least 1" in refused("digits", tmp_path, limit=0)
    assert "C 1 or 3" in refused("digits", tmp_path, input_shape=(16, 8, 8))
    monkeypatch.setattr(data, "_MAX_BYTES", 1 << 20)
    assert "--limit" in refused("digits", tmp_path, input_shape=(3, 224, 224))
