"""Whatever stands in a sweep file: it is read, or refused with errors that name file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.spec import read_spec
from tests.security.mutations import Tree, changed_bytes, changed_trees
from trainables.settings_file import SettingsError, parse_value

SWEEPS = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


def assert_read_or_refused(path: Path) -> None:
    for line in errors_of(path):
        assert re.match(rf"{re.escape(str(path))}:(\d+:\d+:)? ", line), line


def errors_of(path: Path) -> list[str]:
    try:
        read_spec(path, absent_is_fine=True)
    except SettingsError as error:
        return error.errors
    return []


@given(st.data())
@BOUNDED
def test_a_sweep_with_changed_values_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    tree: Tree = parse_value(data.draw(st.sampled_from(SWEEPS)).read_text("utf-8"))
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(data.draw(changed_trees(tree))), encoding="utf-8")
    assert_read_or_refused(path)


@given(st.data())
@BOUNDED
def test_a_sweep_with_changed_bytes_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    path = folder / "sweep.yaml"
    path.write_bytes(data.draw(changed_bytes(data.draw(st.sampled_from(SWEEPS)).read_bytes())))
    assert_read_or_refused(path)
