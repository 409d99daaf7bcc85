"""The only training loop. It knows steps, phases, time and checkpoints, and no regime, loss or model by name."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.checkpoint import load_checkpoint, save_checkpoint
from trainables.config import Progress
from trainables.data.batches import Stream
from trainables.data.config import PhonesConfig, StageOutputsConfig
from trainables.data.corpus import total_seconds
from trainables.data.seeds import fold
from trainables.data.symbols import symbols_of
from trainables.decode import decode_stage
from trainables.device import hardware_name
from trainables.distributed import agree, min_over_workers, rank, share_first, sum_over_workers, world_size
from trainables.evaluate import transcribe, write_hypotheses
from trainables.lease import Lease
from trainables.losses.build import Batches, TrainingLoss
from trainables.losses.terms import Term, Terms
from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.object_lease import ObjectLease
from trainables.scoring import Hypothesis, error_rates, phone_error_rate
from trainables.stage import Phase, Report, Stage, StageResult
from trainables.start import autocast, build_model, check_symbols, corpus_of_stage
from trainables.store import StageStore, write_atomically

Reporter = Callable[[Report], None]

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 20  # updates; fp16 needs some to find a scale for its loss
MAX_SKIPPED_AT_THE_END = 2
AGREE_STEPS = 8  # after which several workers ask one another whether a checkpoint is due
UPLOADING_SHARE = 0.1  # of the time that uploading checkpoints takes, at most
HARDLY_A_WORD = 0.9  # word error rate from which on it tells nothing


class DivergedError(RuntimeError):
    """The gradient is no longer finite; the weights before those steps are intact."""


class StageBusyError(RuntimeError):
    """Another worker is running the stage."""


class LeavingError(RuntimeError):
    """The stage was told to leave its machine, and has written its checkpoint."""


def run_stage(
    stage: Stage,
    store: StageStore,
    report: Reporter,
    device: torch.device | None = None,
    leave: Callable[[], bool] = lambda: False,
) -> StageResult:
    """Train the stage, or continue it from its checkpoint, and commit it to the store.

    Every worker of the group calls this; the first one reports and writes. `report` receives the whole curve, what was
    reported before an interruption included. A finished stage is returned as it is. When `leave` says so, a checkpoint
    is written as soon as that can be, and training ends.

    Raises StageBusyError when another worker holds its lease, CorpusError for data that cannot be used, DivergedError,
    LeavingError.
    """
    report = report if rank() == 0 else _ignore
    if finished := _finished(stage, store, report):
        return finished
    lease_of_stage = store.lease(stage)
    if rank() == 0:
        lease_of_stage.held_by_another()  # a dead holder's is removed
    with lease_of_stage.hold() if rank() == 0 else contextlib.nullcontext() as lease:
        if not agree(lease is not None):
            raise StageBusyError(f"another worker is running {stage.name()}")
        if finished := _finished(stage, store, report):  # since the first look, by the lease's last holder
            return finished
        device = device or torch.device("cpu")
        if stage.language_model:
            return decode_stage(stage, store, device, report)
        return _Training(stage, store, device, lease).run(report, leave)


def _finished(stage: Stage, store: StageStore, report: Reporter) -> StageResult | None:
    """The result of the stage, reported, when it is in the store."""
    result: StageResult | None = agree(store.result(stage))
    for past in result.reports if result else ():
        report(past)
    return result


class _Update:
    """A phase made ready: its loss over the model's parts, and its optimiser."""

    def __init__(self, model: AcousticModel, phase: Phase, *, scale_loss: bool, device: torch.device) -> None:
        self.model, self.phase = model, phase
        self.loss = TrainingLoss(model, phase.loss).to(device)
        self.parts = [list(model.get_submodule(part).parameters()) for part in phase.loss.parts]
        self.learning_rates = [phase.learning_rates[part] for part in phase.loss.parts]
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters} for parameters in self.parts],
            betas=phase.optimiser.betas,
            eps=phase.optimiser.epsilon,
            weight_decay=phase.optimiser.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
        self.skipped_in_a_row = 0
        self._statistics = [
            buffer
            for part in phase.loss.parts
            for module in model.get_submodule(part).modules()
            if isinstance(module, nn.BatchNorm1d)
            for buffer in module.buffers()
        ]
        self._forward: nn.Module | None = None
        self._frozen: set[nn.Parameter] | None = None

    def __call__(
        self, parts: Sequence[Batches], progress: Progress, learning_rate_scale: float, autocast: torch.autocast
    ) -> tuple[list[Terms], bool]:
        """One optimiser update from the parts of a global batch: the terms of each, and whether it was made.

        It is not when the gradient is not finite; the weights and statistics of the model are then as they were.
        """
        forward = self._ready(progress)
        statistics = [buffer.clone() for buffer in self._statistics]
        for group, learning_rate in zip(self.optimiser.param_groups, self.learning_rates, strict=True):
            group["lr"] = learning_rate * learning_rate_scale
        self.optimiser.zero_grad()
        found: list[Terms] = []
        for batches in parts:
            more_to_come = len(found) + 1 < len(parts) and isinstance(forward, DistributedDataParallel)
            with forward.no_sync() if more_to_come else contextlib.nullcontext():  # type: ignore[operator]
                loss: Tensor
                terms: Terms
                with autocast:
                    loss, terms = forward(batches, progress)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            found.append({name: Term(t.sum.detach(), t.count, t.weight) for name, t in terms.items()})
        self.scaler.unscale_(self.optimiser)
        # Part by part: the gradient of one head must not scale that of the backbone or of the other head.
        limit = self.phase.optimiser.max_gradient_norm or math.inf
        norms = [nn.utils.clip_grad_norm_(parameters, limit).to(loss.device) for parameters in self.parts]
        made = bool(torch.stack(norms).isfinite().all())
        if made:
            self.scaler.step(self.optimiser)
            self.loss.after_update()
        else:
            for buffer, before in zip(self._statistics, statistics, strict=True):
                buffer.copy_(before)
        self.skipped_in_a_row = 0 if made else self.skipped_in_a_row + 1
        self.scaler.update()
        return found, made

    def _ready(self, progress: Progress) -> nn.Module:
        """The loss to call, while exactly what learns now asks for gradients."""
        frozen = self._frozen_at(progress)
        for parameters in self.parts:
            for parameter in parameters:
                parameter.requires_grad_(parameter not in frozen)
        if self._forward is None or frozen != self._frozen:  # DistributedDataParallel expects the same ones each time
            self._frozen = frozen
            several = world_size() > 1
            self._forward = DistributedDataParallel(self.loss, broadcast_buffers=False) if several else self.loss
        return self._forward

    def _frozen_at(self, progress: Progress) -> set[nn.Parameter]:
        backbone = self.model.backbone
        if progress.step < self.phase.frozen_backbone_steps:
            return set(backbone.parameters())
        modules = backbone.extractor_modules if self.phase.loss.freezes_extractor else []
        return {parameter for module in modules for parameter in module.parameters()}

    def state(self) -> dict[str, Any]:
        teacher = self.loss.teacher
        return {
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
            "teacher": teacher.state_dict() if teacher else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped_in_a_row = state["skipped_in_a_row"]
        if self.loss.teacher:
            self.loss.teacher.load_state_dict(state["teacher"])


@dataclass
class _Kept:
    """The weights with the best results on dev so far: lowest WER, then lowest CER, then earliest.

    The mixed error rate stands for the WER where there is one. Those from 90 % on count alike: while hardly a word is
    right, the characters tell which weights are better.
    """

    step: int
    rates: dict[str, float]

    @property
    def rank(self) -> tuple[float, float]:
        return min(self.rates.get("mer", self.rates["wer"]), HARDLY_A_WORD), self.rates["cer"]


class _Training:
    """The state of one stage in training."""

    def __init__(
        self, stage: Stage, store: StageStore, device: torch.device, lease: Lease | ObjectLease | None
    ) -> None:
        self.stage, self.store, self.device, self.lease = stage, store, device, lease
        self.corpus = corpus_of_stage(stage)
        self.symbols = symbols_of((u.text or "" for u in self.corpus.train), stage.outputs)
        check_symbols(stage, store, self.symbols.symbols)
        self.model = build_model(stage, store, len(self.symbols)).to(device)
        if stage.compile_layers:
            torch.compiler.reset()  # what earlier stages of a warm worker compiled counts against a limit
            self.model.backbone.compile_layers()
        scale_loss = stage.precision == "fp16"
        self.updates = [_Update(self.model, phase, scale_loss=scale_loss, device=device) for phase in stage.phases]
        self.streams = {name: self._stream(name) for name in stage.streams}
        self.step = 0
        self.skipped_steps = 0
        self.kept: _Kept | None = None
        self.kept_files: deque[Path] = deque(maxlen=2)  # of the last checkpoint, and the one before it
        self.real_time_factor: float | None = None  # of the last evaluation on dev
        self.reports: list[Report] = []
        self.sums: dict[str, Tensor] = {}  # of each term since the last report: (sum, count)
        self.elapsed_before = self.accelerator_before = 0.0  # in earlier attempts, perhaps with other workers
        self.started = self.upload_at = time.monotonic()
        self._load_checkpoint()

    def run(self, report: Reporter, leave: Callable[[], bool]) -> StageResult:
        for past in self.reports:
            report(past)
        saved_at = time.monotonic()
        while self.step < self.stage.steps:
            self._one_step()
            metrics = self._due_metrics()
            if metrics:
                self.reports.append(self._report(metrics))
                report(self.reports[-1])
            # Several workers ask one another now and then only, for that waits for the device.
            if world_size() == 1 or metrics or self.step % AGREE_STEPS == 0:
                is_due = rank() == 0 and time.monotonic() - saved_at > self.stage.checkpoint_seconds
                must_leave = self._any_worker(leave() and self.step < self.stage.steps)
                if must_leave or self._any_worker(is_due):
                    self._save(must_leave=must_leave)
                    saved_at = time.monotonic()
        return self._finish()

    def _any_worker(self, value: bool) -> bool:
        """Whether it is so for one of them."""
        return min_over_workers(int(not value), self.device) == 0

    def _save(self, *, must_leave: bool) -> None:
        """Write a checkpoint. Raises LeavingError when the workers must leave."""
        if world_size() > 1:  # the checkpoint holds nothing that is spread over workers
            share = 1.0 if rank() == 0 else 0.0
            self.sums = {name: sum_over_workers(pair) * share for name, pair in self.sums.items()}
        saved = rank() > 0 or self._save_checkpoint(at_once=must_leave)
        if must_leave:
            where = f"at step {self.step} of {self.stage.steps}" if saved else "without a checkpoint"
            raise LeavingError(f"its machine goes away; it left {where}")

    def _one_step(self) -> None:
        if self.lease:
            self.lease.check()
        torch.manual_seed(fold(self.stage.seed, "step", self.step, rank()))
        phase = self.stage.phase_at(self.step)
        progress = Progress(self.step, self.stage.steps)
        drawn = {name: self.streams[name].next() for name in self.stage.phases[phase].loss.streams}
        parts = [
            {name: batches[i].to(self.device) for name, batches in drawn.items()}
            for i in range(self.stage.accumulation)
        ]
        found, made = self.updates[phase](
            parts, progress, self.stage.schedule.scale(progress), autocast(self.stage, self.device)
        )
        self._count_skipped(made, phase)
        for terms in found if made else ():
            for name, term in terms.items():
                pair = torch.stack([term.sum, term.count]).double()
                self.sums[name] = self.sums.get(name, torch.zeros_like(pair)) + pair
        self.step += 1

    def _count_skipped(self, made: bool, phase: int) -> None:
        """Raises DivergedError after too many updates of a phase in a row that could not be made."""
        self.skipped_steps += not made
        in_a_row = self.updates[phase].skipped_in_a_row
        last = self.step + 1 == self.stage.steps
        if in_a_row > (MAX_SKIPPED_AT_THE_END if last else MAX_SKIPPED_IN_A_ROW):
            rates = ", ".join(f"{part} {rate:g}" for part, rate in self.stage.phases[phase].learning_rates.items())
            raise DivergedError(
                f"training diverged at step {self.step + 1} of {self.stage.steps}: the gradient was not finite "
                f"{in_a_row} times in a row; learning rates: {rates}; try lower ones"
            )

    def _due_metrics(self) -> dict[str, float]:
        stage, last = self.stage, self.step == self.stage.steps
        metrics: dict[str, float] = {}
        if last or self.step % stage.report_every == 0:
            metrics |= self._mean_terms()
            if self.skipped_steps:
                metrics["skipped_steps"] = float(self.skipped_steps)
        if stage.evaluate_every and (last or self.step % stage.evaluate_every == 0):
            metrics |= self._error_rates("dev")
        if last and self.kept:
            self._restore_kept()
            metrics |= {"kept_step": float(self.kept.step)}
            metrics |= {f"kept_dev_{name}": value for name, value in self.kept.rates.items()}
        if stage.evaluate_test and last:
            metrics |= self._error_rates("test")
        return metrics

    def _mean_terms(self) -> dict[str, float]:
        totals = {name: sum_over_workers(pair).tolist() for name, pair in self.sums.items()}
        self.sums = {}
        return {name: total / count for name, (total, count) in totals.items() if count}

    def _error_rates(self, split: str) -> dict[str, float]:
        started = time.monotonic()
        with autocast(self.stage, self.device):
            hypotheses = transcribe(self.model, getattr(self.corpus, split), self.symbols, self.device)
        if split == "dev":
            seconds = (time.monotonic() - started) * world_size()
            self.real_time_factor = seconds / total_seconds(self.corpus.dev)
        rates = _rates(hypotheses, self.stage.outputs)
        if split == "dev" and self.stage.keep == "best":
            self._keep(rates)
        if rank() == 0 and (split == "test" or self.kept is None):
            write_hypotheses(self.folder / f"hypotheses-{split}.jsonl", hypotheses)
        elif rank() == 0 and self.kept and self.kept.step == self.step:  # theirs, as long as the weights are kept
            write_hypotheses(self._kept_file(self.kept).with_suffix(".jsonl"), hypotheses)
        prefix = self.stage.dev_name if split == "dev" else split
        return {f"{prefix}_{name}": value for name, value in rates.items()}

    def _keep(self, rates: dict[str, float]) -> None:
        """Keep the weights aside if these are the best results so far."""
        found = _Kept(self.step, rates)
        if self.kept and found.rank >= self.kept.rank:
            return
        self.kept = found
        if rank() == 0:
            weights = {name: tensor.contiguous() for name, tensor in self._trained().state_dict().items()}
            write_atomically(self._kept_file(found), safetensors.torch.save(weights))

    def _kept_file(self, kept: _Kept) -> Path:
        return self.folder / f"kept-{kept.step}.safetensors"

    def _restore_kept(self) -> None:
        trained = self._trained()
        if rank() == 0 and self.kept:  # others may not see its file
            kept = self._kept_file(self.kept)
            trained.load_state_dict(safetensors.torch.load_file(kept, device=str(self.device)))
            with contextlib.suppress(FileNotFoundError):  # of an earlier version: there they are already
                write_atomically(self.folder / "hypotheses-dev.jsonl", kept.with_suffix(".jsonl").read_bytes())
        share_first(trained.state_dict().values())

    def _trained(self) -> nn.ModuleDict:
        """The parts of the model that the stage trains."""
        return nn.ModuleDict({part: self.model.get_submodule(part) for part in self.stage.parts})

    def _report(self, metrics: dict[str, float]) -> Report:
        elapsed_seconds, accelerator_seconds = self._spent_seconds()
        leading = self.streams[self.stage.streams[0]]
        evaluated = any(name.startswith("dev_") for name in metrics)
        return Report(
            step=self.step,
            metrics=metrics,
            audio_seconds=sum(stream.audio_seconds for stream in self.streams.values()),
            epochs=leading.audio_seconds / leading.seconds_per_epoch,
            elapsed_seconds=elapsed_seconds,
            accelerator_seconds=accelerator_seconds,
            reported_at=time.time(),
            device=hardware_name(self.device),
            parameters=self.model.num_recogniser_parameters if evaluated else None,
            real_time_factor=self.real_time_factor if evaluated else None,
        )

    def _spent_seconds(self) -> tuple[float, float]:
        """Elapsed and accelerator seconds, earlier attempts included."""
        attempt = time.monotonic() - self.started
        return self.elapsed_before + attempt, self.accelerator_before + attempt * world_size()

    def _stream(self, name: str) -> Stream:
        labelled = name == "labelled"
        return Stream(
            self.corpus.train if labelled else self.corpus.unlabelled,
            self.symbols if labelled else None,
            batch_seconds=self.stage.batch_seconds,
            seed=fold(self.stage.seed, name),
            augment_speed=self.stage.augment_speed,
            rank=rank(),
            world_size=world_size(),
            sampling_exponent=self.corpus.sampling_exponent,
            crop=None if labelled else self.stage.crop,
            accumulation=self.stage.accumulation,
            # On a CPU, threads that read ahead would take from those that compute.
            threads=min(8, torch.get_num_threads()) if self.device.type == "cuda" else 0,
        )

    @property
    def folder(self) -> Path:
        folder = self.store.partial_folder(self.stage)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _save_checkpoint(self, *, at_once: bool = False) -> bool:
        """Whether it could be written. Training goes on without, too. `at_once`: upload it, too, where stages are kept.

        Otherwise it is uploaded when that has not taken much of the time lately.
        """
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "updates": [update.state() for update in self.updates],
            "skipped_steps": self.skipped_steps,
            "sums": self.sums,
            "kept": asdict(self.kept) if self.kept else None,
            "streams": {name: stream.state() for name, stream in self.streams.items()},
            "reports": [report.model_dump() for report in self.reports],
            "spent_seconds": list(self._spent_seconds()),
        }
        try:
            save_checkpoint(self.folder, state, self._confirm)
            self._confirm()
        except OSError as error:
            logger.warning("%s: no checkpoint at step %d: %s; training goes on", self.stage.name(), self.step, error)
            return False
        if self.kept:
            self.kept_files.append(self._kept_file(self.kept))
        for file in self.folder.glob("kept-*.safetensors"):  # only now: the last checkpoints may have named older ones
            if self.kept_files and file not in self.kept_files:
                file.unlink()
                file.with_suffix(".jsonl").unlink(missing_ok=True)
        return self._upload(at_once=at_once)

    def _confirm(self) -> None:
        """Before what a successor would read is changed. Raises LeaseLostError, OSError."""
        if self.lease:
            self.store.confirm(self.lease)

    def _upload(self, *, at_once: bool) -> bool:
        """Whether the last checkpoint is where other machines find it, or need not be yet."""
        if self.lease is None or (time.monotonic() < self.upload_at and not at_once):
            return True
        began = time.monotonic()
        try:
            self.store.save(self.stage, self.lease)
        except OSError as error:
            logger.warning("%s: step %d was not uploaded: %s; training goes on", self.stage.name(), self.step, error)
            return False
        finally:
            self.upload_at = time.monotonic() + (time.monotonic() - began) / UPLOADING_SHARE
        return True

    def _load_checkpoint(self) -> None:
        state = agree(self._last_state() if rank() == 0 else None)
        if state is None:
            return
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for update, saved in zip(self.updates, state["updates"], strict=True):
            update.load_state(saved)
        self.skipped_steps = state["skipped_steps"]
        share = 1.0 if rank() == 0 else 0.0  # of what one worker had summed up
        self.sums = {name: pair.to(self.device) * share for name, pair in state["sums"].items()}
        self.kept = _Kept(**state["kept"]) if state["kept"] else None
        self.kept_files.extend([self._kept_file(self.kept)] if self.kept else [])
        for name, stream in self.streams.items():
            stream.load_state(state["streams"][name])
        self.reports = [Report.model_validate(report) for report in state["reports"]]
        self.elapsed_before, self.accelerator_before = state["spent_seconds"]

    def _last_state(self) -> dict[str, Any] | None:
        """Of the last checkpoint, wherever it was written."""
        self.store.take_up(self.stage)
        return load_checkpoint(self.folder, self._has_kept_weights)

    def _has_kept_weights(self, state: dict[str, Any]) -> bool:
        return not state["kept"] or self._kept_file(_Kept(**state["kept"])).is_file()

    def _finish(self) -> StageResult:
        trained = self._trained()
        result = StageResult(reports=tuple(self.reports), num_parameters=count_parameters(trained))
        if rank() == 0:
            self._confirm()
            for part, module in trained.items():
                weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
                write_atomically(self.folder / f"{part}.safetensors", safetensors.torch.save(weights))
            if "ctc_head" in trained:
                symbols = json.dumps({"symbols": self.symbols.symbols}, ensure_ascii=False)
                write_atomically(self.folder / "symbols.json", symbols.encode())
            self.store.commit(self.stage, result)
        agree(None)  # no worker goes on before the stage is stored
        return result


def _rates(hypotheses: Sequence[Hypothesis], outputs: StageOutputsConfig) -> dict[str, float]:
    if isinstance(outputs, PhonesConfig):
        return phone_error_rate(hypotheses, outputs.language)
    return error_rates(hypotheses)


def _ignore(report: Report) -> None:
    """Reports of workers other than the first repeat what the first one says."""
