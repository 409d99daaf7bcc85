"""Every regime learns on real speech, and as it did when `tests/golden/regimes.json` was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.regimes import FILE, REGIMES, train

GOLDEN: dict[str, list[float]] = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that equal pre-trainings are trained once."""
    return tmp_path_factory.mktemp("golden")


def test_there_is_a_golden_curve_for_each_regime() -> None:
    assert GOLDEN.keys() == REGIMES.keys()


@pytest.mark.long
@pytest.mark.parametrize("name", REGIMES)
def test_a_regime_learns_on_real_speech_as_it_did(storage: Path, name: str) -> None:
    """Other processors round otherwise, and a hundred updates amplify it: the end is compared, not every point."""
    curve, golden = train(REGIMES[name], storage), GOLDEN[name]
    assert len(curve) == len(golden)
    assert curve[-1] < 0.7 * curve[0]
    assert curve[-1] == pytest.approx(golden[-1], abs=0.1)
