"""Train one trial, or one stage, on this machine without Ray: `python -m trainables TRIAL.yaml`.

Several GPUs: `torchrun --nproc-per-node 8 -m trainables TRIAL.yaml`. The losses are those of the same trial in a study.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from trainables.data.corpus import CorpusError
from trainables.models.checkpoint_files import CheckpointError, locate
from trainables.object_storage import ObjectStorageError, checked_url
from trainables.settings_file import SettingsError, SettingsFile, explain, read_settings_file
from trainables.stage import Report, Stage, chain
from trainables.trial import TrialConfig, problems, stages_of

DONE, BAD_SETTINGS, FAILED = 0, 2, 3
Model = TypeVar("Model", bound=BaseModel)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. 0: trained; 2: bad settings; 3: training failed."""
    options = _parser().parse_args(arguments)
    try:
        stages = read_stages(options.file, options.overrides)
    except SettingsError as error:
        for line in error.errors:
            print(line, file=sys.stderr)
        return BAD_SETTINGS
    return _train(stages, options.storage.absolute(), options.stages, options.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainables", description="Train a trial or a stage without Ray.")
    parser.add_argument("file", type=Path, help="what stands under `trial:` in a sweep file, or a stored stage.json")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="e.g. regime.finetune.steps=100")
    parser.add_argument("--storage", type=Path, default=Path("results"), help="folder of stages (default: results)")
    parser.add_argument("--stages", type=_url, help="object storage that keeps the stages, such as s3://bucket/prefix")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    return parser


def _url(text: str) -> str:
    try:
        return checked_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def read_stages(path: Path, overrides: Sequence[str] = ()) -> Sequence[Stage]:
    """The stages of the trial in the file, or the stage in it and what it starts from, in order.

    Raises SettingsError with every error of the file.
    """
    file = read_settings_file(path, overrides)
    if "data_fingerprint" in file.data:
        return chain(_validated(file, Stage))
    trial = _validated(file, TrialConfig)
    if found := list(problems(trial)):
        raise SettingsError([file.error((field,), message) for field, message in found])
    if trial.init:
        try:
            locate(trial.init)  # what is not on this machine is downloaded now: its content identifies the stages
        except CheckpointError as error:
            raise SettingsError([file.error(("init",), str(error))]) from error
    return stages_of(trial)


def _validated(file: SettingsFile, model: type[Model]) -> Model:
    try:
        return model.model_validate(file.data)
    except ValidationError as error:
        raise SettingsError([file.error(place, message) for place, message in explain(error, model)]) from error


def _train(stages: Sequence[Stage], storage: Path, url: str | None, device_name: str | None) -> int:
    import torch
    import torch.distributed as dist

    from trainables.distributed import rank
    from trainables.lease import LeaseLostError, wait_for_silence
    from trainables.loop import DivergedError, StageBusyError, run_stage
    from trainables.store import StageStore

    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun sets it
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    store = StageStore(storage, url)
    try:
        for stage in stages:
            if rank() == 0 and not store.result(stage):
                wait_for_silence(store.lease(stage))
            run_stage(stage, store, lambda report, stage=stage: _print(stage, report), device)  # type: ignore[misc]
            if rank() == 0:
                print(f"{stage.kind}: {store.folder(stage)}")
    except (DivergedError, StageBusyError, LeaseLostError, CorpusError, CheckpointError, ObjectStorageError) as error:
        print(error, file=sys.stderr)
        return FAILED
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return DONE


def _print(stage: Stage, report: Report) -> None:
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in report.metrics.items())
    if stage.steps:
        speed = report.audio_seconds / report.elapsed_seconds
        print(f"{stage.kind} {report.step}/{stage.steps}  {metrics}  ({speed:.0f} s of audio a second)", flush=True)
    else:
        print(f"{stage.kind}  {metrics}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
