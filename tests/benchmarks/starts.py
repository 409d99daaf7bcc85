"""What a study costs beside its training: starting a stage, a trial, and keeping the books.

    python -m tests.benchmarks.starts starts         # a trial that does nothing: ours against Train inside Tune
    python -m tests.benchmarks.starts bookkeeping    # 1,000 trials that do nothing: ours against bare Ray Tune
    python -m tests.benchmarks.starts ledger         # appending to a ledger of up to 10,000 trials

`starts`: our trial goes the whole way: proposal, Tune's trial, worker group, a new process for its stage, stage store,
ledger, and the MLflow mirror beside it. Counted is the time from the end of the first trial, which starts the group, to
the end of the last, for each trial. "Next stage" is the time from handing a stage to the processes of a warm group
until the stage's code runs. The stock way is a Ray Train run with one worker inside each Tune trial.

`bookkeeping`: our trials relay one report and their end, without a stage; Tune's report the same number of times. Bare
Tune runs twice, for five minutes at most: as it is, with a new process for each trial, and with `reuse_actors`. Then it
reuses its processes when both come up in time, and else starts one after another.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune

from cluster.connect import HEAD_SLIVER, connect
from study.execution import Conductor, group_size, run_trials, tune
from study.ledger import Ledger
from study.plan import make_plan
from study.provenance import environment
from study.spec import StudySpec
from study.terminal import Terminal, make_console
from study.tracking import MirrorProcess, tracking_uri
from tests.benchmarks.noop_stages import last_report, relay_nothing
from trainables.ray_train import GroupSettings, start_worker_groups
from trainables.stage import Stage
from trainables.stage_process import Place, StageProcesses
from trainables.trial import TrialConfig, stages_of

NOOP = "tests.benchmarks.noop_stages"
BARE_SECONDS = 300


def study_of(storage: Path, trials: int, reports: int = 1) -> StudySpec:
    """A study of so many trials of one stage, with learning rates by chance."""
    return StudySpec.model_validate(
        {
            "study": "nothing",
            "question": "What does nothing cost?",
            "storage": str(storage),
            "arms": {
                "only": {
                    "trial": {"regime": {"kind": "supervised", "train": {"steps": 10 * reports}}},
                    "space": {"regime.train.learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}},
                }
            },
            "search": {"trials": trials, "metric": "dev_cer", "sampler": {"kind": "random"}},
            "replication": {"seeds": 0},
            "convergence": {"metric": "dev_cer", "target": 0.5},
        }
    )


def opened(spec: StudySpec) -> tuple[Ledger, str]:
    ledger = Ledger.in_folder(spec.storage)
    return ledger, ledger.open_study(spec.study, spec.model_dump(mode="json"), environment(spec))


def seconds_of_our_trial(storage: Path, trials: int) -> float:
    spec = study_of(storage, trials)
    ledger, run = opened(spec)
    mirror = MirrorProcess(ledger.url, spec.study, storage, tracking_uri(storage, None))
    with Terminal(make_console(), spec, make_plan(spec), ledger) as terminal:
        run_trials(spec, ledger, run, terminal, stage_module=NOOP)
    assert mirror.finish(None)
    ended = sorted(trial.ended_at or 0.0 for trial in ledger.trials(spec.study))
    return (ended[-1] - ended[0]) / (trials - 1)


def seconds_of_next_stage(storage: Path, rounds: int) -> list[float]:
    """From handing over a stage to its first report."""
    processes, found = StageProcesses(storage, 1, "cpu", NOOP), []
    trial = TrialConfig.model_validate({"regime": {"kind": "supervised", "train": {"steps": 10}}})
    for seed in range(rounds + 1):
        (stage,) = stages_of(trial.with_(seed=seed))
        started, reported = time.monotonic(), []
        processes.run(stage, Place(), lambda _, at=reported: at.append(time.monotonic()), lambda: "go on")  # type: ignore[misc]
        found.append(reported[0] - started)
    processes.close()
    return found[1:]  # the first one waited for imports


def seconds_of_stock_trial(storage: Path, trials: int) -> float:
    from ray.train.torch import TorchTrainer

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            lambda: ray.train.report({"dev_cer": 0.5}),
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(name=f"stock-{time.time_ns()}", storage_path=str(storage)),
        ).fit()
        ray.tune.report({"dev_cer": 0.5})

    started = time.monotonic()
    ray.tune.Tuner(
        ray.tune.with_resources(trial, ray.tune.PlacementGroupFactory([HEAD_SLIVER])),
        tune_config=ray.tune.TuneConfig(num_samples=trials, max_concurrent_trials=2),
        run_config=ray.tune.RunConfig(storage_path=str(storage), verbose=0),
    ).fit()
    return (time.monotonic() - started) / trials


def starts(options: argparse.Namespace, folder: Path) -> None:
    with connect():
        ours = seconds_of_our_trial(folder / "ours", options.trials or 100)
        stock = seconds_of_stock_trial(folder / "stock", options.stock_trials)
    stages = seconds_of_next_stage(folder / "stages", 20)
    print(f"next stage on a warm group: {statistics.median(stages):.3f} s (20 times; slowest {max(stages):.3f} s)")
    print(f"trial that does nothing: ours {ours:.3f} s, Train inside Tune {stock:.1f} s, ratio {stock / ours:.0f}")


def seconds_of_our_books(storage: Path, trials: int, concurrent: int) -> float:
    """For each trial."""
    spec = study_of(storage, trials)
    ledger, run = opened(spec)
    groups = start_worker_groups(GroupSettings(storage, max_groups=concurrent))
    with Terminal(make_console(), spec, make_plan(spec), ledger) as terminal:
        conductor = Conductor(spec, ledger, run, terminal, groups, [group_size(spec.resources, "supervised")])
        started = time.monotonic()
        tune(conductor, relay_nothing, storage)
    assert ledger.count(spec.study)["finished"] == trials
    return (time.monotonic() - started) / trials


@dataclass(frozen=True)
class BareTune:
    seconds: float  # for each trial
    trials: int  # that ended in the time that there is

    def shown(self, ours: float) -> str:
        return f"{1e3 * self.seconds:.0f} ms ({self.trials} trials), ratio {ours / self.seconds:.2f}"


def bare_tune(storage: Path, trials: int, concurrent: int, *, reuse_actors: bool) -> BareTune:

    def trial(config: dict[str, Any]) -> None:
        ray.tune.report({"dev_cer": 0.5})
        ray.tune.report({"dev_cer": 0.5})

    started = time.monotonic()
    found = ray.tune.Tuner(
        ray.tune.with_resources(trial, ray.tune.PlacementGroupFactory([HEAD_SLIVER])),
        param_space={"learning_rate": ray.tune.loguniform(1e-4, 1e-2)},
        tune_config=ray.tune.TuneConfig(
            num_samples=trials,
            max_concurrent_trials=concurrent,
            reuse_actors=reuse_actors,
            time_budget_s=BARE_SECONDS,
        ),
        run_config=ray.tune.RunConfig(storage_path=str(storage), verbose=0),
    ).fit()
    ended = sum(result.metrics is not None and result.metrics.get("training_iteration") == 2 for result in found)
    return BareTune((time.monotonic() - started) / ended, ended)


def bookkeeping(options: argparse.Namespace, folder: Path) -> None:
    trials, concurrent = options.trials or 1_000, 2
    with connect():
        bare = bare_tune(folder / "bare", trials, concurrent, reuse_actors=False)  # first: ours leaves Tune settings
        reusing = bare_tune(folder / "reusing", trials, concurrent, reuse_actors=True)
        ours = seconds_of_our_books(folder / "ours", trials, concurrent)
    print(f"trials that do nothing, {concurrent} at a time: ours {1e3 * ours:.0f} ms ({trials} trials), ", end="")
    print(f"bare Ray Tune {bare.shown(ours)}, with reuse_actors {reusing.shown(ours)}")


def ledger_growth(options: argparse.Namespace, folder: Path) -> None:
    spec, trials = study_of(folder, 1), options.trials or 10_000
    ledger, _ = opened(spec)
    config = TrialConfig.model_validate(spec.trial_config("only").model_dump(mode="json"))
    tenth = trials // 10
    seconds: list[float] = []
    for number in range(trials):
        started = time.perf_counter()
        _add_trial(ledger, spec, number, config, stages_of(config.with_(seed=number)))
        seconds.append(time.perf_counter() - started)
    first, last = statistics.median(seconds[:tenth]), statistics.median(seconds[-tenth:])
    print(f"a trial's row, its curve of 10 reports in 10 transactions, and its end; median of the first {tenth} trials")
    print(f"{1e3 * first:.2f} ms, of the last {tenth} of {trials} {1e3 * last:.2f} ms, ratio {last / first:.2f}")


def _add_trial(ledger: Ledger, spec: StudySpec, number: int, config: TrialConfig, stages: Sequence[Stage]) -> None:
    name, (stage,) = f"only-{number:05d}", stages
    ledger.add_trial(
        spec.study,
        name,
        arm="only",
        number=number,
        origin="search",
        grid={},
        point={},
        config=config.model_dump(mode="json"),
        seed=number,
        stages=stages,
    )
    last = last_report(stage)
    for step in range(1, 11):
        ledger.append(stage.fingerprint(), [last.with_(step=step)])
    ledger.end_trial(spec.study, name, "finished")


PARTS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "starts": starts,
    "bookkeeping": bookkeeping,
    "ledger": ledger_growth,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--trials", type=int, help="default: 100, 1,000 or 10,000")
    parser.add_argument("--stock-trials", type=int, default=4)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        PARTS[options.part](options, Path(folder))


if __name__ == "__main__":
    main()
