"""Stages that misbehave, each as its seed tells. `python -m tests.trainables.misbehaving STORAGE THREADS DEVICE`.

What ran is in `ran.jsonl` of the storage. The device is not used: these stages run on machines without GPUs. Nor is
torch, so that processes start fast.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from trainables.data.config import PromptsConfig
from trainables.models.config import CompactCnnGruConfig
from trainables.stage import ConstantConfig, Report, Stage, StageKind
from trainables.stage_process import Outcome, Place, serve

Reporter = Callable[[Report], None]

SECONDS_OF_AMOUNT = 0.1
GRACE_SECONDS = 0.5
LEAKED_BYTES = 200_000_000
OUTCOME_OF_NOBODY = '{"outcome": {"status": "finished", "cause": null}}'

leaked: list[bytearray] = []


class Behaviour(IntEnum):
    """The seed of a stage that behaves like this."""

    REPORTS = 1  # `amount` times
    SLEEPS = 2  # `amount` tenths of a second, after a report
    HANGS = 3  # for ever, after a report
    SEGFAULTS = 4
    IS_KILLED = 5
    EXITS = 6
    RAISES = 7
    CALLS_EXIT = 8
    LEAKS = 9
    SPOILS = 10  # its process: torch's settings, environment, working directory, signals
    PRINTS = 11  # what looks like a message
    FORKS = 12  # a child that would live on
    HANGS_WITH_CHILD = 13
    BREAKS_OFF = 14  # in the middle of a report
    READS_INPUT = 15
    SECOND_WORKER_SEGFAULTS = 16  # while the first one hangs
    WAITS = 17  # until there is a file `go` in the storage
    GOES_BACK = 18  # to an earlier step


def misbehaving(behaviour: Behaviour, number: int = 0, amount: int = 1, kind: StageKind = "supervised") -> Stage:
    """A stage that behaves like this; `number` tells it from others that do."""
    return Stage(
        kind=kind,
        corpus=PromptsConfig(),
        data_fingerprint=f"number {number}",
        model=CompactCnnGruConfig(),
        phases=(),
        steps=0,
        batch_seconds=1,
        augment_speed=False,
        schedule=ConstantConfig(),
        report_every=amount,
        evaluate_every=None,
        evaluate_test=False,
        seed=behaviour,
    )


def report_of(step: int, **metrics: float) -> Report:
    return Report(
        step=step,
        metrics=metrics,
        audio_seconds=step,
        epochs=step,
        elapsed_seconds=step,
        accelerator_seconds=step,
        reported_at=time.time(),
    )


@dataclass(frozen=True)
class Started:
    """A worker's process that began a stage."""

    stage: str  # fingerprint
    rank: int
    pid: int
    server: int  # process that forked it
    raylet: int  # process of its node


def started(storage: Path) -> list[Started]:
    """All that began, in order."""
    path = storage / "ran.jsonl"
    return [Started(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def misbehave(stage: Stage, storage: Path, place: Place, report: Reporter) -> Outcome:
    """Write down that the stage began, and behave like it."""
    me = Started(stage.fingerprint(), place.rank, os.getpid(), os.getppid(), int(os.environ.get("RAY_RAYLET_PID", 0)))
    with (storage / "ran.jsonl").open("a") as stream:
        stream.write(json.dumps(asdict(me)) + "\n")
    _behave(stage, storage, place, report)
    return Outcome("finished")


def main() -> None:
    storage = Path(sys.argv[1])
    serve(lambda stage, place, report, leave: misbehave(stage, storage, place, report), grace_seconds=GRACE_SECONDS)


def _behave(stage: Stage, storage: Path, place: Place, report: Reporter) -> None:
    amount = stage.report_every
    match Behaviour(stage.seed):
        case Behaviour.REPORTS:
            for step in range(1, amount + 1):
                report(report_of(step, loss=1 / step))
        case Behaviour.SLEEPS:
            report(report_of(1))
            time.sleep(amount * SECONDS_OF_AMOUNT)
        case Behaviour.HANGS:
            report(report_of(1))
            signal.pause()
        case Behaviour.SEGFAULTS:
            os.kill(os.getpid(), signal.SIGSEGV)
        case Behaviour.IS_KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        case Behaviour.EXITS:
            os._exit(3)
        case Behaviour.RAISES:
            raise ValueError("a corpus that nobody can read")
        case Behaviour.CALLS_EXIT:
            sys.exit("enough")
        case Behaviour.LEAKS:
            leaked.append(bytearray(b"x" * LEAKED_BYTES))
        case Behaviour.SPOILS:
            spoil()
        case Behaviour.PRINTS:
            print(OUTCOME_OF_NOBODY, flush=True)
            subprocess.run(["echo", OUTCOME_OF_NOBODY], check=True)
            raise ValueError("after printing")
        case Behaviour.FORKS:
            fork_sleeper(storage)
        case Behaviour.HANGS_WITH_CHILD:
            fork_sleeper(storage)
            report(report_of(1))
            signal.pause()
        case Behaviour.BREAKS_OFF:
            break_off(report)
        case Behaviour.READS_INPUT:
            assert sys.stdin.read() == ""
        case Behaviour.SECOND_WORKER_SEGFAULTS:
            if place.rank == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
            signal.pause()
        case Behaviour.GOES_BACK:
            for step in (1, 7, 5):
                report(report_of(step, loss=1.0))
            signal.pause()
        case Behaviour.WAITS:
            while not (storage / "go").exists():
                time.sleep(0.02)


def spoil() -> None:
    import torch
    import torch.distributed as dist

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    torch.manual_seed(7)
    torch.set_grad_enabled(False)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    os.environ.clear()
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.path.clear()


def fork_sleeper(storage: Path) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    (storage / "child").write_text(str(pid))


def break_off(report: Reporter) -> None:
    """Die when half a line is written."""
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        write(descriptor, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.write = half  # type: ignore[assignment]
    report(report_of(1, loss=1.0))


if __name__ == "__main__":
    main()
