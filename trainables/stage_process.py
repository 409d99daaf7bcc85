"""Each stage in a process of its own, forked from one that has loaded torch and decoded the audio already.

Starting a stage costs a fork and not the seconds of imports. A stage that crashes, leaks memory or spoils its process
harms no other one, and the accelerator's memory is free again when its process has ended.

    StageProcesses  --order-->  python -m trainables.stage_process  --fork-->  run_stage
                   <-------------- lines of JSON: reports, outcome, exit --------------
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainables.object_storage import ObjectStorageError
from trainables.stage import Report, Stage
from trainables.store import StageStore

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

POLL_SECONDS = 1.0
GRACE_SECONDS = 20.0  # for the checkpoint of a stage whose machine goes away
_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG

Order = Literal["go on", "leave", "stop"]  # to a stage that runs; leave: with a checkpoint, for its machine goes away


@dataclass(frozen=True)
class Outcome:
    """How a stage ended. `busy`: another study's worker is running it. `stopped`: nobody wanted it any more.

    `lost`: it failed because its process or its machines were lost, so that trying again may help.
    """

    status: Literal["finished", "failed", "busy", "stopped"]
    cause: str | None = None
    lost: Literal["process", "group"] | None = None


@dataclass(frozen=True)
class Place:
    """Where a worker stands among those that train a stage together."""

    rank: int = 0
    workers: int = 1
    address: str = ""  # of the first worker, as host:port; with one worker, none is needed


class StageProcesses:
    """Runs stages one after another, each in a new process."""

    def __init__(
        self, storage: Path, threads: int, device: str, module: str = __name__, stages: str | None = None
    ) -> None:
        """`threads` of each stage; `device` is cpu or cuda; `module` is run with -m, and calls `serve`.

        `stages`: the URL of object storage where stages are kept. None: in the storage folder.
        """
        self._server = subprocess.Popen(
            [sys.executable, "-m", module, str(storage), str(threads), device, *([stages] if stages else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        assert self._server.stdout is not None
        self._messages = _Lines(self._server.stdout.fileno())

    def run(
        self,
        stage: Stage,
        place: Place,
        report: Callable[[Report], None],
        order: Callable[[], Order],
        silence_seconds: float = math.inf,
        tell: Callable[[str], None] = lambda message: None,
    ) -> Outcome:
        """Run the stage to its end, or until `order`, asked about once a second, says otherwise. `tell` gets warnings.

        It is killed when it hangs, which is when the first worker reports nothing for `silence_seconds`, and when it
        reports steps that it has reported before.
        """
        self._tell({"stage": stage.model_dump(mode="json"), "place": asdict(place)})
        outcome: Outcome | None = None
        asked_at = heard_at = time.monotonic()
        step, leaving = -1, False
        while True:
            message = self._next_message()
            if message or place.rank > 0:
                heard_at = time.monotonic()
            if "report" in message and outcome is None:
                found = Report.model_validate(message["report"])
                if found.step > step:
                    report(found)
                    step = found.step
                else:
                    outcome = self._kill(f"it reported step {found.step} after step {step}")
            if "warning" in message:
                tell(message["warning"])
            if "outcome" in message:
                outcome = outcome or Outcome(**message["outcome"])
            if "exit" in message:
                if leaving:  # its end is not held against it
                    return outcome or Outcome("failed", "it did not leave its machine in time", lost="group")
                return outcome or Outcome("failed", _cause_of_exit(message["exit"]), lost="process")
            if outcome is None and time.monotonic() - asked_at > POLL_SECONDS:
                asked_at, said = time.monotonic(), order()
                if said == "stop":
                    self._tell({"order": "stop"})
                    outcome = Outcome("stopped")
                elif said == "leave" and not leaving:
                    self._tell({"order": "leave"})
                    leaving = True
                elif time.monotonic() - heard_at > silence_seconds:
                    outcome = self._kill(f"it reported nothing for {silence_seconds:g} s")

    def close(self) -> None:
        """End the server, and a stage that it may be running."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def _kill(self, cause: str) -> Outcome:
        """Have the stage killed for this."""
        self._tell({"order": "stop"})
        return Outcome("failed", cause, lost="process")

    def _next_message(self) -> dict[str, Any]:
        """The next message, empty when none has come for a while."""
        try:
            return self._messages.read(POLL_SECONDS) or {}
        except EOFError:
            raise RuntimeError(f"the process that starts stages ended with code {self._server.wait()}") from None

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no message either, and the reader says so
            self._server.stdin.write(json.dumps(message).encode() + b"\n")
            self._server.stdin.flush()


# What runs a stage: it gets the stage, its place, whom to report to, and what tells whether to leave.
Run = Callable[[Stage, Place, Callable[[Report], None], Callable[[], bool]], Outcome]


def serve(
    run: Run, prepare: Callable[[Stage], None] = lambda stage: None, grace_seconds: float = GRACE_SECONDS
) -> None:
    """Run the stages that the standard input orders, each in a fork of this process, until it ends.

    `prepare` loads into this process what the stage will need and later ones may, too. Its errors are passed over: the
    stage meets the same ones, and tells of them. A stage that is told to leave, by SIGTERM or because nobody listens
    any more, is killed after `grace_seconds`.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it goes to the stage, too; this process ends with its orders
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a fork gets it blocked, and misses none
    messages = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not stand among the messages
    orders = _Lines(0)
    with contextlib.suppress(EOFError):
        while True:
            order = orders.read()
            if order is None or "stage" not in order:
                continue  # a stage that was to be stopped had ended by itself
            stage = Stage.model_validate(order["stage"])
            with contextlib.suppress(Exception):
                prepare(stage)
            gc.collect()
            gc.freeze()  # the fork shares what is there now
            pid = os.fork()
            if pid == 0:
                _run_forked(run, stage, Place(**order["place"]), messages, grace_seconds)
            status = _wait(pid, orders)
            _send(messages, {"exit": os.waitstatus_to_exitcode(status)})


def _run_forked(run: Run, stage: Stage, place: Place, messages: int, grace_seconds: float) -> None:
    """In the new process: run the stage, and exit."""
    os.setpgid(0, 0)  # what it starts is killed with it
    leave = _heed_sigterm(grace_seconds)
    ctypes.CDLL(None).prctl(_SIGNAL_OF_PARENTS_DEATH, signal.SIGTERM)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the orders are not for it
    logging.getLogger(__package__).addHandler(_Warnings(messages))
    try:
        outcome = run(stage, place, lambda report: _send(messages, {"report": report.model_dump()}), leave.is_set)
        _send(messages, {"outcome": asdict(outcome)})
    except BaseException as error:  # noqa: BLE001  (whatever it is, this process must not go on as the server)
        _send(messages, {"outcome": asdict(Outcome("failed", describe(error)))})
    os._exit(0)


def _heed_sigterm(grace_seconds: float) -> threading.Event:
    """An event that SIGTERM sets. Some time after that this process is killed, whatever hangs in it."""
    leave = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it stays blocked in all threads, and the one below takes it

    def wait() -> None:
        signal.sigwait({signal.SIGTERM})
        leave.set()
        time.sleep(grace_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True, name="sigterm").start()
    return leave


class _Warnings(logging.Handler):
    """Sends warnings to whoever had the stage run."""

    def __init__(self, messages: int) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        _send(self._messages, {"warning": record.getMessage()})


def _wait(pid: int, orders: _Lines) -> int:
    """Wait for the process, passing on orders to it; when those end, it has to leave. Returns its wait status.

    What it has started ends with it.
    """
    ended = os.pidfd_open(pid)
    while True:
        ready = [] if orders.has_line else select.select([ended, *orders.waiting], [], [])[0]
        if ended in ready:
            os.close(ended)
            _kill_group(pid)  # before the wait: until then, no other process can have this number
            return os.waitpid(pid, 0)[1]
        try:
            order = (orders.read() or {}).get("order")
        except EOFError:
            order = "leave"
        if order == "leave":
            os.kill(pid, signal.SIGTERM)
        else:
            os.kill(pid, signal.SIGKILL)
            _kill_group(pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
        os.killpg(pid, signal.SIGKILL)


class _Lines:
    """Lines of JSON from a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._buffer, self._ended = descriptor, b"", False

    @property
    def waiting(self) -> list[int]:
        """What to wait for with `select`; nothing after the end."""
        return [] if self._ended else [self._descriptor]

    @property
    def has_line(self) -> bool:
        """Whether there is a line that has been received with an earlier one; `select` does not see it."""
        return b"\n" in self._buffer

    def read(self, timeout_seconds: float | None = None) -> dict[str, Any] | None:
        """The next message; None when none came in time. A line that a dying process broke off is left out.

        Raises EOFError at the end.
        """
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                if message := _parsed(line):
                    return message
            elif self._ended:
                raise EOFError
            elif not self._fill(timeout_seconds):
                return None

    def _fill(self, timeout_seconds: float | None) -> bool:
        if not select.select([self._descriptor], [], [], timeout_seconds)[0]:
            return False
        content = os.read(self._descriptor, 2**16)
        self._ended = not content
        self._buffer += content
        return True


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _send(descriptor: int, message: dict[str, Any]) -> None:
    """On a line of its own, whatever a killed process has left of the last one. It is lost when nobody listens."""
    content = b"\n" + json.dumps(message).encode() + b"\n"
    with contextlib.suppress(BrokenPipeError):
        while content:
            content = content[os.write(descriptor, content) :]


def _meet(place: Place) -> TCPStore:
    """The store by which workers find each other. It listens on the first worker's address, and not on all of them."""
    from torch._C._distributed_c10d import TCPStore

    host, _, port = place.address.rpartition(":")
    if place.rank > 0:
        return TCPStore(host, int(port), place.workers, is_master=False)
    listener = socket.create_server((host, int(port)))
    return TCPStore(host, int(port), place.workers, is_master=True, master_listen_fd=listener.detach())


def free_address(host: str) -> str:
    """An address at which workers can meet, as host:port."""
    with socket.socket() as free:
        free.bind((host, 0))
        return f"{host}:{free.getsockname()[1]}"


def _cause_of_exit(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"its process was killed by {name}{hint}"
    return f"its process ended with code {code} before the stage did"


def describe(error: BaseException) -> str:
    """Kind, message, file and line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


def main() -> None:
    """`python -m trainables.stage_process STORAGE THREADS DEVICE [STAGES]`."""
    import torch
    import torch._dynamo  # an optimiser would import it, in every fork again
    import torch.distributed as dist

    from trainables.data.audio import decode_ahead
    from trainables.data.corpus import read_corpus
    from trainables.lease import LeaseLostError
    from trainables.loop import LeavingError, StageBusyError, run_stage

    torch.set_num_threads(1)  # a fork must not find threads half alive
    storage, threads, device = Path(sys.argv[1]), int(sys.argv[2]), torch.device(sys.argv[3])
    stages = sys.argv[4] if len(sys.argv) > 4 else None

    def run(stage: Stage, place: Place, report: Callable[[Report], None], leave: Callable[[], bool]) -> Outcome:
        torch.set_num_threads(threads)
        if place.workers > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=_meet(place), rank=place.rank, world_size=place.workers)
        try:
            run_stage(stage, StageStore(storage, stages), report, device, leave)
        except (StageBusyError, LeaseLostError) as error:  # it goes on elsewhere
            return Outcome("busy", str(error))
        except (LeavingError, ObjectStorageError) as error:  # which has been away for minutes
            return Outcome("failed", str(error), lost="group")
        return Outcome("finished")

    def prepare(stage: Stage) -> None:
        corpus = read_corpus(stage.corpus)
        decode_ahead([*corpus.train, *corpus.dev, *corpus.test, *corpus.unlabelled])

    serve(run, prepare)


if __name__ == "__main__":
    main()
