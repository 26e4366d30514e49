"""The versions table: what may stand in it, that all that is wrong is told at once, and the one delivered."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from saferclip.downloads import check_names, only_file, read_table, row_json
from saferclip.downloads.table import COLUMNS, replace_cells
from saferclip.io import DataError

ROOT = Path(__file__).parents[2]
DELIVERED = ROOT / "config/versions.csv"
GATED = {"visu-text", "llm-editor"}
HEADER = ",".join(COLUMNS)


def write(path: Path, *lines: str, header: str = HEADER, end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in (header, *lines)).encode())
    return path


def test_the_delivered_table_is_valid() -> None:
    rows = read_table(DELIVERED)
    assert set(rows) >= GATED
    for name, row in rows.items():
        assert row.licence, name
        assert row.terms.startswith("https://"), name
        assert ("gated" in row.note) == (name in GATED), name


def test_delivered_models_are_fetched_without_pickles() -> None:
    """All files would include the same weights as pickles."""
    models = [row for row in read_table(DELIVERED).values() if row.kind == "hf-model"]
    assert models
    for row in models:
        assert row.files, row.name
        assert not any(pattern.endswith((".bin", ".pt", ".ckpt", "*")) for pattern in row.files), row.name


def test_kinds(tmp_path: Path) -> None:
    commit, digest = "a" * 40, "b" * 64
    path = write(
        tmp_path / "t.csv",
        f"model,hf-model,org/name,{commit},,,*.json; unet/*,mit,,",
        "",
        f'file,url,https://a.example/b/c%20d.zip?x=1,,{digest},12,,"of, the owners",,',
        "pictures,folder,pictures of spoons,,,,,own,https://a.example,",
    )
    rows = read_table(path)
    assert list(rows) == ["model", "file", "pictures"]
    assert rows["model"].files == ("*.json", "unet/*")
    assert (rows["file"].bytes, rows["file"].file_name, rows["file"].licence) == (12, "c d.zip", "of, the owners")
    assert rows["pictures"].revision == ""


def test_every_problem_is_told_with_its_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "Big Name,hf-model,org/name,,,,,mit,,",
        "a,model,org/name,,,,,mit,,",
        "b,hf-model,name,main,,,,mit,,",
        "c,url,ftp://a.example/x,,abc,many,,mit,,",
        "d,url,https://a.example/x," + "a" * 40 + ",,,,,,",
        "e,folder,,,,,,mit,,",
        "f,hf-model,org/name,,,,mit",
        "g,hf-model,org/name,,,,,mit,,",
        "g,hf-model,org/name,,,,,mit,,",
    )
    with pytest.raises(DataError) as caught:
        read_table(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "9 problem(s) in the versions table"
    expected = [
        ("line 2: column 'name'", "use small letters"),
        ("line 3: column 'kind'", "write hf-model, hf-dataset, url or folder (found: 'model')"),
        ("line 4: column 'revision'", "the full commit hash"),
        ("line 5: column 'sha256'", "64 characters"),
        ("line 5: column 'bytes'", "whole number"),
        ("line 6: column 'licence'", "write the licence, or 'unknown'"),
        ("line 7: columns 'source' and 'terms'", "where to ask"),
        ("line 8: has 7 cells", "double quotes"),
        ("line 10: column 'name'", "another row"),
    ]
    for place, remedy in expected:
        assert any(f"{path}: {place}" in line and remedy in line for line in lines), place


def test_cells_that_do_not_go_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "a,hf-model,name,,,,,mit,,",
        "b,url,ftp://a.example/x," + "a" * 40 + ",,,*.json,mit,,",
        "c,hf-model,org/name,," + "b" * 64 + ",,,mit,,",
    )
    with pytest.raises(DataError) as caught:
        read_table(path)
    _, first, second, third = str(caught.value).splitlines()
    assert "line 2: column 'source': 'name' is no repository of the hub; write organisation/name" in first
    assert "line 3: column 'revision': means nothing for kind 'url'" in second
    assert "column 'files'" in second
    assert "column 'source'" in second
    assert "line 4: column 'sha256': means nothing for kind 'hf-model'" in third


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("sha256", "sha-256"), "column 'sha-256': unknown; did you mean 'sha256'?"),
        (HEADER.replace(",note", ""), "column 'note': missing; add it"),
        (HEADER + ",name", "column 'name': there are several"),
    ],
)
def test_the_header_is_checked(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path / "t.csv", header=header))
    assert message in str(caught.value)


def test_files_that_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(DataError, match=r"cannot be read.*downloads\.table"):
        read_table(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        read_table(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(path)
    write(path, 'a,"b')
    with pytest.raises(DataError, match=r"line 2: not CSV"):
        read_table(path)


def test_only_what_decides_the_bytes_is_a_parameter(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    before = row_json(write(path, "a,hf-model,org/name,,,,,mit,,"), "a")
    assert row_json(write(path, "a,hf-model,org/name,,,,,apache,https://a.example,new words"), "a") == before
    assert row_json(write(path, "a,hf-model,org/name," + "a" * 40 + ",,,,mit,,"), "a") != before
    with pytest.raises(DataError, match=r"there is no row 'aa'; did you mean 'a'\?"):
        row_json(path, "aa")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_changed_cells_leave_all_else_as_it_is(tmp_path: Path, end: str) -> None:
    odd = '"b",url, https://a.example/x ,,"","",,"m""it", ,"two' + end + 'lines"'
    path = write(tmp_path / "t.csv", odd, "", "a,hf-model,org/name,,,,x;y,mit,,é", header="\ufeff" + HEADER, end=end)
    before = path.read_bytes()
    replace_cells(path, {})
    assert path.read_bytes() == before
    replace_cells(path, {"a": {"revision": "c" * 40}})
    assert path.read_bytes() == before.replace(b"org/name,,", b"org/name," + b"c" * 40 + b",")
    assert read_table(path)["a"].revision == "c" * 40


def test_only_file(tmp_path: Path) -> None:
    (tmp_path / "deep/.cache").mkdir(parents=True)
    for name in ("deep/a.onnx", "deep/.b.onnx", "deep/.cache/c.onnx", "d.json"):
        (tmp_path / name).touch()
    wanted = tmp_path / "deep/a.onnx"
    assert only_file(wanted, [".onnx"]) == wanted
    assert only_file(tmp_path, [".onnx", ".pt"]) == wanted
    (tmp_path / "B.ONNX").touch()
    cases = [
        (tmp_path, [".onnx"], r"has 2 \.onnx files \(B\.ONNX, deep/a\.onnx\); name one in downloads\.local"),
        (tmp_path, [".pt", ".p"], r"has no \.pt or \.p file"),
        (tmp_path / "d.json", [".onnx"], r"is no \.onnx file"),
        (tmp_path / "none", [".onnx"], "does not exist; fetch it"),
    ]
    for path, suffixes, message in cases:
        with pytest.raises(DataError, match=message):
            only_file(path, suffixes)


def test_names_that_mean_nothing_are_told_at_once() -> None:
    check_names(DELIVERED, ["smid", "own"], ["own", "ucf101"])  # by the table, by the user, by both
    with pytest.raises(DataError) as caught:
        check_names(DELIVERED, ["visu-txt", "smid"], ["smd"])
    problems = str(caught.value).splitlines()
    assert len(problems) == 3
    assert "no row 'visu-txt'; did you mean 'visu-text'?" in problems[1]
    assert "downloads.local.smd: " in problems[2] and "did you mean 'smid'?" in problems[2]


def test_importing_it_is_cheap() -> None:
    """The Snakefile does."""
    script = "import sys, saferclip.downloads; print({'torch', 'huggingface_hub', 'requests'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


def test_the_delivered_table_is_plain(tmp_path: Path) -> None:
    """Written as the csv module writes it, so that pinning a row changes that row's cells only."""
    with DELIVERED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    copy = tmp_path / "copy.csv"
    with copy.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    assert copy.read_bytes() == DELIVERED.read_bytes()
