"""Words to a webhook when a study ends, has its first failure, or has spent its budget.

The URL is that of $STUDY_WEBHOOK and stands in no sweep file, for those of chat services are secrets. What is sent is
JSON with the field `text`, which Slack, Mattermost and their like show, beside fields for programs.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal

import urllib3

from study.ledger import Ledger
from study.watcher import Watcher
from trainables.settings_file import SettingsError

VARIABLE = "STUDY_WEBHOOK"
TIMEOUT_SECONDS = 5.0
RETRIES = urllib3.Retry(2, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None)

Event = Literal["finished", "stopped", "budget", "failure", "error"]

logger = logging.getLogger(__name__)


class Webhook(Watcher):
    """Who listens at $STUDY_WEBHOOK, if anybody. One that does not answer delays the end of the study by seconds.

    Raises SettingsError for what is no URL of a web server.
    """

    def __init__(self, study: str, ledger: Ledger) -> None:
        self._study, self._ledger = study, ledger
        self._url = os.environ.get(VARIABLE)
        if self._url and not self._url.startswith(("https://", "http://")):
            raise SettingsError([f"${VARIABLE} must be the URL of a web server, such as https://chat.example/hooks/1"])
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # its warnings show the URL
        self._failed = False  # a trial, in this run
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="webhook")

    def __enter__(self) -> Webhook:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.send("error", f"ended by an error: {error}")
        self._sender.shutdown()

    def trial_ended(self, trial: str) -> None:
        """Tells of the first trial that fails; the others stand in the report."""
        if not self._url or self._failed:
            return
        ended = self._ledger.trial(self._study, trial)
        if ended.status == "failed":
            self._failed = True
            self.send("failure", f"{trial} failed: {ended.cause}")

    def send(self, event: Event, text: str) -> None:
        """In a thread, so that nothing waits for it."""
        if self._url:
            content = {"text": f"study {self._study}: {text}", "event": event, "study": self._study}
            self._sender.submit(_post, self._url, {**content, "trials": self._ledger.count(self._study)})


def _post(url: str, content: dict[str, object]) -> None:
    """Errors are told without the URL."""
    try:
        with urllib3.PoolManager(timeout=TIMEOUT_SECONDS, retries=RETRIES) as pool:
            status = pool.request("POST", url, json=content, redirect=False).status
        problem = f"answered {status}" if status >= 300 else None
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        problem = f"did not answer ({type(error).__name__})"
    if problem:
        logger.warning("the webhook of $%s %s; it was to hear: %s", VARIABLE, problem, content["text"])
