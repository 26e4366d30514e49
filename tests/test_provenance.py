"""A result says how it came about."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saferclip import provenance

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_provenance_is_plain_json_and_complete() -> None:
    settings = {"rank": 16, "weights": {"a": 0.1}}
    found = provenance.provenance(settings, seed=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["settings"] == settings
    assert found["settings_sha256"] == provenance.digest(settings)
    assert found["seed"] == 3
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["processor"]


def test_deterministic_steps_have_no_seed() -> None:
    assert provenance.provenance({})["seed"] is None


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_digest_does_not_depend_on_the_order_of_keys(values: dict[str, object]) -> None:
    backwards = dict(reversed(values.items()))
    assert provenance.digest(values) == provenance.digest(backwards)
    assert re.fullmatch(r"[0-9a-f]{64}", provenance.digest(values))


@given(JSON, JSON)
def test_digest_tells_values_apart(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (provenance.digest(one) == provenance.digest(other)) == same


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout in which the module seems to lie."""
    (tmp_path / "module.py").write_text("1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "module.py"))
    return tmp_path


def test_commit_is_told_in_full(checkout: Path) -> None:
    assert provenance.provenance({})["commit"] == git(checkout, "rev-parse", "HEAD")


def test_commit_is_told_even_where_a_tag_is_near(checkout: Path) -> None:
    git(checkout, "tag", "v1")
    assert provenance.provenance({})["commit"] == git(checkout, "rev-parse", "HEAD")


def test_changes_that_are_not_committed_show(checkout: Path) -> None:
    (checkout / "module.py").write_text("2\n")
    assert provenance.provenance({})["commit"] == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "module.py"))
    assert provenance.provenance({})["commit"] is None


def test_no_commit_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.provenance({})["commit"] is None
