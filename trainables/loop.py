"""The only training loop. It knows steps, phases, time and checkpoints, and no regime, loss or model by name."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainables.data.batches import Stream
from trainables.data.corpus import Corpus, read_corpus
from trainables.data.seeds import fold
from trainables.data.text import Characters
from trainables.distributed import agree, rank, sum_over_workers, world_size
from trainables.evaluate import error_rates, transcribe
from trainables.lease import Lease
from trainables.losses.build import Batches, TrainingLoss
from trainables.losses.terms import Terms
from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.models.checkpoint_files import CheckpointError, fingerprint, locate
from trainables.models.checkpoints import read_checkpoint, take_over
from trainables.stage import Phase, Report, Stage, StageResult
from trainables.store import StageStore, write_atomically

Reporter = Callable[[Report], None]


class DivergedError(RuntimeError):
    """The gradient is no longer finite; the weights before that step are intact."""


class StageBusyError(RuntimeError):
    """Another worker is running the stage."""


def run_stage(stage: Stage, store: StageStore, report: Reporter, device: torch.device | None = None) -> StageResult:
    """Train the stage, or continue it from its checkpoint, and commit it to the store.

    Every worker of the group calls this; the first one reports and writes. `report` receives the whole curve, what was
    reported before an interruption included. A finished stage is returned as it is.

    Raises StageBusyError when another worker holds its lease, CorpusError for data that cannot be used, DivergedError.
    """
    report = report if rank() == 0 else _ignore
    if finished := _finished(stage, store, report):
        return finished
    with store.lease(stage).hold() if rank() == 0 else contextlib.nullcontext() as lease:
        if not agree(lease is not None):
            raise StageBusyError(f"another worker is running {stage.name()}")
        if finished := _finished(stage, store, report):  # since the first look, by the lease's last holder
            return finished
        return _Training(stage, store, device or torch.device("cpu"), lease).run(report)


def _finished(stage: Stage, store: StageStore, report: Reporter) -> StageResult | None:
    """The result of the stage, reported, when it is in the store."""
    result: StageResult | None = agree(store.result(stage))
    for past in result.reports if result else ():
        report(past)
    return result


class _Update:
    """A phase made ready: its loss over the model's parts, and its optimiser."""

    def __init__(self, model: AcousticModel, phase: Phase) -> None:
        loss = TrainingLoss(model, phase.loss)
        self.loss: nn.Module = DistributedDataParallel(loss, broadcast_buffers=False) if world_size() > 1 else loss
        self.max_gradient_norm = phase.optimiser.max_gradient_norm
        self.parts = [list(model.get_submodule(part).parameters()) for part in phase.loss.parts]
        self.learning_rates = [phase.learning_rates[part] for part in phase.loss.parts]
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters} for parameters in self.parts],
            betas=phase.optimiser.betas,
            eps=phase.optimiser.epsilon,
            weight_decay=phase.optimiser.weight_decay,
        )

    def __call__(
        self, batches: Batches, progress: float, learning_rate_scale: float, autocast: torch.autocast
    ) -> Terms:
        """One optimiser update. Raises DivergedError, before the weights change, when the gradient is not finite."""
        for group, learning_rate in zip(self.optimiser.param_groups, self.learning_rates, strict=True):
            group["lr"] = learning_rate * learning_rate_scale
        self.optimiser.zero_grad()
        loss: Tensor
        terms: Terms
        with autocast:
            loss, terms = self.loss(batches, progress)
        loss.backward()  # type: ignore[no-untyped-call]
        # Part by part: the gradient of one head must not scale that of the backbone or of the other head.
        norms = [nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm) for parameters in self.parts]
        if not torch.stack(norms).isfinite().all():
            raise DivergedError(f"the gradient norms are {', '.join(f'{norm.item():g}' for norm in norms)}")
        self.optimiser.step()
        return terms


class _Training:
    """The state of one stage in training."""

    def __init__(self, stage: Stage, store: StageStore, device: torch.device, lease: Lease | None) -> None:
        self.stage, self.store, self.device, self.lease = stage, store, device, lease
        self.corpus: Corpus = read_corpus(stage.corpus)
        self.characters = Characters(u.text or "" for u in self.corpus.train)
        self.model = build_model(stage, store, len(self.characters)).to(device)
        if stage.compile_layers:
            torch.compiler.reset()  # what earlier stages of a warm worker compiled counts against a limit
            self.model.backbone.compile_layers()
        self.updates = [_Update(self.model, phase) for phase in stage.phases]
        self.streams = {name: self._stream(name) for name in stage.streams}
        self.step = 0
        self.reports: list[Report] = []
        self.sums: dict[str, Tensor] = {}  # of each term since the last report: (sum, count)
        self.elapsed_before = self.accelerator_before = 0.0  # in earlier attempts, perhaps with other workers
        self.started = time.monotonic()
        self._load_checkpoint()

    def run(self, report: Reporter) -> StageResult:
        for past in self.reports:
            report(past)
        saved_at = time.monotonic()
        while self.step < self.stage.steps:
            self._one_step()
            metrics = self._due_metrics()
            if metrics:
                self.reports.append(self._report(metrics))
                report(self.reports[-1])
            # Only between reports' sums: then the checkpoint needs nothing that is spread over the workers.
            if rank() == 0 and not self.sums and time.monotonic() - saved_at > self.stage.checkpoint_seconds:
                self._save_checkpoint()
                saved_at = time.monotonic()
        return self._finish()

    def _one_step(self) -> None:
        if self.lease:
            self.lease.check()
        torch.manual_seed(fold(self.stage.seed, "step", self.step, rank()))
        phase = self.stage.phase_at(self.step)
        progress = self.step / self.stage.steps
        batches = {name: self.streams[name].next().to(self.device) for name in self.stage.phases[phase].loss.streams}
        try:
            terms = self.updates[phase](batches, progress, self.stage.schedule.scale(progress), self._autocast())
        except DivergedError as error:
            rates = ", ".join(f"{part} {rate:g}" for part, rate in self.stage.phases[phase].learning_rates.items())
            raise DivergedError(
                f"training diverged at step {self.step + 1} of {self.stage.steps}: {error}; learning rates: {rates}; "
                "try lower ones"
            ) from None
        for name, term in terms.items():
            pair = torch.stack([term.sum.detach(), term.count]).double()
            self.sums[name] = self.sums.get(name, torch.zeros_like(pair)) + pair
        self.step += 1

    def _due_metrics(self) -> dict[str, float]:
        stage, last = self.stage, self.step == self.stage.steps
        metrics: dict[str, float] = {}
        if last or self.step % stage.report_every == 0:
            metrics |= self._mean_terms()
        if stage.evaluate_every and (last or self.step % stage.evaluate_every == 0):
            metrics |= self._error_rates("dev")
        if stage.evaluate_test and last:
            metrics |= self._error_rates("test")
        return metrics

    def _mean_terms(self) -> dict[str, float]:
        totals = {name: sum_over_workers(pair).tolist() for name, pair in self.sums.items()}
        self.sums = {}
        return {name: total / count for name, (total, count) in totals.items() if count}

    def _error_rates(self, split: str) -> dict[str, float]:
        with self._autocast():
            hypotheses = transcribe(self.model, getattr(self.corpus, split), self.characters, self.device)
        if rank() == 0:
            lines = (json.dumps(asdict(h), ensure_ascii=False) + "\n" for h in hypotheses)
            write_atomically(self.folder / f"hypotheses-{split}.jsonl", "".join(lines).encode())
        return {f"{split}_{name}": value for name, value in error_rates(hypotheses).items()}

    def _report(self, metrics: dict[str, float]) -> Report:
        elapsed_seconds, accelerator_seconds = self._spent_seconds()
        leading = self.streams[self.stage.streams[0]]
        return Report(
            step=self.step,
            metrics=metrics,
            audio_seconds=sum(stream.audio_seconds for stream in self.streams.values()),
            epochs=leading.audio_seconds / leading.seconds_per_epoch,
            elapsed_seconds=elapsed_seconds,
            accelerator_seconds=accelerator_seconds,
            reported_at=time.time(),
        )

    def _spent_seconds(self) -> tuple[float, float]:
        """Elapsed and accelerator seconds, earlier attempts included."""
        attempt = time.monotonic() - self.started
        return self.elapsed_before + attempt, self.accelerator_before + attempt * world_size()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.stage.precision == "bf16")

    def _stream(self, name: str) -> Stream:
        labelled = name == "labelled"
        return Stream(
            self.corpus.train if labelled else self.corpus.unlabelled,
            self.characters if labelled else None,
            batch_seconds=self.stage.batch_seconds,
            seed=fold(self.stage.seed, name),
            augment_speed=self.stage.augment_speed,
            rank=rank(),
            world_size=world_size(),
        )

    @property
    def folder(self) -> Path:
        folder = self.store.partial_folder(self.stage)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _save_checkpoint(self) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "step": self.step,
                "model": self.model.state_dict(),
                "optimisers": [update.optimiser.state_dict() for update in self.updates],
                "streams": {name: stream.state() for name, stream in self.streams.items()},
                "reports": [report.model_dump() for report in self.reports],
                "spent_seconds": list(self._spent_seconds()),
            },
            buffer,
        )
        write_atomically(self.folder / "checkpoint.pt", buffer.getvalue())

    def _load_checkpoint(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not agree(path.is_file()):
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for update, saved in zip(self.updates, state["optimisers"], strict=True):
            update.optimiser.load_state_dict(saved)
        for name, stream in self.streams.items():
            stream.load_state(state["streams"][name])
        self.reports = [Report.model_validate(report) for report in state["reports"]]
        self.elapsed_before, self.accelerator_before = state["spent_seconds"]

    def _finish(self) -> StageResult:
        trained = [self.model.get_submodule(part) for part in self.stage.parts]
        result = StageResult(
            reports=tuple(self.reports), num_parameters=sum(count_parameters(part) for part in trained)
        )
        if rank() == 0:
            for part, module in zip(self.stage.parts, trained, strict=True):
                weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
                write_atomically(self.folder / f"{part}.safetensors", safetensors.torch.save(weights))
            symbols = json.dumps({"symbols": self.characters.symbols}, ensure_ascii=False)
            if "ctc_head" in self.stage.parts:
                write_atomically(self.folder / "symbols.json", symbols.encode())
            self.store.commit(self.stage, result)
        agree(None)  # no worker goes on before the stage is stored
        return result


def build_model(stage: Stage, store: StageStore, num_symbols: int) -> AcousticModel:
    """The model at the start of the stage: fresh parts drawn from the stage's seed, then those it takes over.

    Raises CheckpointError when the weights that it starts from are not those that identify the stage, or do not fit.
    """
    model = AcousticModel(stage.model, num_symbols, seed=stage.seed)
    if stage.start:
        path = locate(stage.start.source)
        if fingerprint(path) != stage.start.sha256:
            raise CheckpointError(f"{stage.start.source}: its weights are not those that the study was planned with")
        take_over(read_checkpoint(path), model, stage.parts)
    if stage.initial:
        for part in stage.initial.parts:
            path = store.folder(stage.initial.stage) / f"{part}.safetensors"
            model.get_submodule(part).load_state_dict(safetensors.torch.load_file(path))
    return model


def _ignore(report: Report) -> None:
    """Reports of workers other than the first repeat what the first one says."""
