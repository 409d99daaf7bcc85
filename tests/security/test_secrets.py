"""Passwords and tokens in URLs are shown to nobody. (A whole study: test_ray_cluster.py.)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.spec import read_spec, without_passwords
from tests.study.test_end_to_end import write_sweep
from trainables.settings_file import SettingsError

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"\\'<>"), min_size=8)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hidden@host/name", "postgresql://me:***@host/name"),
        ("postgresql+psycopg://me:hid/den@host:5432/name", "postgresql+psycopg://me:***@host:5432/name"),
        ("https://me:hid@den@host/", "https://me:***@host/"),
        ("https://:hidden@host/", "https://:***@host/"),
        ("https://hidden@host/path", "https://***@host/path"),
        ("postgresql://host/name?user=me&password=hidden", "postgresql://host/name?user=me&password=***"),
        ("https://host/?access_token=hidden#part", "https://host/?access_token=***#part"),
        ("two: http://a:hidden@b and http://c:hidden@d", "two: http://a:***@b and http://c:***@d"),
    ],
)
def test_the_secrets_of_a_url_are_hidden(url: str, shown: str) -> None:
    assert without_passwords(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////shared/results/mlflow.db",
        "sqlite:///me@home/mlflow.db",
        "https://host:5000/path?page=2",
        "a question: is 1:2 better than me@host?",
        '{"a": "http://host:80", "b": "me@host"}',
    ],
)
def test_text_without_secrets_stays(text: str) -> None:
    assert without_passwords(text) == text


@given(SECRETS, SECRETS)
def test_no_password_is_left_in_json(user: str, password: str) -> None:
    name = "".join(c for c in user if c not in ":/@?#&=")
    shown = without_passwords(
        json.dumps({"before": "x@y", "uri": f"https://{name}:{password}@host/path", "after": "z"})
    )
    assert json.loads(shown) == {"before": "x@y", "uri": f"https://{name}:***@host/path", "after": "z"}


@pytest.mark.parametrize(
    "override",
    [
        "mlflow.tracking_url=http://me:hidden@host",
        "mlflow=http://me:hidden@host",
        "mlflow.tracking_uri.of=http://me:hidden@host",
        "mlflow.tracking_uri=[http://me:hidden@host",
        "ledger=[postgresql://me:hidden@host]",
        "study=postgresql://me:hidden@host",
    ],
)
def test_errors_of_a_sweep_show_no_password(override: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_spec(QUICKSTART, [override])
    assert error.value.errors
    assert "hidden" not in str(error.value)


def test_the_spec_in_the_ledger_has_no_password(tmp_path: Path) -> None:
    corpus = {"kind": "prompts", "language": "es"}
    arms = {"only": {"trial": {"corpus": corpus, "regime": {"kind": "supervised", "train": {"steps": 2}}}}}
    sweep = write_sweep(
        tmp_path / "sweep.yaml",
        arms,
        mlflow={"tracking_uri": "http://me:hidden@host/?token=hidden"},
        ledger="postgresql+psycopg://me:hidden@host/name",
    )
    kept = json.loads(without_passwords(read_spec(sweep).model_dump_json()))
    assert kept["mlflow"]["tracking_uri"] == "http://me:***@host/?token=***"
    assert kept["ledger"] == "postgresql+psycopg://me:***@host/name"
