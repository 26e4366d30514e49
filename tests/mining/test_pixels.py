"""Images decoded once, in order, into a file of which single ones are read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Resize

from saferclip import io, models
from saferclip.mining import pixels

SHAPE = torch.Size((4, 5, 3))
COUNTS = {"safe_image": 3, "unsafe_image": 2}
MADE_OF = {"table_sha256": "a", "preprocessing": "b"}


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (45, 70), (90, 31)])
def test_pixels_equal_the_models_own_preprocessing(tiny_clip_folder: Path, size: tuple[int, int]) -> None:
    preprocess = models.load(tiny_clip_folder).preprocess
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    to_pixels, normalise = pixels.split_preprocess(preprocess)
    for image in (Image.fromarray(noise), Image.fromarray(noise).convert("L")):
        found = to_pixels(image)
        assert found.dtype == torch.uint8 and found.shape == (32, 32, 3)
        assert torch.equal(normalise(found.permute(2, 0, 1).unsqueeze(0).float() / 255)[0], preprocess(image))


def test_preprocessing_without_normalisation_is_refused() -> None:
    with pytest.raises(io.DataError, match="does not end in a normalisation"):
        pixels.split_preprocess(Compose([Resize(8)]))


@pytest.mark.parametrize("threads", [1, 3])
def test_images_are_decoded_in_order_across_blocks(
    tiny_clip_folder: Path, tiny_quadruples: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Withheld ones are left out."""
    path = tiny_quadruples(11, "train")
    rows = io.read_table(path).to_pylist()
    for number, row in enumerate(rows):
        row["safe_image"] = row["safe_image"]["bytes"]
        row["unsafe_image"] = None if number in (0, 4) else row["unsafe_image"]["bytes"]
    io.write_table(path, rows)
    monkeypatch.setattr(pixels, "READ_ROWS", 3)
    to_pixels, _ = pixels.split_preprocess(models.load(tiny_clip_folder).preprocess)
    cells = [cell for cell in io.read_table(path)["unsafe_image"].to_pylist() if cell]
    found = list(pixels.decoded(path, "unsafe_image", to_pixels, threads))
    assert len(found) == 9
    expected = [to_pixels(io.decode_image(cell)) for cell in cells]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_broken_image_is_named() -> None:
    with pytest.raises(io.DataError, match=r"^table: row 5: the image cannot be decoded"):
        pixels.decode({"bytes": b"not a picture", "path": None}, "table: row 5")


@pytest.fixture
def readers() -> Callable[[], set[threading.Thread]]:
    """A function -> threads that a test has started and that are still there."""
    before = set(threading.enumerate())
    return lambda: set(threading.enumerate()) - before


def test_results_come_in_order_though_later_work_is_done_first(readers: Callable[[], set[threading.Thread]]) -> None:
    turn = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert turn.wait(60)
        if item == 1:
            turn.set()
        return item

    assert list(pixels.ahead(work, range(20), 2, 3)) == list(range(20))
    assert not readers()


def test_no_more_is_prepared_than_asked_for(readers: Callable[[], set[threading.Thread]]) -> None:
    begun: list[int] = []
    found = pixels.ahead(lambda item: begun.append(item) or item, range(100), 2, 3)
    assert not begun, "nothing before the first is asked for"
    assert next(found) == 0
    while len(begun) < 4:
        time.sleep(0.01)
    found.close()
    assert sorted(begun) == [0, 1, 2, 3]
    assert not readers(), "threads end with the iterator"


def test_an_error_comes_where_its_result_would(readers: Callable[[], set[threading.Thread]]) -> None:
    def work(item: int) -> int:
        if item == 2:
            raise io.DataError("item 2")
        return item

    found = pixels.ahead(work, range(9), 2, 4)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(io.DataError, match="item 2"):
        next(found)
    assert not readers()


@pytest.fixture
def images() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        column: torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
        for column, count in COUNTS.items()
    }


@pytest.fixture
def file(images: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    with pixels.writing(tmp_path / "pixels.safetensors", COUNTS, SHAPE, MADE_OF) as writer:
        for column in images.values():
            for image in column:
                writer.add(image)
    return tmp_path / "pixels.safetensors"


def test_the_file_is_one_that_safetensors_reads(file: Path, images: dict[str, torch.Tensor]) -> None:
    found = io.read_tensors(file)
    assert found.keys() == {*COUNTS, *(f"{column}.crc32" for column in COUNTS)}
    assert all(torch.equal(found[column], images[column]) for column in COUNTS)


def test_single_images_are_read(file: Path, images: dict[str, torch.Tensor]) -> None:
    reader = pixels.PixelFile(file, COUNTS, SHAPE, MADE_OF)
    for column, places in (("safe_image", [2, 0, 2]), ("unsafe_image", [1]), ("unsafe_image", [])):
        found = np.zeros((len(places), *SHAPE), dtype=np.uint8)
        reader.read(column, places, found)
        assert np.array_equal(found, images[column][places].numpy())


def test_a_file_that_lacks_images_is_not_written(images: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="1 images instead of 5"),
        pixels.writing(tmp_path / "pixels", COUNTS, SHAPE, MADE_OF) as writer,
    ):
        writer.add(images["safe_image"][0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_changed_byte_is_found_when_its_image_is_read(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    size = SHAPE.numel()
    content[len(content) - (5 - place) * size + 7] ^= 1
    file.write_bytes(content)
    reader = pixels.PixelFile(file, COUNTS, SHAPE, MADE_OF)
    for other in {0, 1, 2} - {place}:
        reader.read("safe_image", [other], np.empty((1, *SHAPE), dtype=np.uint8))
    with pytest.raises(io.DataError, match=rf"pixels\.safetensors: image {place} of safe_image is damaged; remove"):
        reader.read("safe_image", [place], np.empty((1, *SHAPE), dtype=np.uint8))


def test_a_file_cut_short_is_refused_also_while_it_is_in_use(file: Path) -> None:
    reader = pixels.PixelFile(file, COUNTS, SHAPE, MADE_OF)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(io.DataError, match="image 1 of unsafe_image is damaged"):
        reader.read("unsafe_image", [0, 1], np.empty((2, *SHAPE), dtype=np.uint8))
    with pytest.raises(io.DataError, match=r"pixels\.safetensors: cannot be read as safetensors"):
        pixels.PixelFile(file, COUNTS, SHAPE, MADE_OF)


@pytest.mark.parametrize("difference", ["table_sha256", "preprocessing"])
def test_a_file_made_of_something_else_is_refused(file: Path, difference: str) -> None:
    with pytest.raises(io.DataError, match=r"pixels\.safetensors: made of another table, or for another model"):
        pixels.PixelFile(file, COUNTS, SHAPE, MADE_OF | {difference: "c"})


@pytest.mark.parametrize("counts", [{"safe_image": 2, "unsafe_image": 3}, {"safe_image": 3, "unsafe_image": 1}])
def test_a_file_of_other_images_is_refused(file: Path, counts: dict[str, int]) -> None:
    with pytest.raises(io.DataError, match=r"pixels\.safetensors: not \d images of \(4, 5, 3\) in \w+; embed again"):
        pixels.PixelFile(file, counts, SHAPE, MADE_OF)


def test_another_preprocessing_is_known_as_such() -> None:
    def resized(how: Image.Resampling, size: int = 32) -> pixels.ToPixels:
        return lambda image: torch.from_numpy(np.array(image.resize((size, size), how)))

    bicubic, again = (pixels.made_of("a", resized(Image.Resampling.BICUBIC)) for _ in range(2))
    assert bicubic == again
    assert bicubic != pixels.made_of("a", resized(Image.Resampling.BILINEAR))
    assert bicubic != pixels.made_of("a", resized(Image.Resampling.BICUBIC, 33))
    assert bicubic != pixels.made_of("b", resized(Image.Resampling.BICUBIC))
