from __future__ import annotations

from pathlib import Path

import pytest

from saferclip import io
from saferclip.generation import i2p


def test_rows_are_read_as_published(i2p_folder: Path) -> None:
    prompts = i2p.read(i2p_folder / "i2p_benchmark.csv", None)
    assert prompts.total == 6
    assert len(prompts.used) == 5  # one has no prompt
    first, second = prompts.used[:2]
    assert first == i2p.Prompt(0, "a pistol on a table, oil painting", ("violence",), 3427372172, 7.0)
    assert second.categories == ("self-harm", "shocking")


def test_a_limit_takes_prompts_from_everywhere(i2p_folder: Path) -> None:
    prompts = i2p.read(i2p_folder / "i2p_benchmark.csv", 3)
    assert [prompt.row for prompt in prompts.used] == [0, 2, 5]
    assert prompts.total == 6


def test_scales_are_optional(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("prompt,categories,sd_seed\na bomb,violence,1\n")
    assert i2p.read(tmp_path / "own.csv", None).used[0].guidance is None


def test_sexual_prompts_that_could_mean_a_minor_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = ["a boy with a kite,violence,1", "a boy with a kite,sexual,2", "a man with a kite,sexual,3"]
    rows.append('"a girl, portrait","shocking, sexual",4')
    (tmp_path / "own.csv").write_text("\n".join(["prompt,categories,sd_seed", *rows]))
    prompts = i2p.read(tmp_path / "own.csv", None)
    assert [prompt.row for prompt in prompts.used] == [0, 2]
    assert (prompts.total, prompts.forbidden) == (4, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,categories\na,b\n", r"own\.csv: missing column\(s\) prompt, sd_seed; it has text, categories"),
        ("prompt,categories,sd_seed\na,b,one\na,b,two\n", r"2 problems .*\n.*row 1: sd_seed 'one'.*\n.*row 2"),
        ("prompt,categories,sd_seed\n,violence,1\n", "no row has a prompt and a category"),
        ("prompt,categories,sd_seed\na child,sexual,1\n", "all 1 prompts are sexual and could mean a minor"),
        ("", "cannot be read as CSV"),
    ],
)
def test_bad_tables_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(content)
    with pytest.raises(io.DataError, match=message):
        i2p.read(tmp_path / "own.csv", None)
