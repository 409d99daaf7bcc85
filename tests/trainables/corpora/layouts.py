"""Small folders laid out as published corpora are after unpacking, with real recordings: the embedded prompts.

The ids, speakers and years are made up; texts are those of the recordings.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from trainables.data.corpus import LABELLED, PROMPTS

RATE_HZ = 16_000
FORMATS = {".flac": "FLAC", ".ogg": "OGG", ".wav": "WAV", ".mp3": "MP3", ".sph": "NIST"}


@dataclass(frozen=True)
class Recording:
    """A prompt: its samples at 16 kHz, and its text."""

    samples: NDArray[np.float32]
    text: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE_HZ


def recordings(language: str, *, longest_seconds: float = 2.0) -> Iterator[Recording]:
    """Short prompts, over and over."""
    return itertools.cycle(_recordings(language, longest_seconds))


@functools.cache
def _recordings(language: str, longest_seconds: float, count: int = 12) -> tuple[Recording, ...]:
    folder = PROMPTS / language
    with (folder / "manifest.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    # Some of the shortest are beeps, with the text of what they are.
    short = [r for r in rows if r["has_digits"] == "0" and 0.5 <= float(r["duration_seconds"]) <= longest_seconds]
    read = ((soundfile.read(folder / row["path"], dtype="float32"), row["text"]) for row in short[:count])
    return tuple(Recording(samples, text) for (samples, rate_hz), text in read if rate_hz == RATE_HZ)


def write_audio(path: Path, samples: NDArray[np.float32]) -> None:
    """In the format that the name ends in; `.sph` is NIST SPHERE."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE_HZ, format=FORMATS[path.suffix])


def write_text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    write_text(path, ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)])


def _chapter(folder: Path, chapter: str, spoken: Iterator[Recording], count: int = 2) -> None:
    """A chapter of LibriSpeech; `chapter` is SPEAKER-CHAPTER."""
    place, lines = folder / chapter.replace("-", "/"), []
    for number, recording in enumerate(itertools.islice(spoken, count)):
        write_audio(place / f"{chapter}-{number:04d}.flac", recording.samples)
        lines.append(f"{chapter}-{number:04d} {recording.text.upper()}")
    write_text(place / f"{chapter}.trans.txt", lines)


LIBRISPEECH = {
    "train-clean-100": ("103-1240", "103-1241", "211-122425"),
    "train-clean-360": ("14-208", "16-122827"),
    "train-other-500": ("20-205", "25-123319"),
    "dev-clean": ("84-121123",),
    "dev-other": ("116-288045",),
    "test-clean": ("61-70968",),
    "test-other": ("367-130732",),
}
LIMITED = {  # one utterance of each part of the lists
    "1h/0/clean": "103-1240-0000",
    "1h/0/other": "20-205-0000",
    "1h/1/clean": "103-1241-0000",
    "1h/2/clean": "103-1241-0001",
    "1h/3/clean": "14-208-0000",
    "1h/4/other": "20-205-0001",
    "1h/5/clean": "16-122827-0000",
    "9h/clean": "211-122425-0001",
    "9h/other": "25-123319-0001",
}


def librispeech(root: Path) -> Path:
    """LibriSpeech as its archives unpack, and the limited supervision archive of Libri-Light beside it."""
    spoken = recordings("en")
    for part, chapters in LIBRISPEECH.items():
        for chapter in chapters:
            _chapter(root / "LibriSpeech" / part, chapter, spoken)
    for part, utterance in LIMITED.items():
        chapter = utterance.rpartition("-")[0]
        folder = root / "librispeech_finetuning" / part / chapter.replace("-", "/")
        write_audio(folder / f"{utterance}.flac", next(spoken).samples)
        write_text(folder / f"{chapter}.trans.txt", [f"{utterance} AS ABOVE"])
    return root


def mini_librispeech(root: Path) -> Path:
    spoken = recordings("en")
    for chapter in ("1088-134315", "118-47824"):
        _chapter(root / "train-clean-5", chapter, spoken)
    for chapter in ("1272-128104", "1272-135031", "174-50561", "84-121123"):
        _chapter(root / "dev-clean-2", chapter, spoken)
    return root


def librilight(root: Path) -> Path:
    """Each file is several prompts with 0.2 s between them; their places are its voice activity."""
    spoken, pause = recordings("en"), np.zeros(RATE_HZ // 5, np.float32)
    for size, speaker, book in (("small", "100", "sea_fairies"), ("small", "960", "holland"), ("medium", "12", "emma")):
        pieces: list[NDArray[np.float32]] = []
        activity = []
        for recording in itertools.islice(spoken, 3):
            start = sum(map(len, pieces)) / RATE_HZ
            activity.append([start, start + recording.seconds])
            pieces += [recording.samples, pause]
        file = root / size / speaker / book / f"{book}_01_64kb.flac"
        write_audio(file, np.concatenate(pieces))
        about = {"speaker": speaker, "book_meta": {"id": "319"}, "snr": 5.391, "voice_activity": activity}
        file.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    return root


def commonvoice(root: Path, release: str = "cv-corpus-13.0-2023-03-09") -> Path:
    """Spanish, and French under a name with a region, as `sv-SE` has one; four clips a split."""
    for name, language in (("es", "es"), ("fr-FR", "fr")):
        folder, spoken = root / release / name, recordings(language)
        tables: dict[str, list[dict[str, str]]] = {}
        clips = itertools.count(1000)
        for split in (*LABELLED, "validated", "other"):
            tables[split] = [_clip(folder, split, next(clips), next(spoken), language) for _ in range(4)]
        tables["validated"] += [row for split in LABELLED for row in tables[split]]
        for split, rows in tables.items():
            write_table(folder / f"{split}.tsv", rows)
    return root


def _clip(folder: Path, split: str, number: int, recording: Recording, language: str) -> dict[str, str]:
    name = f"common_voice_{language}_{number}.mp3"
    write_audio(folder / "clips" / name, recording.samples)
    sentence = f'"{recording.text.capitalize()}, {number % 10}.'  # some sentences have a quote that does not end
    spoken = {"client_id": f"{split}{number % 2}", "path": name, "sentence": sentence, "up_votes": "2"}
    about = ("down_votes", "age", "gender", "accents", "variant", "locale", "segment")
    return spoken | dict.fromkeys(about, "") | {"down_votes": "0", "locale": language}


def covost2(root: Path) -> Path:
    """Spanish of Common Voice with the published table in the folder above: path, translation and split."""
    folder, spoken = root / "es", recordings("es")
    rows: list[dict[str, str]] = []
    table: list[dict[str, str]] = []
    for number, split in enumerate(("train", "train_covost", "dev", "dev_covost", "test", "train", "test_covost")):
        rows.append(_clip(folder, split, number, next(spoken), "es"))
        table.append({"path": rows[-1]["path"], "translation": rf"a \\ backslash {number}", "split": split})
    write_table(folder / "validated.tsv", rows)
    write_table(root / "covost_v2.es_en.tsv", table)
    return root


def tedlium3(root: Path) -> Path:
    """Talks of three prompts each; the first second of a talk of dev is not to be scored."""
    spoken = recordings("en")
    for split, talks in {"train": ("AdaA_2010", "BobB_2011"), "dev": ("CyC_2012",), "test": ("DeeD_2013",)}.items():
        for talk in talks:
            folder = root / "TEDLIUM_release-3" / "legacy" / split
            start, pieces = 1.0, [np.zeros(RATE_HZ, np.float32)]
            lines = [f"{talk} 1 inter_segment_gap 0 1.00 <o,,unknown> ignore_time_segment_in_scoring"]
            for recording in itertools.islice(spoken, 3):
                end = start + recording.seconds
                lines.append(f"{talk} 1 {talk} {start:.2f} {end:.2f} <o,f0,female> {recording.text} <unk> {{NOISE}}")
                start = end
                pieces.append(recording.samples)
            write_audio(folder / "sph" / f"{talk}.sph", np.concatenate(pieces))
            write_text(folder / "stm" / f"{talk}.stm", lines if split == "dev" else lines[1:])
    return root


def voxpopuli(root: Path) -> Path:
    """Spanish transcribed and unlabelled, Italian unlabelled only."""
    spoken = recordings("es")
    for number, split in enumerate(LABELLED):
        rows = []
        for year, speaker in (("2013", f"{1000 + number}"), ("2018", "None")):
            name = f"{year}1007-0900-PLENARY-{number}-es_{year}1007-21_02_03_{number}"
            recording = next(spoken)
            write_audio(root / "transcribed_data/es" / year / f"{name}.ogg", recording.samples)
            raw = f"{recording.text.capitalize()}."
            about = {"speaker_id": speaker, "split": split, "gender": "female"}
            rows.append({"id": name, "raw_text": raw, "normalized_text": recording.text, **about})
        write_table(root / "transcribed_data/es" / f"asr_{split}.tsv", rows)
    for language, year, number in (("es", "2019", 0), ("es", "2020", 1), ("it", "2019", 0)):
        name = f"{year}0114-0900-PLENARY_{language}_{number}.ogg"
        write_audio(root / "unlabelled_data" / language / year / name, next(recordings(language)).samples)
    return root


def lhotse_recordings(root: Path) -> Path:
    """Pairs of manifests that lhotse writes, two prompts a split; audio paths are relative to the root."""
    from lhotse import RecordingSet, SupervisionSet

    for split, (audio, said) in _lhotse_items(root).items():
        RecordingSet.from_recordings(audio).to_file(root / f"calls_recordings_{split}.jsonl.gz")
        SupervisionSet.from_segments(said).to_file(root / f"calls_supervisions_{split}.jsonl.gz")
    return root


def lhotse_cuts(root: Path) -> Path:
    """Cuts that begin 0.1 s into their recording, with a custom field split; the first has no supervision."""
    from lhotse import CutSet, MonoCut

    cuts = []
    for split, (audio, said) in _lhotse_items(root).items():
        for recording, supervision in zip(audio, said, strict=True):
            seconds = recording.duration - 0.1
            inside = supervision.with_offset(-0.1)
            cut = MonoCut(f"cut-{supervision.id}", 0.1, seconds, 0, [inside], recording=recording)
            cuts.append(cut.with_custom("split", split))
    cuts[0].supervisions.clear()
    CutSet.from_cuts(cuts).to_file(root / "cuts.jsonl")
    return root


def _lhotse_items(root: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    from lhotse import Recording as LhotseRecording
    from lhotse import SupervisionSegment

    items: dict[str, tuple[list[Any], list[Any]]] = {split: ([], []) for split in LABELLED}
    spoken = recordings("it")
    for split, number in itertools.product(LABELLED, range(2)):
        spoken_now, name = next(spoken), f"{split}{number}"
        write_audio(root / "audio" / f"{name}.wav", spoken_now.samples)
        recording = LhotseRecording.from_file(root / "audio" / f"{name}.wav")
        sources = [replace(source, source=f"audio/{name}.wav") for source in recording.sources]
        supervision = SupervisionSegment(
            *(f"said-{name}", name, 0.125, round(spoken_now.seconds - 0.15, 3)),
            text=spoken_now.text,
            language="it",
            speaker=f"speaker-{split}",
        )
        items[split][0].append(replace(recording, sources=sources))
        items[split][1].append(supervision)
    return items
