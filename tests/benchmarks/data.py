"""Delivery of batches beside torch's DataLoader, lhotse and Hugging Face datasets: the same audio, in one run.

    python -m tests.benchmarks.data                                # prompts in FLAC, in MP3, and long recordings
    python -m tests.benchmarks.data --root FOLDER --sets flac      # a corpus folder instead of the prompts

A batch is what a training step takes: float32 waveforms padded with zeros, and their lengths. Speed is seconds of
audio, padding not counted, in a second of the clock. Rounds alternate between the pipelines after one to warm up: files
are in the page cache and workers are running. The best round counts; the worst is printed beside it. One thread or
process decodes for each worker; 0 workers decode in the caller.

torchaudio.load needs torchcodec; the usual pipeline reads with soundfile and resamples with torchaudio instead. So do
the pipelines of Hugging Face, whose own Audio feature needs torchcodec too. They are left out unless datasets is there:

    pip install --target FOLDER --no-deps datasets dill multiprocess xxhash    # then PYTHONPATH=FOLDER
"""

from __future__ import annotations

import argparse
import csv
import functools
import gc
import importlib
import importlib.util
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lhotse
import numpy as np
import soundfile
import torch
import torchaudio
from lhotse.dataset import DynamicBucketingSampler, IterableDatasetWrapper, make_worker_init_fn
from lhotse.dataset.unsupervised import UnsupervisedWaveformDataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from trainables.data.audio import load_audio, waveform
from trainables.data.batches import Stream, epoch_batches
from trainables.data.config import SAMPLE_RATE_HZ, CropConfig, PromptsConfig
from trainables.data.corpora.findings import Limits
from trainables.data.corpora.prepare import prepare
from trainables.data.corpora.registry import CORPORA
from trainables.data.corpus import Utterance, read_corpus, read_manifest

LANGUAGES = ("en", "es", "fr", "it", "ru")
BUCKETS = 10
LONG_SECONDS = 60.0
CROP = CropConfig()
Padded = tuple[Tensor, Tensor]  # waveforms (B, S), lengths (B,)
Pipeline = Callable[[], Iterator[Padded]]  # one epoch
Key = tuple[str, int]  # name of a pipeline, workers


@dataclass(frozen=True)
class AudioSet:
    """The same utterances as audio files and as a store."""

    files: tuple[Utterance, ...]
    stored: tuple[Utterance, ...]
    folder: Path  # for what the pipelines write

    @property
    def paths(self) -> list[Path]:
        return [utterance.path for utterance in self.files]

    @property
    def durations_seconds(self) -> list[float]:
        return [utterance.duration_seconds for utterance in self.files]


def prompts() -> list[Utterance]:
    return [u for language in LANGUAGES for u in read_corpus(PromptsConfig(language=language)).unlabelled]


def some(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Utterances of about that duration in total, from everywhere in the list."""
    total = sum(u.duration_seconds for u in utterances)
    step = max(1.0, total / seconds)
    return [utterances[int(number * step)] for number in range(int(len(utterances) / step))]


def joined(utterances: Iterable[Utterance], seconds: float) -> Iterator[Tensor]:
    """Recordings of that length, of consecutive utterances."""
    parts: list[Tensor] = []
    for utterance in utterances:
        parts.append(waveform(utterance))
        if sum(map(len, parts)) >= seconds * SAMPLE_RATE_HZ:
            yield torch.cat(parts)[: int(seconds * SAMPLE_RATE_HZ)]
            parts = []


def write_set(waveforms: Iterable[Tensor], folder: Path, suffix: str = "flac", rate_hz: int = 16_000) -> AudioSet:
    """Audio files of that format and rate, and the store that `study corpora prepare folder` makes of them."""
    source, store = folder / "source", folder / "store"
    source.mkdir(parents=True)
    with (source / "manifest.tsv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "path", "text", "split", "duration_seconds"])
        for number, waveform_S in enumerate(waveforms):
            samples = torchaudio.functional.resample(waveform_S, SAMPLE_RATE_HZ, rate_hz).numpy()
            name = f"{number:05d}.{suffix}"
            soundfile.write(source / name, samples, rate_hz)
            table.writerow([number, name, "", "unlabelled", len(waveform_S) / SAMPLE_RATE_HZ])
    prepared = prepare(CORPORA["folder"], "folder", source, store, limits=Limits(max_seconds=LONG_SECONDS))
    if prepared.findings:
        raise SystemExit(f"{source}: the pipelines would not read the same utterances: {prepared.findings}")
    return AudioSet(tuple(read_manifest(source)), tuple(read_manifest(store)), folder)


def our_pipeline(
    utterances: Sequence[Utterance], batch_seconds: float, threads: int, crop: CropConfig | None = None
) -> Pipeline:
    """What the loop trains on, each time from the first batch on, with an empty queue."""
    longest_seconds = crop.max_seconds if crop else math.inf
    durations_seconds = [min(u.duration_seconds, longest_seconds) for u in utterances]
    batches = len(epoch_batches(durations_seconds, batch_seconds, seed=0, epoch=0))

    def epoch() -> Iterator[Padded]:
        load_audio.cache_clear()  # or only the first round would decode
        stream = Stream(
            utterances,
            None,
            batch_seconds=batch_seconds,
            seed=0,
            augment_speed=False,
            rank=0,
            world_size=1,
            crop=crop,
            threads=threads,
        )
        for _ in range(batches):
            (batch,) = stream.next()
            yield batch.waveform_BS, batch.num_samples_B

    return epoch


@functools.cache
def resampler(rate_hz: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate_hz, SAMPLE_RATE_HZ)


def decoded(path: Path | str) -> Tensor:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    waveform_S: Tensor = resampler(rate_hz)(torch.from_numpy(samples))
    return waveform_S


class Files(Dataset[Tensor]):
    """The usual data set: the index of a file to its samples."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> Tensor:
        return decoded(self.paths[index])


def collated(waveforms: Sequence[Tensor]) -> Padded:
    return pad_sequence(list(waveforms), batch_first=True), torch.tensor([len(w) for w in waveforms])


def bucketed(durations_seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """The usual batches: utterances in random order within buckets of like length; padded, no batch is longer."""
    random = np.random.default_rng(0)
    batches: list[list[int]] = []
    for bucket in np.array_split(np.argsort(durations_seconds), BUCKETS):
        batches.append([])
        for index in random.permutation(bucket).tolist():
            longest = max(durations_seconds[i] for i in [*batches[-1], index])
            if batches[-1] and longest * (len(batches[-1]) + 1) > batch_seconds:
                batches.append([])
            batches[-1].append(index)
    filled = [batch for batch in batches if batch]
    random.shuffle(filled)
    return filled


def dataloader_pipeline(dataset: Any, collate: Callable[[Any], Padded], batches: Any, workers: int) -> Pipeline:
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: iter(loader)


def lhotse_pipeline(cuts: Any, batch_seconds: float, workers: int) -> Pipeline:
    sampler = DynamicBucketingSampler(cuts, max_duration=batch_seconds, shuffle=True, num_buckets=BUCKETS)
    loader = DataLoader(
        UnsupervisedWaveformDataset(),
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: ((batch["audio"], batch["audio_lens"]) for batch in loader)


def lhotse_cuts(audio: AudioSet) -> Any:
    recordings = [lhotse.Recording.from_file(path) for path in audio.paths]
    cuts = [recording.resample(SAMPLE_RATE_HZ).to_cut() for recording in recordings]
    return lhotse.CutSet.from_cuts(cuts)


def shar_pipeline(audio: AudioSet, coding: str, batch_seconds: float, workers: int) -> Pipeline:
    """lhotse's own storage, a shard for each worker or more; as there are no files, the workers choose the batches."""
    folder = audio.folder / f"shar_{coding}"
    if not folder.is_dir():
        folder.mkdir()
        shard_size = max(1, len(audio.files) // 8)
        lhotse_cuts(audio).to_shar(folder, fields={"recording": coding}, shard_size=shard_size)
    cuts = lhotse.CutSet.from_shar(in_dir=folder, split_for_dataloading=workers > 0, shuffle_shards=True)
    sampler = DynamicBucketingSampler(cuts, max_duration=batch_seconds, shuffle=True, num_buckets=BUCKETS)
    loader = DataLoader(
        IterableDatasetWrapper(UnsupervisedWaveformDataset(), sampler, auto_increment_epoch=True),
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=make_worker_init_fn(rank=0, world_size=1) if workers else None,
    )
    return lambda: ((batch["audio"], batch["audio_lens"]) for batch in loader)


def decoded_rows(rows: dict[str, Any]) -> dict[str, list[Tensor]]:
    return {"samples": [decoded(audio["path"]) for audio in rows["audio"]]}


def collated_rows(rows: Sequence[dict[str, Tensor]]) -> Padded:
    return collated([row["samples"] for row in rows])


def huggingface_sets(audio: AudioSet) -> dict[str, Any]:
    """Paths that a transform decodes, and samples that are in Arrow already."""
    datasets = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    paths = datasets.Dataset.from_dict({"audio": [str(path) for path in audio.paths]})
    files = paths.cast_column("audio", datasets.Audio(decode=False))
    arrow = files.map(
        decoded_rows,
        batched=True,
        batch_size=100,
        remove_columns=["audio"],
        features=datasets.Features({"samples": datasets.Sequence(datasets.Value("float32"))}),
        cache_file_name=str(audio.folder / "samples.arrow"),
    )
    return {"datasets, files": files.with_transform(decoded_rows), "datasets, arrow": arrow.with_format("torch")}


def pipelines(audio: AudioSet, batch_seconds: float, workers: Sequence[int]) -> dict[Key, Pipeline]:
    """Pipelines over the same audio."""
    batches = bucketed(audio.durations_seconds, batch_seconds)
    cuts = lhotse_cuts(audio)
    rows = huggingface_sets(audio) if importlib.util.find_spec("datasets") else {}
    found: dict[Key, Pipeline] = {}
    for count in workers:
        found["ours, store", count] = our_pipeline(audio.stored, batch_seconds, count)
        found["ours, files", count] = our_pipeline(audio.files, batch_seconds, count)
        found["DataLoader, files", count] = dataloader_pipeline(Files(audio.paths), collated, batches, count)
        found["lhotse, files", count] = lhotse_pipeline(cuts, batch_seconds, count)
        for coding in ("flac", "wav"):
            found[f"lhotse, shar {coding}", count] = shar_pipeline(audio, coding, batch_seconds, count)
        for name, dataset in rows.items():
            found[name, count] = dataloader_pipeline(dataset, collated_rows, batches, count)
    return found


@dataclass(frozen=True)
class Epoch:
    """What one pass over a set took and delivered."""

    seconds: float
    samples: int
    padded_samples: int

    @property
    def speed(self) -> float:
        """Seconds of audio in a second."""
        return self.samples / SAMPLE_RATE_HZ / self.seconds

    @property
    def padding(self) -> float:
        return 1 - self.samples / self.padded_samples


def run(pipeline: Pipeline) -> Epoch:
    gc.collect()
    samples = padded_samples = 0
    started = time.perf_counter()
    for waveform_BS, num_samples_B in pipeline():
        samples += int(num_samples_B.sum())
        padded_samples += waveform_BS.numel()
    return Epoch(time.perf_counter() - started, samples, padded_samples)


def compare(set_name: str, found: dict[Key, Pipeline], rounds: int) -> None:
    """Print each pipeline's speed, and how many times faster ours is from the store, each at its best."""
    epochs: dict[Key, list[Epoch]] = {key: [] for key in found}
    for round_number in range(rounds + 1):
        for key, pipeline in found.items():
            epoch = run(pipeline)
            if round_number:
                epochs[key].append(epoch)
    fastest: dict[str, float] = {}
    for (name, workers), measured in epochs.items():
        best, worst = max(e.speed for e in measured), min(e.speed for e in measured)
        fastest[name] = max(best, fastest.get(name, 0.0))
        padding = sum(e.padding for e in measured) / len(measured)
        speeds = f"{best:8.0f} audio s/s (worst round {worst:8.0f})"
        print(f"{set_name:5} {name:18} {workers} workers {speeds}   padding {padding:5.1%}", flush=True)
    ratios = [f"{name} {fastest['ours, store'] / speed:.1f}" for name, speed in fastest.items() if "ours" not in name]
    print(f"{set_name:5} ours from the store is as many times faster: {'   '.join(ratios)}")
    if not any("datasets" in name for name in fastest):
        print(f"{set_name:5} Hugging Face datasets is not installed, and left out")


def compare_crops(audio: AudioSet, batch_seconds: float, workers: Sequence[int], rounds: int) -> None:
    """From the store a crop takes its share of a whole recording's time, or little more. A file is decoded whole."""
    share = CROP.max_seconds / LONG_SECONDS
    for kept, utterances in (("store", audio.stored), ("files", audio.files)):
        for count in workers:
            pair = our_pipeline(utterances, batch_seconds, count), our_pipeline(utterances, batch_seconds, count, CROP)
            measured = [[run(pipeline) for pipeline in pair] for _ in range(rounds + 1)][1:]
            whole, crops = (min(epochs, key=lambda e: e.seconds) for epochs in zip(*measured, strict=True))
            speeds = f"whole {whole.speed:8.0f} audio s/s   crops {crops.speed:8.0f} audio s/s"
            time_share = f"a crop takes {crops.seconds / whole.seconds:.2f} of the time (its length: {share:.2f})"
            print(f"long  ours, {kept:12} {count} workers {speeds}   {time_share}", flush=True)


def random_access(audio: AudioSet, rounds: int, seconds: float = 2.0) -> None:
    """Milliseconds to read 2 s from a random place of a random recording."""
    count = int(seconds * SAMPLE_RATE_HZ)
    cuts = list(lhotse_cuts(audio))
    readers: dict[str, Callable[[int, int], object]] = {
        "ours, store": lambda index, first: waveform(audio.stored[index], first, count),
        "soundfile": lambda index, first: soundfile.read(audio.paths[index], count, first, dtype="float32"),
        "lhotse": lambda index, first: (
            cuts[index].truncate(offset=first / SAMPLE_RATE_HZ, duration=seconds).load_audio()
        ),
    }
    random = np.random.default_rng(0)
    lengths = [utterance.stored[1] for utterance in audio.stored if utterance.stored]
    indices = random.integers(len(lengths), size=200).tolist()
    places = [(index, int(random.integers(lengths[index] - count))) for index in indices]
    for name, read in readers.items():
        best = float("inf")
        for _ in range(rounds + 1):
            started = time.perf_counter()
            for index, first in places:
                read(index, first)
            best = min(best, time.perf_counter() - started)
        print(f"long  random access to {seconds:g} s: {name:12} {best / len(places) * 1e3:7.3f} ms", flush=True)


def show_padding(name: str, durations_seconds: Sequence[float], epochs: int = 3) -> None:
    """Of our batches, over some epochs."""
    shown = []
    for batch_seconds in (25, 50, 100, 200, 400):
        batches = [b for e in range(epochs) for b in epoch_batches(durations_seconds, batch_seconds, 0, e)]
        padded = sum(len(batch) * max(durations_seconds[i] for i in batch) for batch in batches)
        shown.append(f"{batch_seconds} s {1 - epochs * sum(durations_seconds) / padded:.1%}")
    print(f"padding of our batches, {name}: {'  '.join(shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a corpus folder, prepared or not, instead of the prompts")
    parser.add_argument("--sets", nargs="+", default=["flac", "mp3", "long"], choices=("flac", "mp3", "long"))
    parser.add_argument("--threads", type=int, default=2, help="workers: threads of ours, processes of the others")
    parser.add_argument("--seconds", type=float, default=3600, help="audio in a set; a quarter of it for mp3")
    parser.add_argument("--batch-seconds", type=float, default=100, help="padded audio in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    utterances = read_manifest(options.root) if options.root else prompts()
    show_padding(options.root.name if options.root else "prompts", [u.duration_seconds for u in utterances])
    workers = sorted({0, options.threads})
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sets:
            _measure(name, utterances, Path(folder) / name, workers, options)


def _measure(
    name: str, utterances: list[Utterance], folder: Path, workers: Sequence[int], options: argparse.Namespace
) -> None:
    chosen = some(utterances, options.seconds / (4 if name == "mp3" else 1))
    if name == "long":
        audio = write_set(joined(chosen, LONG_SECONDS), folder)
        compare_crops(audio, options.batch_seconds, workers, options.rounds)
        random_access(audio, options.rounds)
        return
    waveforms = map(waveform, chosen)
    audio = write_set(waveforms, folder) if name == "flac" else write_set(waveforms, folder, "mp3", 48_000)
    compare(name, pipelines(audio, options.batch_seconds, workers), options.rounds)


if __name__ == "__main__":
    main()
