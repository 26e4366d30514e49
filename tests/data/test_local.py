"""Tables of one's own: what is accepted, and that all that is wrong is told at once, with remedies."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from saferclip import io
from saferclip.config import DataSettings, LocalData
from saferclip.data import build, local, validation
from saferclip.io import DataError

COLUMNS = ("id", "category", "safe_caption", "unsafe_caption", "safe_image", "unsafe_image")
SPLITS = ("train", "validation", "test")

Row = dict[str, Any]


def encoded(kind: str = "JPEG", seed: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def quadruple(split: str, number: int) -> Row:
    return {
        "id": f"{split}-{number}",
        "category": "weapons",
        "safe_caption": f"A cat on mat {number}, purring",
        "unsafe_caption": f"A pistol on mat {number}",
        "safe_image": f"{split}/safe{number}.jpg",
        "unsafe_image": f"{split}/unsafe{number}.png",
    }


def write_csv(path: Path, rows: Iterable[Row], columns: Iterable[str] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Iterable[Row]) -> Path:
    pd.DataFrame(list(rows)).to_parquet(path)
    return path


class Pairs:
    """Three right tables of three rows each, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = {split: [quadruple(split, number) for number in range(3)] for split in SPLITS}
        for split, rows in self.rows.items():
            (folder / split).mkdir()
            for number, row in enumerate(rows):
                (folder / row["safe_image"]).write_bytes(encoded("JPEG", number))
                (folder / row["unsafe_image"]).write_bytes(encoded("PNG", number))
            write_csv(folder / f"{split}.csv", rows)
        self.settings: dict[str, Any] = {split: folder / f"{split}.csv" for split in SPLITS}

    def rewrite(self, split: str = "train", columns: Iterable[str] = COLUMNS) -> Path:
        return write_csv(self.settings[split], self.rows[split], columns)

    def build(self) -> Path:
        output = self.folder / "output"
        build.build(DataSettings(source="local", local=LocalData(**self.settings)), output)
        return output

    def problems(self) -> list[str]:
        """What is said of the tables, without the folder's name; nothing may have been written."""
        with pytest.raises(DataError) as caught:
            self.build()
        assert not (self.folder / "output").exists()
        head, *lines = str(caught.value).splitlines()
        shown = [line for line in lines if "... and" not in line]
        assert head.startswith(f"{len(shown)} problem") or len(shown) == validation.SHOWN
        return [line.strip().replace(f"{self.folder}/", "") for line in lines]

    def problem(self) -> str:
        (only,) = self.problems()
        return only


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    return Pairs(tmp_path)


def read(path: Path) -> list[Row]:
    return io.read_table(path).to_pylist()


# What is accepted -------------------------------------------------------------------------------


def test_tables_become_quadruples(pairs: Pairs) -> None:
    output = pairs.build()
    assert sorted(path.name for path in output.iterdir()) == ["test.parquet", "train.parquet", "validation.parquet"]
    for split in SPLITS:
        path = output / f"{split}.parquet"
        assert tuple(io.read_table(path).column_names) == io.QUADRUPLE_COLUMNS
        for found, given in zip(read(path), pairs.rows[split], strict=True):
            assert found["split"] == split
            assert all(found[name] == given[name] for name in ("id", "category", "safe_caption", "unsafe_caption"))
            # Upright RGB JPEG and PNG are kept as they are.
            for name in ("safe_image", "unsafe_image"):
                assert found[name] == {"bytes": (pairs.folder / given[name]).read_bytes(), "path": None}


def test_result_opens_with_datasets(pairs: Pairs, tmp_path: Path) -> None:
    data = Dataset.from_parquet(str(pairs.build() / "test.parquet"), cache_dir=str(tmp_path / "cache"))
    assert data[0]["safe_image"].size == (12, 8)
    assert data[2]["unsafe_caption"] == "A pistol on mat 2"


def test_image_root_is_where_paths_start(pairs: Pairs) -> None:
    pairs.settings["image_root"] = pairs.folder
    for split in SPLITS:
        elsewhere = pairs.folder / "tables" / split
        elsewhere.mkdir(parents=True)
        pairs.settings[split] = pairs.settings[split].rename(elsewhere / "table.csv")
    assert len(read(pairs.build() / "train.parquet")) == 3


def test_absolute_paths_inside_the_root_are_fine(pairs: Pairs) -> None:
    for row in pairs.rows["train"]:
        row["safe_image"] = str(pairs.folder / row["safe_image"])
    pairs.rewrite()
    assert len(read(pairs.build() / "train.parquet")) == 3


def test_absolute_paths_may_use_another_name_of_the_root(
    pairs: Pairs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alias = tmp_path_factory.mktemp("alias") / "pairs"
    alias.symlink_to(pairs.folder)
    for row in pairs.rows["train"]:
        row["safe_image"] = str(pairs.folder / row["safe_image"])
    pairs.rewrite()
    pairs.settings["image_root"] = alias
    assert len(read(pairs.build() / "train.parquet")) == 3


def test_paths_may_wind_and_follow_links_inside_the_root(
    pairs: Pairs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    storage = tmp_path_factory.mktemp("storage")
    (storage / "a.png").write_bytes(encoded("PNG"))
    (pairs.folder / "linked").symlink_to(storage)
    pairs.rows["train"][0]["safe_image"] = "train/../linked/a.png"
    pairs.rewrite()
    assert read(pairs.build() / "train.parquet")[0]["safe_image"]["bytes"] == encoded("PNG")


def test_category_is_optional_for_a_table_and_for_a_row(pairs: Pairs) -> None:
    pairs.rows["train"][1]["category"] = " "
    pairs.rewrite()
    pairs.rewrite("test", [name for name in COLUMNS if name != "category"])
    output = pairs.build()
    assert [row["category"] for row in read(output / "train.parquet")] == ["weapons", "unsafe", "weapons"]
    assert [row["category"] for row in read(output / "test.parquet")] == ["unsafe"] * 3


LABELS = ("caption_is_unsafe", "image_is_unsafe")


def test_labels_are_optional_for_a_table_and_for_a_cell(pairs: Pairs) -> None:
    for row, cells in zip(pairs.rows["train"], [("no", "1"), ("TRUE", ""), ("", " false ")], strict=True):
        row.update(zip(LABELS, cells, strict=True))
    pairs.rewrite(columns=(*COLUMNS, *LABELS))
    for row, value in zip(pairs.rows["test"], [True, False, None], strict=True):
        row["image_is_unsafe"] = value
    pairs.settings["test"] = write_parquet(pairs.folder / "test.parquet", pairs.rows["test"])
    output = pairs.build()
    assert [tuple(row[name] for name in LABELS) for row in read(output / "train.parquet")] == [
        (False, True),
        (True, True),
        (True, False),
    ]
    assert io.labels(output / "train.parquet", "caption_is_unsafe") == [False, True, True]
    assert io.labels(output / "test.parquet", "image_is_unsafe") == [True, False, True]
    assert io.labels(output / "test.parquet", "caption_is_unsafe") is None
    assert tuple(io.read_table(output / "validation.parquet").column_names) == io.QUADRUPLE_COLUMNS


def test_labels_that_say_neither(pairs: Pairs) -> None:
    for row, word in zip(pairs.rows["train"], ["maybe", "yes", "2"], strict=True):
        row["image_is_unsafe"] = word
    pairs.rewrite(columns=(*COLUMNS, "image_is_unsafe"))
    advice = "is neither yes nor no; write true or false, or leave it empty"
    assert pairs.problems() == [
        f"train.csv: line 2: image_is_unsafe: 'maybe' {advice}",
        f"train.csv: line 4: image_is_unsafe: '2' {advice}",
    ]


@pytest.mark.parametrize("name", ["caption_unsafe", "Caption Is Unsafe"])
def test_misspelt_label_is_not_passed_over(pairs: Pairs, name: str) -> None:
    pairs.rewrite(columns=(*COLUMNS, name, "unsafe_caption_url", "image_unsafe_score"))
    assert pairs.problem() == f"train.csv: column '{name}': rename it to 'caption_is_unsafe', or remove it"


def test_rows_may_lack_images_where_the_settings_keep_them(pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    pairs.settings["missing_images"] = "keep"
    pairs.rows["train"][0]["unsafe_image"] = ""
    pairs.rows["train"][2]["safe_image"] = "  "
    pairs.rewrite()
    pairs.rewrite("validation", [name for name in COLUMNS if name != "unsafe_image"])
    pairs.rows["test"][1]["safe_image"] = None
    pairs.settings["test"] = write_parquet(pairs.folder / "test.parquet", pairs.rows["test"])
    output = pairs.build()
    gaps = {
        split: [
            [row[name] is None for name in ("safe_image", "unsafe_image")] for row in read(output / f"{split}.parquet")
        ]
        for split in SPLITS
    }
    assert gaps == {
        "train": [[False, True], [False, False], [True, False]],
        "validation": [[False, True]] * 3,
        "test": [[False, False], [True, False], [False, False]],
    }
    assert "train.csv: 1 of 3 rows have no safe_image" in caplog.text
    assert "validation.csv: 3 of 3 rows have no unsafe_image" in caplog.text


def test_what_is_wrong_with_an_image_is_wrong_even_where_images_may_be_missing(pairs: Pairs) -> None:
    pairs.settings["missing_images"] = "keep"
    pairs.rows["train"][1]["unsafe_image"] = "train/elsewhere.png"
    (pairs.folder / "train" / "safe0.jpg").write_bytes(b"<html>")
    pairs.rows["train"][2]["safe_image_"] = pairs.rows["train"][2].pop("safe_image")
    pairs.rewrite()
    found = pairs.problems()
    assert any("line 3: unsafe_image: train/elsewhere.png does not exist" in line for line in found)
    assert any("line 2: safe_image: not a JPEG" in line for line in found)
    pairs.rewrite("train", ["id", "safe_caption", "unsafe_caption", "safe_image_", "unsafe_image"])
    assert "column 'safe_image': missing; rename 'safe_image_'?" in "".join(pairs.problems())


def test_other_columns_and_their_order_do_not_matter(pairs: Pairs) -> None:
    pairs.rewrite(columns=["photographer", *reversed(COLUMNS)])
    assert read(pairs.build() / "train.parquet")[0]["safe_caption"] == "A cat on mat 0, purring"


def test_text_is_trimmed_and_may_be_any_language(pairs: Pairs) -> None:
    pairs.rows["train"][0] |= {
        "id": " a ",
        "safe_caption": "  Eine Kätze – 猫 🐈\u2028 \n",
        "safe_image": " train/safe0.jpg",
    }
    pairs.rewrite()
    first = read(pairs.build() / "train.parquet")[0]
    assert (first["id"], first["safe_caption"]) == ("a", "Eine Kätze – 猫 🐈")


def test_csv_as_spreadsheets_write_it(pairs: Pairs) -> None:
    """A byte order mark, CRLF, a blank line at the end."""
    text = pairs.settings["train"].read_text(encoding="utf-8").replace("\n", "\r\n") + "\r\n"
    pairs.settings["train"].write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read(pairs.build() / "train.parquet")) == 3


def test_parquet_with_paths_and_whole_numbers_as_ids(pairs: Pairs) -> None:
    for number, row in enumerate(pairs.rows["train"]):
        row["id"] = number
    pairs.settings["train"] = write_parquet(pairs.folder / "train.parquet", pairs.rows["train"])
    assert [row["id"] for row in read(pairs.build() / "train.parquet")] == ["0", "1", "2"]


@pytest.mark.parametrize("embedded", [True, False])
def test_parquet_as_datasets_writes_it(pairs: Pairs, embedded: bool) -> None:
    """Images inside the table, or an image column that only names files."""
    rows = pairs.rows["train"]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in COLUMNS}
    for name in ("safe_image", "unsafe_image"):
        columns[name] = [{"path": str(pairs.folder / path), "bytes": None} for path in columns[name]]
        if embedded:
            columns[name] = [{"path": "x", "bytes": Path(cell["path"]).read_bytes()} for cell in columns[name]]
    kinds: dict[str, Any] = {name: Value("string") for name in COLUMNS}
    features = Features(kinds | {"safe_image": ImageFeature(), "unsafe_image": ImageFeature()})
    path = pairs.folder / "embedded.parquet"
    if embedded:
        Dataset.from_dict(columns, features=features).to_parquet(str(path))
    else:
        pd.DataFrame(columns).to_parquet(path)
    pairs.settings["train"] = path
    found = read(pairs.build() / "train.parquet")
    assert [row["safe_image"]["bytes"] for row in found] == [
        (pairs.folder / row["safe_image"]).read_bytes() for row in rows
    ]


def test_our_own_output_is_good_input(pairs: Pairs) -> None:
    first = pairs.build()
    pairs.settings = {split: first / f"{split}.parquet" for split in SPLITS}
    pairs.folder /= "again"
    again = pairs.build()
    for split in SPLITS:
        assert (again / f"{split}.parquet").read_bytes() == (first / f"{split}.parquet").read_bytes()


def test_many_rows_share_an_image_that_is_decoded_once(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO has five captions for one photograph."""
    pairs.rows["train"] = [
        {**quadruple("train", 0), "id": f"caption-{number}"} for number in range(2 * local.BATCH, 4 * local.BATCH)
    ]
    pairs.rewrite()
    looked_at: list[bytes] = []
    examine = local._picture_problem
    monkeypatch.setattr(local, "_picture_problem", lambda data: (looked_at.append(data), examine(data))[1])
    assert len(read(pairs.build() / "train.parquet")) == 2 * local.BATCH
    # At most once for each row of the first batch, whose rows are looked at side by side.
    assert len(looked_at) <= 2 * local.BATCH + 12


# What is refused: tables ------------------------------------------------------------------------


def test_missing_table(pairs: Pairs) -> None:
    pairs.settings["train"].unlink()
    assert pairs.problem() == "train.csv: does not exist; correct data.local in the config"


def test_unknown_table_type(pairs: Pairs) -> None:
    pairs.settings["test"] = pairs.settings["test"].rename(pairs.folder / "test.xlsx")
    assert pairs.problem() == "test.xlsx: unknown table type '.xlsx'; save it as .csv (with commas) or .parquet"


def test_no_rows(pairs: Pairs) -> None:
    pairs.rows["validation"] = []
    pairs.rewrite("validation")
    assert pairs.problem() == "validation.csv: has no rows; add some, or name another table in the config"


def test_empty_file(pairs: Pairs) -> None:
    pairs.settings["train"].write_bytes(b"")
    assert [line for line in pairs.problems() if "missing; the table has no columns" in line]


def test_one_table_for_two_splits(pairs: Pairs) -> None:
    pairs.settings["test"] = pairs.folder / "train" / ".." / "train.csv"
    assert pairs.problem().endswith("train.csv: is named for train and test; each needs rows of its own")


def test_missing_column_with_the_likely_one(pairs: Pairs) -> None:
    for row in pairs.rows["train"]:
        row["Caption Safe"] = row["safe_caption"]
    pairs.rewrite(columns=["id", "Caption Safe", "unsafe_caption", "unsafe_image"])
    assert pairs.problems() == [
        "train.csv: column 'safe_caption': missing; rename 'Caption Safe'?",
        "train.csv: column 'safe_image': missing; the table has id, Caption Safe, unsafe_caption, unsafe_image",
    ]


def test_misspelt_optional_column_is_not_passed_over(pairs: Pairs) -> None:
    pairs.rewrite(columns=[*COLUMNS[2:], "id", "categroy"])
    assert pairs.problem() == "train.csv: column 'categroy': rename it to 'category', or remove it"


def test_column_that_is_there_twice(pairs: Pairs) -> None:
    path = pairs.settings["train"]
    header, rest = path.read_text().split("\n", 1)
    path.write_text(f"{header},id\n{rest}")
    assert "train.csv: column 'id': there are several; rename or remove the others" in pairs.problems()


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators(pairs: Pairs, separator: str) -> None:
    path = pairs.settings["train"]
    path.write_text("\n".join(separator.join(COLUMNS) for _ in range(2)))
    assert pairs.problem() == "train.csv: line 1: one column only; separate columns with commas"


def test_wrong_encoding_names_the_line(pairs: Pairs) -> None:
    path = pairs.settings["train"]
    path.write_bytes(path.read_bytes().replace(b"mat 1, purring", "mat 1, ein Kätzchen".encode("latin-1")))
    assert pairs.problem() == "train.csv: line 3: not UTF-8 text; save the table as 'CSV UTF-8'"


def test_csv_with_a_stray_quote(pairs: Pairs) -> None:
    with pairs.settings["train"].open("a") as file:
        file.write('x,weapons,"A cat" on a mat,b,c,d\n')
    assert pairs.problem().startswith("train.csv: line 5: not CSV (")
    assert pairs.problem().endswith("check its double quotes")


def test_caption_with_a_comma_outside_quotes(pairs: Pairs) -> None:
    with pairs.settings["train"].open("a") as file:
        file.write("x,weapons,A cat, purring,A pistol,train/safe0.jpg,train/unsafe0.png\n")
    assert "train.csv: line 5: more cells than columns: put captions that contain commas in double quotes" in (
        pairs.problems()
    )


def test_row_that_is_too_short(pairs: Pairs) -> None:
    with pairs.settings["train"].open("a") as file:
        file.write("x,weapons,A cat,A pistol,train/safe0.jpg\n")
    assert pairs.problem().startswith("train.csv: line 5: unsafe_image: no image; every quadruple needs both images")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,safe_caption"])
def test_parquet_that_is_none(pairs: Pairs, content: bytes) -> None:
    pairs.settings["train"] = pairs.folder / "train.parquet"
    pairs.settings["train"].write_bytes(content)
    assert pairs.problem().startswith("train.parquet: cannot be read as Parquet (")


def test_parquet_that_is_damaged_inside(pairs: Pairs) -> None:
    path = write_parquet(pairs.folder / "train.parquet", pairs.rows["train"])
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    pairs.settings["train"] = path
    assert pairs.problem().startswith("train.parquet: cannot be read as Parquet (")


# What is refused: text --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "   ", "\t"])
@pytest.mark.parametrize("column", ["id", "safe_caption", "unsafe_caption"])
def test_empty_text(pairs: Pairs, column: str, text: str) -> None:
    pairs.rows["train"][1][column] = text
    pairs.rewrite()
    assert pairs.problem() == f"train.csv: line 3: {column}: empty; write something, or remove the row"


def test_duplicate_id_within_a_table_and_across_tables(pairs: Pairs) -> None:
    pairs.rows["train"][2]["id"] = "train-0"
    pairs.rows["test"][0]["id"] = " train-1 "
    pairs.rewrite()
    pairs.rewrite("test")
    assert pairs.problems() == [
        "train.csv: line 4: id: 'train-0' is the id of train.csv, line 2 too; ids must differ, across all tables",
        "test.csv: line 2: id: 'train-1' is the id of train.csv, line 3 too; ids must differ, across all tables",
    ]


def test_whole_number_and_text_are_the_same_id(pairs: Pairs) -> None:
    for number, row in enumerate(pairs.rows["train"]):
        row["id"] = number
    pairs.settings["train"] = write_parquet(pairs.folder / "train.parquet", pairs.rows["train"])
    pairs.rows["test"][0]["id"] = "2"
    pairs.rewrite("test")
    assert pairs.problem().startswith("test.csv: line 2: id: '2' is the id of train.parquet, row 2 too")


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("id", [0.0, 1.0, 2.0], "float"),
        ("id", [True, True, True], "bool"),
        ("safe_caption", [0, 0, 0], "int"),
        ("unsafe_caption", [["a"], ["a"], ["a"]], "list"),
        ("category", [1, 1, 1], "int"),
        ("safe_image", [7, 7, 7], "int"),
    ],
)
def test_parquet_cells_that_are_no_text(pairs: Pairs, column: str, values: list[Any], kind: str) -> None:
    for row, value in zip(pairs.rows["train"], values, strict=True):
        row[column] = value
    pairs.settings["train"] = write_parquet(pairs.folder / "train.parquet", pairs.rows["train"])
    found = pairs.problems()
    assert [line.split(": ")[:3] for line in found] == [["train.parquet", f"row {row}", column] for row in range(3)]
    assert all(f"is of type {kind}; make it text" in line for line in found)


def test_absent_values_in_parquet(pairs: Pairs) -> None:
    pairs.rows["train"][0] |= {"id": None, "safe_caption": None, "category": None, "unsafe_image": None}
    pairs.settings["train"] = write_parquet(pairs.folder / "train.parquet", pairs.rows["train"])
    found = pairs.problems()
    assert found[:2] == [
        f"train.parquet: row 0: {name}: empty; write something, or remove the row" for name in ("id", "safe_caption")
    ]
    assert found[2] == (
        "train.parquet: row 0: unsafe_image: no image; every quadruple needs both images: "
        "make the missing one, or remove the row"
    )
    assert len(found) == 3


@pytest.mark.parametrize("character", ["\0", "\n", "\r\n", "\t", "\x1b", "\x85"])
@pytest.mark.parametrize("column", ["id", "safe_caption", "category", "safe_image"])
def test_control_characters(pairs: Pairs, column: str, character: str) -> None:
    pairs.rows["train"][0][column] = f"a{character}b"
    pairs.settings["train"] = write_parquet(pairs.folder / "train.parquet", pairs.rows["train"])
    assert pairs.problem().startswith(f"train.parquet: row 0: {column}: 'a")
    assert f"holds the control character {character[0]!r}; remove it" in pairs.problem()


def test_characters_lost_earlier(pairs: Pairs) -> None:
    pairs.rows["train"][0]["safe_caption"] = "Eine K\N{REPLACEMENT CHARACTER}tze " + "x" * 100
    pairs.rewrite()
    assert "line 2: safe_caption: 'Eine K\N{REPLACEMENT CHARACTER}tze xxx" in pairs.problem()
    assert pairs.problem().endswith(
        "...  has lost characters".replace("  ", " ") + ("; open its source in the right encoding, save as UTF-8")
    )


# What is refused: images ------------------------------------------------------------------------


def spoil(pairs: Pairs, content: bytes) -> str:
    """What is said when the second row's safe image has this content."""
    (pairs.folder / "train/safe1.jpg").write_bytes(content)
    found = pairs.problem()
    assert found.startswith("train.csv: line 3: safe_image: ")
    return found.removeprefix("train.csv: line 3: safe_image: ")


def test_missing_image(pairs: Pairs) -> None:
    (pairs.folder / "train/safe1.jpg").unlink()
    assert pairs.problem() == (
        "train.csv: line 3: safe_image: train/safe1.jpg does not exist; correct the path, or set data.local.image_root"
    )


def test_image_that_is_a_folder(pairs: Pairs) -> None:
    pairs.rows["train"][1]["safe_image"] = "train"
    pairs.rewrite()
    assert pairs.problem() == "train.csv: line 3: safe_image: train is no file"


def test_image_root_that_is_no_folder_is_told_once_a_table(pairs: Pairs) -> None:
    pairs.settings["image_root"] = pairs.folder / "absent"
    assert pairs.problems() == ["data.local.image_root: absent is not a folder; correct it"] * 3


@pytest.mark.parametrize("path", ["../secret.jpg", "train/../../secret.jpg", "/etc/hostname", ".."])
def test_path_that_leads_out(pairs: Pairs, path: str) -> None:
    pairs.rows["train"][1]["safe_image"] = path
    pairs.rewrite()
    assert pairs.problem().startswith(f"train.csv: line 3: safe_image: '{path}' leads out of ")


def test_sibling_with_the_same_beginning_is_outside(pairs: Pairs) -> None:
    sibling = pairs.folder.with_name(f"{pairs.folder.name}-other")
    sibling.mkdir()
    (sibling / "a.jpg").write_bytes(encoded())
    pairs.rows["train"][1]["safe_image"] = f"../{sibling.name}/a.jpg"
    pairs.rewrite()
    assert "leads out of" in pairs.problem()


def test_address_instead_of_a_path(pairs: Pairs) -> None:
    pairs.rows["train"][1]["safe_image"] = "ftp://example.org/a.jpg"
    pairs.rewrite()
    assert pairs.problem().endswith("'ftp://example.org/a.jpg' is an address; download the image and give its path")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("filled", [False, True])
def test_truncated_jpeg(pairs: Pairs, options: dict[str, Any], share: float, filled: bool) -> None:
    """Also one whose rest is zeros, as an interrupted download may leave it."""
    buffer = BytesIO()
    Image.open(BytesIO(encoded("PNG", size=(300, 200)))).save(buffer, "JPEG", **options)
    whole = buffer.getvalue()
    cut = whole[: int(len(whole) * share)]
    message = spoil(pairs, cut.ljust(len(whole), b"\0") if filled else cut)
    assert message.startswith("damaged picture (")
    assert message.endswith("; copy it again or replace it")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_other_truncated_images(pairs: Pairs, kind: str) -> None:
    whole = encoded(kind, size=(300, 200))
    assert "copy it again or replace it" in spoil(pairs, whole[: len(whole) // 2])


def test_png_with_a_flipped_bit(pairs: Pairs) -> None:
    data = bytearray(encoded("PNG", size=(300, 200)))
    data[len(data) // 2] ^= 4
    assert spoil(pairs, bytes(data)).startswith("damaged picture (")


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"not a picture", b"<svg/>", b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_picture(pairs: Pairs, content: bytes) -> None:
    message = spoil(pairs, content)
    assert message.startswith("not a JPEG, PNG, WebP, BMP, GIF or TIFF picture; convert other formats")


def test_animation(pairs: Pairs) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert spoil(pairs, buffer.getvalue()) == "holds 3 pictures; save one of them alone"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [150, 60])
def test_decompression_bomb(pairs: Pairs, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Above its limit Pillow warns, above twice the limit it raises; both are errors here."""
    (pairs.folder / "train/safe1.jpg").write_bytes(encoded("PNG", size=(20, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    found = [line for line in pairs.problems() if "train.csv: line 3: safe_image" in line]
    assert len(found) == 1
    assert "too large (" in found[0]
    assert found[0].endswith("; make it smaller")


def test_damaged_image_inside_a_table(pairs: Pairs) -> None:
    rows = [
        {**row, "safe_image": {"bytes": encoded(), "path": None}, "unsafe_image": encoded("PNG")}
        for row in pairs.rows["train"]
    ]
    rows[2]["safe_image"] = {"bytes": encoded()[:200], "path": None}
    rows[1]["safe_image"] = {"bytes": None, "path": None}
    pairs.settings["train"] = write_parquet(pairs.folder / "train.parquet", rows)
    found = pairs.problems()
    assert len(found) == 2
    assert found[0].startswith("train.parquet: row 1: safe_image: no image; every quadruple needs both")
    assert found[1].startswith("train.parquet: row 2: safe_image: damaged picture (")


# All at once ------------------------------------------------------------------------------------


def test_all_problems_of_all_tables_are_told_at_once(pairs: Pairs) -> None:
    pairs.rows["train"][0]["safe_caption"] = ""
    pairs.rows["train"][2]["id"] = "train-1"
    pairs.rewrite()
    (pairs.folder / "train/unsafe1.png").write_bytes(b"nothing")
    pairs.rewrite("validation", ["id", "safe_caption", "unsafe_caption", "safe_image"])
    pairs.rows["test"][1]["unsafe_image"] = "test/absent.png"
    pairs.rewrite("test")
    assert [line.rsplit(":", 1)[0] for line in pairs.problems()] == [
        "train.csv: line 2: safe_caption",
        "train.csv: line 3: unsafe_image",
        "train.csv: line 4: id",
        "validation.csv: column 'unsafe_image'",
        "test.csv: line 3: unsafe_image",
    ]


def test_only_the_first_problems_are_shown_but_all_are_counted(pairs: Pairs) -> None:
    pairs.rows["train"] = [
        {**quadruple("train", 0), "id": f"caption-{number}", "safe_caption": ""} for number in range(120)
    ]
    pairs.rewrite()
    with pytest.raises(DataError) as caught:
        pairs.build()
    lines = str(caught.value).splitlines()
    assert lines[0] == "120 problems in the data; nothing was written"
    assert lines[-1].strip() == "... and 70 more"
    assert len(lines) == 2 + validation.SHOWN


def test_image_that_breaks_after_it_was_checked_is_still_named(pairs: Pairs) -> None:
    splits = local.quadruples(LocalData(**pairs.settings))
    (pairs.folder / "train/safe1.jpg").write_bytes(b"overwritten")
    with pytest.raises(DataError, match=r"train\.csv: line 3: safe_image: not a JPEG"):
        list(splits["train"])


# The guide --------------------------------------------------------------------------------------


def test_examples_of_the_guide_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs/own-pairs.md").read_text(encoding="utf-8")
    table, program = (re.findall(rf"```{kind}\n(.*?)```", guide, re.DOTALL) for kind in ("csv", "python"))
    assert (len(table), len(program)) == (1, 1)
    monkeypatch.chdir(tmp_path)
    for name in ("photos/0001.jpg", "photos/0002.jpg", "made/0001.png", "made/0002.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(encoded("JPEG" if name.endswith("jpg") else "PNG"))
    exec(program[0], {})
    for split, prefix in (("validation", "1"), ("test", "2")):
        Path(f"{split}.csv").write_text(re.sub("^0", prefix, table[0], flags=re.MULTILINE), encoding="utf-8")
    settings = LocalData(train=Path("train.parquet"), validation=Path("validation.csv"), test=Path("test.csv"))
    found = {split: list(rows) for split, rows in local.quadruples(settings).items()}
    assert [row["id"] for row in found["train"]] == ["0001"]
    assert [row["category"] for row in found["test"]] == ["weapons", "fire"]
    assert found["test"][0]["safe_caption"] == "A man with a camera, outdoors"


# Helpers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Safe Caption", "safe_caption"),
        ("caption-safe", "safe_caption"),
        ("safe_captoin", "safe_caption"),
        ("unsafecaption", "unsafe_caption"),
        ("photographer", None),
    ],
)
def test_nearest_name(name: str, expected: str | None) -> None:
    assert validation.nearest(name, ["safe_caption", "unsafe_caption", "id"]) == expected


def test_a_single_problem_is_told_in_the_singular() -> None:
    problems = validation.Problems()
    problems.check()
    problems.add("a.csv", "line 2", "wrong")
    check: Callable[[], None] = problems.check
    with pytest.raises(DataError, match=r"^1 problem in the data; nothing was written\n  a.csv: line 2: wrong$"):
        check()
