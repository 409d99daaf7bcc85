"""Words to a webhook, received by a real web server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from study.notify import VARIABLE, Webhook
from tests.study.builders import crossing_at, open_study, run_trial, spec_of
from tests.study.webhooks import Listener, listening
from trainables.settings_file import SettingsError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    with listening() as found:
        monkeypatch.setenv(VARIABLE, found.url)
        yield found


def test_what_is_sent(server: Listener, tmp_path: Path) -> None:
    ledger = open_study(spec := spec_of(tmp_path))
    run_trial(ledger, spec, "fast", 0, curve=crossing_at(20))
    with Webhook("race", ledger) as webhook:
        webhook.send("finished", "finished. No difference.")
    trials = {"unfinished": 0, "finished": 1, "failed": 0, "stopped": 0}
    text = "study race: finished. No difference."
    assert server.heard == [{"text": text, "event": "finished", "study": "race", "trials": trials}]


def test_the_first_failure_is_told_and_no_other(server: Listener, tmp_path: Path) -> None:
    ledger = open_study(spec := spec_of(tmp_path))
    run_trial(ledger, spec, "fast", 0, curve=crossing_at(20))
    for number in (0, 1):
        rate = 1e-3 * (1 + number)
        run_trial(ledger, spec, "slow", number, curve={}, rate=rate, status="failed", cause=f"cause {number}")
    with Webhook("race", ledger) as webhook:
        for trial in ("fast-000", "slow-000", "slow-001"):
            webhook.trial_ended(trial)
    assert [(heard["event"], heard["text"]) for heard in server.heard] == [
        ("failure", "study race: slow-000 failed: cause 0")
    ]


def test_an_error_is_told_and_goes_on(server: Listener, tmp_path: Path) -> None:
    ledger = open_study(spec_of(tmp_path))
    with pytest.raises(ValueError, match="the disk is full"), Webhook("race", ledger):
        raise ValueError("the disk is full")
    assert [heard["event"] for heard in server.heard] == ["error"]
    with pytest.raises(KeyboardInterrupt), Webhook("race", ledger):
        raise KeyboardInterrupt
    assert len(server.heard) == 1, "who interrupts knows of it"


def test_a_server_that_is_busy_is_asked_again(server: Listener, tmp_path: Path) -> None:
    server.codes = [503, 429, 200]
    with Webhook("race", open_study(spec_of(tmp_path))) as webhook:
        webhook.send("budget", "a budget is spent")
    assert len(server.heard) == 3


@pytest.mark.parametrize("code", [302, 404])
def test_a_server_that_refuses_stops_nothing_and_its_url_stays_secret(
    server: Listener, tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    server.codes = [code]
    with Webhook("race", open_study(spec_of(tmp_path))) as webhook:
        webhook.send("finished", "finished.")
    assert f"the webhook of $STUDY_WEBHOOK answered {code}" in caplog.text
    assert "secret" not in caplog.text
    assert len(server.heard) == 1


def test_a_server_that_is_not_there_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:9/hooks/secret")  # discard: nothing listens there
    with Webhook("race", open_study(spec_of(tmp_path))) as webhook:
        webhook.send("finished", "finished.")
    assert "did not answer (MaxRetryError); it was to hear: study race: finished." in caplog.text
    assert "secret" not in caplog.text


def test_what_is_no_url_is_refused_without_being_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "ftp://secret")
    with pytest.raises(SettingsError) as error:
        Webhook("race", open_study(spec_of(tmp_path)))
    assert "$STUDY_WEBHOOK must be the URL of a web server" in error.value.errors[0]
    assert "secret" not in error.value.errors[0]


def test_without_one_nothing_is_sent(server: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    with Webhook("race", open_study(spec_of(tmp_path))) as webhook:
        webhook.send("finished", "finished.")
    assert server.heard == []
