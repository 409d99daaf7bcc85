"""Small folders laid out as code-switched and telephone corpora are, with real recordings: the embedded prompts.

Code-switched speech is two prompts of different languages, one after the other: real voices, artificial switches, and
other languages than the corpora have. The ids, speakers and callers are made up; texts are those of the recordings.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from tests.trainables.corpora.layouts import RATE_HZ, Recording, recordings, write_audio, write_table, write_text

TELEPHONE_HZ = 8_000
PAUSE_SECONDS = 0.25
Timed = list[tuple[float, float, str]]  # start, end and text of utterances, in seconds


def code_switched(first: str = "es", second: str = "en") -> Iterator[Recording]:
    for one, other in zip(recordings(first, longest_seconds=1.2), recordings(second, longest_seconds=1.2), strict=True):
        yield Recording(np.concatenate([one.samples, other.samples]), f"{one.text} {other.text}")


def joined(spoken: Iterator[Recording], count: int, lead_seconds: float = 0.5) -> tuple[NDArray[np.float32], Timed]:
    """A recording at 16 kHz of that many utterances with pauses between them, and where they are."""
    samples = [np.zeros(int(lead_seconds * RATE_HZ), np.float32)]
    utterances = []
    for recording in itertools.islice(spoken, count):
        start = sum(map(len, samples)) / RATE_HZ
        samples += [recording.samples, np.zeros(int(PAUSE_SECONDS * RATE_HZ), np.float32)]
        utterances.append((start, start + recording.seconds, recording.text))
    return np.concatenate(samples), utterances


def write_telephone(path: Path, sides: Iterable[NDArray[np.float32]]) -> None:
    """Both sides in a SPHERE file of 8 kHz mu-law, as LDC has them."""
    channels = [resample_poly(side, 1, RATE_HZ // TELEPHONE_HZ) for side in sides]
    longest = max(map(len, channels))
    padded = np.stack([np.pad(channel, (0, longest - len(channel))) for channel in channels], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, padded, TELEPHONE_HZ, format="NIST", subtype="ULAW")


CONVERSATIONS = ("2001", "2005", "2006", "3178")
CALLERS = {"2001": ("1020", "1044"), "2005": ("1051", "1020"), "2006": ("1060", "1070"), "3178": ("1080", "1060")}


def switchboard(root: Path) -> Path:
    """Switchboard-1 and eval2000."""
    spoken = recordings("en")
    for conversation in CONVERSATIONS:
        sides = [joined(spoken, 4, lead) for lead in (0.5, 0.8)]
        audio = root / "LDC97S62" / "swb1_d1" / "data" / f"sw0{conversation}.sph"
        write_telephone(audio, (samples for samples, _ in sides))
        for side, (_, utterances) in zip("AB", sides, strict=True):
            folder = root / "swb_ms98_transcriptions" / conversation[:2] / conversation
            name = f"sw{conversation}{side}-ms98-a"
            lines = [f"{name}-0001 0.000000 {utterances[0][0]:.6f} [silence]"]
            lines += [f"{name}-{n:04d} {s:.6f} {e:.6f} {text}" for n, (s, e, text) in enumerate(utterances, start=2)]
            write_text(folder / f"{name}-trans.text", lines)
    return _evaluation(root)


def _evaluation(root: Path) -> Path:
    lines = [';; CATEGORY "0" "" ""', ';; LABEL "O" "Overall" ""']
    for recording in ("en_4156", "sw_4390"):
        sides = [joined(recordings("en"), 2, lead) for lead in (0.5, 0.8)]
        write_telephone(root / "LDC2002S09" / "hub5e_00" / "english" / f"{recording}.sph", (s for s, _ in sides))
        for side, (_, utterances) in zip("AB", sides, strict=True):
            place = f"{recording} {side} {recording}_{side}"
            lines.append(f"{place} 0.00 {utterances[0][0]:.2f} <O,en,F,en-F> IGNORE_TIME_SEGMENT_IN_SCORING")
            lines += [f"{place} {start:.2f} {end:.2f} <O,en,F,en-F> {text.upper()}" for start, end, text in utterances]
    write_text(root / "LDC2002T43" / "reference" / "hub5e00.english.000405.stm", lines)
    return root


def with_callers(root: Path) -> Path:
    """LDC's table of callers, into Switchboard-1."""
    rows = [f"{c},Y,{a},{b},303,0,910304,1218,1222, ," for c, (a, b) in CALLERS.items()]
    write_text(root / "LDC97S62" / "conv_tab.csv", rows)
    return root


def with_fisher(root: Path) -> Path:
    """One call of part 1."""
    sides = [joined(recordings("en"), 3, lead) for lead in (0.5, 0.8)]
    call = "fe_03_00001"
    write_telephone(root / "LDC2004S13" / "fe_03_p1_sph1" / "audio" / "000" / f"{call}.sph", (s for s, _ in sides))
    transcripts = root / "LDC2004T19" / "fe_03_p1_tran"
    lines = [f"# {call}.sph", "# Transcribed at the LDC", ""]
    for side, (_, utterances) in zip("AB", sides, strict=True):
        for start, end, text in utterances:
            lines += [f"{start:.2f} {end:.2f} {side}: {text}", ""]
    write_text(transcripts / "data" / "trans" / "000" / f"{call}.txt", lines)
    header = "CALL_ID,DATE,TOPICID,SIG_GRADE,CNV_GRADE,APIN,ASX.DL,APHNUM,APHSET,APHTYP,BPIN,BSX.DL"
    write_text(transcripts / "doc" / "fe_03_p1_calldata.tbl", [header, "00001,20021211,ENG01,,,2602,m.a,,,,1790,f.a"])
    return root


def ascend(root: Path) -> Path:
    spoken = code_switched()
    speakers = {"train": (1, 3), "validation": (5,), "test": (7,)}
    for split, numbers in speakers.items():
        rows = []
        for speaker, count in itertools.product(numbers, range(3)):
            recording = next(spoken)
            file_name = f"waves/ses1_spk{speaker}_L{count}_{count * 10:.4f}_{recording.seconds:.4f}.wav"
            write_audio(root / file_name, recording.samples)
            language = ("zh", "en", "mixed")[count]
            rows.append([file_name, recording.text, round(recording.seconds, 3), language, speaker, 1, "persona"])
        with (root / f"{split}_metadata.csv").open("w", encoding="utf-8", newline="") as stream:
            columns = "file_name,transcription,duration,language,original_speaker_id,session_id,topic"
            csv.writer(stream).writerows([columns.split(","), *rows])
    return root


SEAME_TRAIN = {"conversation": ("01NC01FBX_0101", "01NC02FBY_0101", "02NC03FBX_0101"), "interview": ("NI01MAX_0101",)}
SEAME_TEST = {"dev_man": ("conversation", "06NC12MAY_0101"), "dev_sge": ("interview", "NI66MBQ_0101")}
SEAME_UNLISTED = ("interview", "UI05MAZ_0101")


def seame(root: Path) -> Path:
    """With the last utterance of each test recording, and a whole recording, in no list."""
    spoken = code_switched()
    for kind, names in SEAME_TRAIN.items():
        for name in names:
            _seame_recording(root, kind, name, spoken)
    _seame_recording(root, *SEAME_UNLISTED, spoken)
    lists = root / "SEAME-dev-set"
    for test_set, (kind, name) in SEAME_TEST.items():
        utterances = _seame_recording(root, kind, name, spoken)
        speaker, recording = ("nc12m", "06nc12may_0101") if test_set == "dev_man" else ("ni66m", "ni66mbq_0101")
        listed = [
            f"{speaker}-{recording}-{round(start * 100):05d}-{round(end * 100):05d} {recording} {start:.2f} {end:.2f}"
            for start, end, _ in utterances[:-1]
        ]
        write_text(lists / test_set / "segments", listed)
    in_train = [(kind, name.lower()) for kind, names in SEAME_TRAIN.items() for name in names]
    write_text(
        lists / "train" / "wav_file.txt", (f"./seame/phasei/original/{kind}/{n}/{n}.wav" for kind, n in in_train)
    )
    return root


def _seame_recording(root: Path, kind: str, name: str, spoken: Iterator[Recording]) -> Timed:
    samples, utterances = joined(spoken, 3)
    folder = root / "data" / kind
    write_audio(folder / "audio" / f"{name}.flac", samples)
    lines = [f"{name}\t{round(s * 1000)}\t{round(e * 1000)}\tCS\t{text}" for s, e, text in utterances]
    write_text(folder / "transcript" / "phaseII" / f"{name}.txt", lines)
    return utterances


def talcs(root: Path) -> Path:
    spoken = code_switched()
    for number, part in enumerate(("train_set", "dev_set", "test_set")):
        labels = []
        for count in range(3):
            name = f"210_40223_210_6228_{number}_1533298404_{count}_555"
            recording = next(spoken)
            write_audio(root / "TALCS_corpus" / part / "wav" / f"{name}.wav", recording.samples)
            labels.append(f"{name} {recording.text.upper()}")
        write_text(root / "TALCS_corpus" / part / "label.txt", labels)
    return root


def mucs2021(root: Path) -> Path:
    """Both languages; three speakers, of one recording each, in train."""
    for language in ("Hindi-English", "Bengali-English"):
        spoken = code_switched("it", "en")
        for part, count in (("train", 3), ("test", 1)):
            tables: dict[str, list[str]] = {"wav.scp": [], "segments": [], "text": [], "utt2spk": []}
            for number in range(count):
                samples, utterances = joined(spoken, 3)
                recording = f"{language[0]}{part}{number}"
                write_audio(root / language / part / f"{recording}.wav", samples)
                tables["wav.scp"].append(f"{recording} {recording}.wav")
                for position, (start, end, text) in enumerate(utterances):
                    utterance = f"{number}{part}_{recording}_{position:04d}"
                    tables["segments"].append(f"{utterance} {recording} {start:.3f} {end:.3f}")
                    tables["text"].append(f"{utterance} {text}")
                    tables["utt2spk"].append(f"{utterance} {number}{part}")
            for table, rows in tables.items():
                write_text(root / language / part / "transcripts" / table, rows)
    return root


def folder(root: Path) -> Path:
    """Stretches of one stereo file."""
    sides = [joined(recordings(language), 4) for language in ("es", "it")]
    longest = max(len(samples) for samples, _ in sides)
    stereo = np.stack([np.pad(samples, (0, longest - len(samples))) for samples, _ in sides], axis=1)
    write_audio(root / "audio" / "call.flac", stereo)
    rows = []
    for channel, (language, (_, utterances)) in enumerate(zip(("es", "it"), sides, strict=True)):
        for number, (start, end, text) in enumerate(utterances):
            rows.append(
                {
                    "id": f"{language}-{number}",
                    "path": "audio/call.flac",
                    "text": text,
                    "speaker": f"{language}-{number}",
                    "language": language,
                    "split": ("train", "train", "dev", "test")[number],
                    "start_seconds": f"{start:.4f}",
                    "duration_seconds": f"{end - start:.4f}",
                    "channel": str(channel),
                }
            )
    write_table(root / "manifest.tsv", rows)
    return root
