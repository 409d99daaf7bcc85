"""Speed and memory of the models beside transformers: same weights, same real audio, side by side in one run.

    python -m tests.benchmarks.models                       # every task, on the CPU
    python -m tests.benchmarks.models --tasks inference --presets sew_d_mid --device cuda --precision bf16

Inference follows P-SEW's protocol: greedy CTC, forward to the tokens on the CPU, summed over a set sorted by length.
A training step is loss, gradients and AdamW. Rounds alternate between the implementations; the best round counts.
Memory is the peak of one pass in a process of its own, above what the process held before it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.config import Progress
from trainables.data.audio import load_audio
from trainables.data.batches import Batch, epoch_batches
from trainables.data.config import SAMPLE_RATE_HZ, PromptsConfig
from trainables.data.corpus import read_corpus
from trainables.inference_time import recognise
from trainables.losses.config import ContrastiveConfig, CtcConfig, MaskConfig
from trainables.losses.contrastive import contrastive_terms
from trainables.losses.ctc import ctc_terms
from trainables.losses.terms import total
from trainables.models import linear
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoints import write_huggingface
from trainables.models.presets import PRESETS

ONEDNN = linear._AVAILABLE
SYMBOLS = ("<blank>", " ", "'", *"abcdefghijklmnopqrstuvwxyz", "á", "é", "í")
COMPARABLE = [name for name in PRESETS if "cnn_gru" not in name and "fbfe" not in name]  # what transformers has
Pass = Callable[[], None]  # over the whole set
INFERENCE = ("w2v2_base", "sew_tiny", "sew_d_tiny", "sew_d_mid")
TRAINING = ("w2v2_base", "sew_d_tiny")
PRETRAINING = ("w2v2_tiny", "w2v2_base")


def make_batches(seconds: float, batch_seconds: float, device: torch.device) -> list[Batch]:
    """Utterances of 2 to 16 s, made of consecutive English prompts, sorted by length, padded, with made-up tokens."""
    random = np.random.default_rng(0)
    prompts = iter(read_corpus(PromptsConfig(language="en")).train)
    waveforms: list[Tensor] = []
    while sum(map(len, waveforms)) < seconds * SAMPLE_RATE_HZ:
        wanted, parts = random.uniform(2, 16) * SAMPLE_RATE_HZ, [np.zeros(0)]
        while sum(map(len, parts)) < wanted:
            parts.append(load_audio(next(prompts).path))
        waveforms.append(torch.from_numpy(np.concatenate(parts)[: int(wanted)]).float())
    lengths = [len(w) / SAMPLE_RATE_HZ for w in waveforms]
    groups = sorted(
        epoch_batches(lengths, batch_seconds, seed=0, epoch=0), key=lambda group: max(lengths[i] for i in group)
    )
    return [_batch([waveforms[i] for i in group]).to(device) for group in groups]


def _batch(waveforms: list[Tensor]) -> Batch:
    tokens = [torch.randint(1, len(SYMBOLS), (int(len(w) / SAMPLE_RATE_HZ * 12),)) for w in waveforms]
    pad = lambda items: nn.utils.rnn.pad_sequence(items, batch_first=True)  # noqa: E731
    sizes = torch.tensor([len(w) for w in waveforms]), torch.tensor([len(t) for t in tokens])
    seeds = tuple(range(len(waveforms)))
    return Batch(pad(waveforms), sizes[0], pad(tokens), sizes[1], seeds=seeds, seed=0, counted=True)


def cropped(batches: list[Batch]) -> list[Batch]:
    """As in pre-training: no padding, each batch cropped to its shortest utterance."""
    shortest = [int(batch.num_samples_B.min()) for batch in batches]
    return [
        replace(b, waveform_BS=b.waveform_BS[:, :n].contiguous(), num_samples_B=torch.full_like(b.num_samples_B, n))
        for b, n in zip(batches, shortest, strict=True)
    ]


def our_model(preset: str) -> AcousticModel:
    return AcousticModel(PRESETS[preset], len(SYMBOLS), seed=0)


def reference_model(preset: str, device: torch.device, *, pretraining: bool = False) -> Any:
    """The same weights in transformers (its own random ones for pre-training)."""
    from transformers import AutoConfig, AutoModelForCTC, Wav2Vec2ForPreTraining, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_huggingface(our_model(preset), SYMBOLS, Path(folder))
        if pretraining:
            config = AutoConfig.from_pretrained(folder, num_negatives=100, layerdrop=0.0)
            return Wav2Vec2ForPreTraining(config).to(device)
        return AutoModelForCTC.from_pretrained(folder, layerdrop=0.0, apply_spec_augment=False).to(device)


def autocast(device: torch.device, precision: str) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def attention_mask(batch: Batch) -> Tensor:
    positions = torch.arange(batch.waveform_BS.shape[1])
    return (positions < batch.num_samples_B[:, None]).long().to(batch.waveform_BS.device)


def our_inference(preset: str, batches: list[Batch], precision: str, how: str = "prepared") -> Pass:
    device = batches[0].waveform_BS.device
    model = our_model(preset).to(device).eval()
    if how in ("prepared", "weight norm folded"):
        model.backbone.fold_weight_norm()
    if how in ("prepared", "positions cached"):
        model.backbone.cache_positions()
    if how == "compiled":
        model.backbone.prepare_for_inference()
        model.backbone.compile_layers()

    def run() -> None:
        linear._AVAILABLE = ONEDNN and how != "linear layers by MKL"
        with autocast(device, precision):
            recognise(model, batches)

    return run


def reference_inference(preset: str, batches: list[Batch], precision: str) -> Pass:
    device = batches[0].waveform_BS.device
    model = reference_model(preset, device).eval()
    masks = [attention_mask(batch) for batch in batches]

    @torch.inference_mode()
    def run() -> None:
        for batch, mask in zip(batches, masks, strict=True):
            with autocast(device, precision):
                model(batch.waveform_BS, attention_mask=mask).logits.argmax(2).cpu()

    return run


def training_pass(parameters: Any, losses: list[Callable[[], Tensor]], device: torch.device, precision: str) -> Pass:
    optimiser = torch.optim.AdamW(parameters, lr=1e-6)

    def run() -> None:
        for loss in losses:
            optimiser.zero_grad()
            with autocast(device, precision):
                value = loss()
            value.backward()
            optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def our_ctc(preset: str, batches: list[Batch], precision: str) -> Pass:
    device = batches[0].waveform_BS.device
    model = our_model(preset).to(device).train()
    config = CtcConfig(mask=MaskConfig(time_probability=0, channel_probability=0))
    batches = [replace(batch, seed=0) for batch in batches]
    model.backbone.config = model.backbone.config.with_(dropout=model.backbone.config.dropout.with_(layer=0))
    parameters = [*model.backbone.parameters(), *model.ctc_head.parameters()]
    return training_pass(
        parameters, [lambda b=b: total(ctc_terms(model, b, config)) for b in batches], device, precision
    )


def reference_ctc(preset: str, batches: list[Batch], precision: str) -> Pass:
    device = batches[0].waveform_BS.device
    model = reference_model(preset, device).train()
    ready = []
    for batch in batches:
        beyond = torch.arange(batch.tokens_BU.shape[1]) >= batch.num_tokens_B[:, None]
        ready.append((batch.waveform_BS, attention_mask(batch), batch.tokens_BU.masked_fill(beyond.to(device), -100)))
    losses = [lambda x=x, m=m, y=y: model(x, attention_mask=m, labels=y).loss for x, m, y in ready]
    return training_pass(model.parameters(), losses, device, precision)


def our_pretraining(preset: str, batches: list[Batch], precision: str) -> Pass:
    device = batches[0].waveform_BS.device
    model = our_model(preset).to(device).train()
    model.backbone.config = model.backbone.config.with_(dropout=model.backbone.config.dropout.with_(layer=0))
    config = ContrastiveConfig()
    losses = [lambda b=b: total(contrastive_terms(model, b, config, Progress(0, 1))) for b in cropped(batches)]
    parameters = [*model.backbone.parameters(), *model.self_supervised_head.parameters()]
    return training_pass(parameters, losses, device, precision)


def reference_pretraining(preset: str, batches: list[Batch], precision: str) -> Pass:
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

    device = batches[0].waveform_BS.device
    model = reference_model(preset, device, pretraining=True).train()

    def loss(batch: Batch) -> Tensor:
        shape = (len(batch.waveform_BS), int(model._get_feat_extract_output_lengths(batch.waveform_BS.shape[1])))
        mask = _compute_mask_indices(shape, 0.65, 10, min_masks=2)
        negatives = _sample_negative_indices(shape, 100, mask_time_indices=mask)
        to = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
        value = model(batch.waveform_BS, mask_time_indices=to(mask), sampled_negative_indices=to(negatives)).loss
        return value / int(mask.sum())

    return training_pass(model.parameters(), [lambda b=b: loss(b) for b in cropped(batches)], device, precision)


TASKS: dict[str, tuple[tuple[str, ...], dict[str, Callable[..., Pass]]]] = {
    "inference": (INFERENCE, {"transformers": reference_inference, "ours": our_inference}),
    "ctc": (TRAINING, {"transformers": reference_ctc, "ours": our_ctc}),
    "pretraining": (PRETRAINING, {"transformers": reference_pretraining, "ours": our_pretraining}),
}
# P-SEW Tables 1 and 6: inference time of one model / that of another.
PAPER = {
    ("sew_d_mid", "w2v2_base"): 0.536,
    ("sew_d_base_plus", "w2v2_base"): 0.903,
    ("w2v2_large", "sew_d_base_plus"): 2.68,
    ("sew_d_tiny", "w2v2_tiny"): 1.00,
    ("sew_d_tiny", "sew_tiny"): 1.12,
}
GAINS = ("as trained", "linear layers by MKL", "weight norm folded", "positions cached", "prepared", "compiled")


def seconds_of(passes: dict[str, Pass], rounds: int) -> dict[str, float]:
    """The best of alternating rounds, after one to warm up."""
    best = dict.fromkeys(passes, float("inf"))
    for round_number in range(rounds + 1):
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            if round_number:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def peak_mib(run: Pass, device: torch.device) -> float:
    """Peak memory of a pass, above what is held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what an earlier pass freed is not counted as held
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**10 - resident / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--presets", nargs="+", choices=COMPARABLE, metavar="PRESET", help="default: a choice for each task"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120, help="audio in the set")
    parser.add_argument("--batch-seconds", type=float, default=60, help="padded audio in a batch (P-SEW: 250)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gains", action="store_true", help="what each preparation for inference brings")
    parser.add_argument("--paper", action="store_true", help="P-SEW's ratios of inference time between models")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # of one implementation, in a process of its own
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.paper:
        compare_with_paper(make_batches(options.seconds, options.batch_seconds, device), options)
        return
    for task in ["inference"] if options.gains else options.tasks:
        presets, implementations = TASKS[task]
        for preset in options.presets or presets:
            batches = make_batches(options.seconds, options.batch_seconds, device)
            if options.memory_of:
                run = implementations[options.memory_of](preset, batches, options.precision)
                run()
                print(peak_mib(run, device))
            elif options.gains:
                show_gains(preset, batches, options)
            else:
                compare(task, preset, batches, options)


def compare(task: str, preset: str, batches: list[Batch], options: argparse.Namespace) -> None:
    implementations = TASKS[task][1]
    passes = {name: build(preset, batches, options.precision) for name, build in implementations.items()}
    seconds = seconds_of(passes, options.rounds)
    memory = {name: _memory_of(name, task, preset) for name in implementations}
    print(
        f"{task:12} {preset:12} transformers {seconds['transformers']:7.2f} s  ours {seconds['ours']:7.2f} s  "
        f"ratio {seconds['transformers'] / seconds['ours']:5.2f}   peak memory {memory['transformers']:6.0f} MiB and "
        f"{memory['ours']:6.0f} MiB, ratio {memory['transformers'] / memory['ours']:5.2f}",
        flush=True,
    )


def _memory_of(name: str, task: str, preset: str) -> float:
    rest = [word for word in sys.argv[1:] if word != "--gains"]
    command = [sys.executable, "-m", "tests.benchmarks.models", *rest, "--memory-of", name]
    command += ["--tasks", task, "--presets", preset]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def compare_with_paper(batches: list[Batch], options: argparse.Namespace) -> None:
    """P-SEW's ratios of inference time (one V100, fp32, dev-other), and what they are here."""
    presets = list(dict.fromkeys(name for pair in PAPER for name in pair))
    seconds = seconds_of({name: our_inference(name, batches, options.precision) for name in presets}, options.rounds)
    for (above, below), published in PAPER.items():
        ratio = seconds[above] / seconds[below]
        print(f"paper        {above:15} / {below:15} P-SEW {published:.3f}  here {ratio:.3f}", flush=True)


def show_gains(preset: str, batches: list[Batch], options: argparse.Namespace) -> None:
    passes = {how: our_inference(preset, batches, options.precision, how) for how in GAINS}
    seconds = seconds_of(passes, options.rounds)
    shown = "  ".join(f"{how} {seconds['as trained'] / value:.3f}" for how, value in seconds.items())
    print(f"inference    {preset:12} speed relative to the model as trained: {shown}", flush=True)


if __name__ == "__main__":
    main()
