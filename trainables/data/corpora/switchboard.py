"""Switchboard-1 (LDC97S62) and Fisher English as train and dev, 2000 HUB5 English (eval2000) as test.

Telephone speech in two-channel SPHERE files of 8 kHz; side A is channel 0. libsndfile does not read those that are
compressed by shorten: unpack them with `sph2pipe -p` under the same names. Fisher is read where its speech (LDC2004S13,
LDC2005S13) and transcripts (LDC2004T19, LDC2005T19) are in the folder.

Transcripts of Switchboard-1 are those of the Mississippi State University (swb_ms98_transcriptions,
https://www.isip.piconepress.com/projects/switchboard/), words treated as in Kaldi's egs/swbd/s5c: of
`[laughter-yeah]`, `[it'n/isn't]`, `th[ey]-`, `{yuppiedom}` and `them_1` stay `yeah`, `it'n`, `th-`, `yuppiedom` and
`them`; other markers go. A Fisher line with a passage that was hard to hear, `((...))`, is left out as in Kaldi's
egs/fisher_swbd/s5; `t._v.` becomes `tv`, as Switchboard writes it. Stretches without a word are no utterances.

Dev: Kaldi takes the first 4000 utterances, and says that their speakers may also be in train. Here dev is the first
whole conversations of Switchboard-1, by number, that hold 4000 utterances (or a tenth of them, if that is less).
A speaker is a side of a conversation, unless LDC's `conv_tab.csv` (https://catalog.ldc.upenn.edu/docs/LDC97S62/) lies
in LDC97S62/ and tells the callers; then sides of train conversations whose caller is heard in dev are left out.

Test: the segments of the STM file that the evaluation is scored with, without Kaldi's extension by 0.1 s. Optional
words such as `(I-)` and `(%HESITATION)` are kept, the latter as `uh`; of alternatives `{ a / b }` the first. Word error
rates thus differ from those of sclite with its GLM file. Some of its speakers are also heard in Switchboard-1.

lhotse's recipes open every file, drop or stop at incomplete pairs, and give both sides of a Switchboard conversation
one speaker; so the transcripts are parsed here, after the same formats. Positions of the callers in Fisher's
`*_calldata.tbl` are lhotse's. That all STM lines have the label `<O,...>` is Kaldi's assumption.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trainables.data.corpora.files import file_below, read_lines, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpora.transcripts import stretch
from trainables.data.corpus import CorpusError

SWITCHBOARD, SWITCHBOARD_TEXT = "LDC97S62", "swb_ms98_transcriptions"
EVALUATION, EVALUATION_TEXT = "LDC2002S09", "LDC2002T43"
FISHER = (("LDC2004S13", "LDC2004T19"), ("LDC2005S13", "LDC2005T19"))  # speech, transcripts
STM = "hub5e00.english.000405.stm"
NEEDS = (
    "LDC97S62/ (Switchboard-1), swb_ms98_transcriptions/ (its transcripts, *-ms98-a-trans.text), LDC2002S09/ "
    f"(eval2000) and LDC2002T43/ (its transcripts, {STM}); optionally LDC2004S13/ with LDC2004T19/ and LDC2005S13/ "
    "with LDC2005T19/ (Fisher English, speech with transcripts)"
)
DEV_UTTERANCES = 4000
CHANNELS = {"A": 0, "B": 1}
FISHER_LINE = re.compile(r"([0-9.]+)\s+([0-9.]+)\s+([AB]):\s*(.*)")


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """The splits described above. Raises LayoutError, and CorpusError for a malformed line."""
    folders = [SWITCHBOARD, SWITCHBOARD_TEXT, EVALUATION, EVALUATION_TEXT]
    folders += [folder for pair in FISHER if any((root / one).is_dir() for one in pair) for folder in pair]
    missing = [f"{folder}/" for folder in folders if not (root / folder).is_dir()]
    for folder, pattern in ((SWITCHBOARD_TEXT, "*-ms98-a-trans.text"), (EVALUATION_TEXT, STM)):
        if (root / folder).is_dir() and not any((root / folder).rglob(pattern)):
            missing.append(f"{folder}/**/{pattern}")
    refuse_missing(root, missing, NEEDS)
    return _segments(root)


def _segments(root: Path) -> Iterator[Segment]:
    yield from _with_splits(list(_switchboard(root)))
    for speech, transcripts in FISHER:
        if (root / speech).is_dir():
            yield from _fisher(root / speech, root / transcripts)
    yield from _evaluation(root)


def _audio_files(folder: Path) -> dict[str, Path]:
    """SPHERE files by name; their folders differ between copies of the discs."""
    return {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".sph"}


def _switchboard(root: Path) -> Iterator[Segment]:
    """Utterances by conversation and side, their split not yet set."""
    folder = root / SWITCHBOARD
    audio, callers = _audio_files(folder), _callers(folder)
    for path in sorted((root / SWITCHBOARD_TEXT).rglob("*-ms98-a-trans.text"), key=lambda path: path.name):
        side = path.name.removesuffix("-ms98-a-trans.text")  # sw2001A
        if not re.fullmatch(r"sw\d{4}[AB]", side):
            raise CorpusError(f"{path}: must be named after a side such as sw2001A; give it its name again")
        recording = f"sw0{side[2:6]}"
        for where, line in read_lines(path):
            fields = line.split()
            if len(fields) < 3 or not fields[0].startswith(f"{side}-"):
                rule = f"must be an utterance of {side}, start and end in seconds, and words"
                raise CorpusError(f"{where}: {rule}; got {line!r}")
            start, seconds = stretch(fields[1], fields[2], where)
            if words := " ".join(filter(None, map(_spoken, fields[3:]))):
                yield Segment(
                    id=fields[0],
                    path=audio.get(recording, folder / f"{recording}.sph"),
                    text=words,
                    split=None,
                    speaker=callers.get(side, side),
                    language="en",
                    start_seconds=start,
                    duration_seconds=seconds,
                    channel=CHANNELS[side[6]],
                )


def _spoken(word: str) -> str:
    """What is heard of a word: `[laughter-yeah]` is `yeah`, `th[ey]-` is `th-`, `[noise]` is empty."""
    word = re.sub(r"^(-?)\[laughter-(.+)\](-?)$", r"\1\2\3", word, flags=re.IGNORECASE)
    word = re.sub(r"^\[(.+)/.+\](-?)$", r"\1\2", word)  # said/meant
    word = re.sub(r"\[[^][]*\]|<[^>]*>|[{}]|_\d", "", word)
    return "" if word == "-" else word.split("/")[0]  # `ex[specially]-/especially]`, a slip


def _callers(folder: Path) -> dict[str, str]:
    """The caller of each side, such as sw2001A."""
    callers = {}
    for path in sorted(folder.rglob("conv_tab.csv")):
        for where, line in read_lines(path):
            fields = [field.strip(' "') for field in line.split(",")]
            if len(fields) < 4:
                raise CorpusError(f"{where}: must have the conversation first and the callers third and fourth")
            for side, caller in zip("AB", fields[2:4], strict=True):
                if fields[0].isdigit() and caller.isdigit():
                    callers[f"sw{fields[0]}{side}"] = f"sw-{caller}"
    return callers


def _with_splits(segments: list[Segment]) -> Iterator[Segment]:
    utterances = Counter(segment.path.stem for segment in segments)
    wanted = min(DEV_UTTERANCES, len(segments) // 10)
    dev: set[str] = set()
    for conversation in sorted(utterances):
        if dev and sum(utterances[one] for one in dev) >= wanted:
            break
        dev.add(conversation)
    heard = {segment.speaker for segment in segments if segment.path.stem in dev}
    for segment in segments:
        if segment.path.stem in dev:
            yield replace(segment, split="dev")
        elif segment.speaker not in heard:
            yield replace(segment, split="train")


def _fisher(speech: Path, transcripts: Path) -> Iterator[Segment]:
    audio, callers = _audio_files(speech), _fisher_callers(transcripts)
    for path in sorted(transcripts.rglob("fe_03_[0-9][0-9][0-9][0-9][0-9].txt"), key=lambda path: path.name):
        place = audio.get(path.stem, speech / f"{path.stem}.sph")
        for number, (where, line) in enumerate(read_lines(path)):
            if line.startswith("#"):
                continue
            if not (match := FISHER_LINE.fullmatch(line)):
                raise CorpusError(f"{where}: must be start and end in seconds, `A:` or `B:`, and words; got {line!r}")
            start, end, side, text = match.groups()
            if (path.stem, start, end) == ("fe_03_11487", "31.09", "234.06"):
                start = "231.09"  # an error of the transcript, which lhotse corrects too
            first, seconds = stretch(start, end, where)
            words = " ".join(re.sub(r"\[[^]]*\]", " ", text).replace("._", "").replace(".", "").split())
            if words and "((" not in words:
                yield Segment(
                    id=f"{path.stem}-{side}-{number:04d}",
                    path=place,
                    text=words,
                    split="train",
                    speaker=callers.get(f"{path.stem}{side}", f"{path.stem}{side}"),
                    language="en",
                    start_seconds=first,
                    duration_seconds=seconds,
                    channel=CHANNELS[side],
                )


def _fisher_callers(transcripts: Path) -> dict[str, str]:
    """The caller of each side, such as fe_03_00001A."""
    callers = {}
    for path in sorted(transcripts.rglob("*_calldata.tbl")):
        for where, line in list(read_lines(path))[1:]:
            fields = line.split(",")
            if len(fields) < 11:
                raise CorpusError(f"{where}: must have the call first and the callers sixth and eleventh; got {line!r}")
            for side, caller in (("A", fields[5]), ("B", fields[10])):
                callers[f"fe_03_{fields[0]}{side}"] = f"fe-{caller}"
    return callers


def _evaluation(root: Path) -> Iterator[Segment]:
    folder = root / EVALUATION
    audio = _audio_files(folder)
    for path in sorted((root / EVALUATION_TEXT).rglob(STM)):
        for where, line in read_lines(path):
            fields = line.split(maxsplit=6)
            if line.startswith(";;") or "IGNORE_TIME_SEGMENT_" in line:
                continue
            if len(fields) < 6 or fields[1] not in CHANNELS or not fields[5].startswith("<"):
                rule = "must be a file, A or B, a speaker, start and end in seconds, a label <...>, and words"
                raise CorpusError(f"{where}: {rule}; got {line!r}")
            recording, side, _, start, end = fields[:5]
            first, seconds = stretch(start, end, where)
            if words := _reference(fields[6] if len(fields) == 7 else ""):
                yield Segment(
                    id=f"{recording}-{side}_{first * 100:06.0f}-{(first + seconds) * 100:06.0f}",
                    path=audio.get(recording) or file_below(folder, f"{recording}.sph", where),
                    text=words,
                    split="test",
                    speaker=f"{recording}-{side}",
                    language="en",
                    start_seconds=first,
                    duration_seconds=seconds,
                    channel=CHANNELS[side],
                )


def _reference(text: str) -> str:
    """Words of an STM line: `(%HESITATION) I WATCH T. V.` is `uh I WATCH TV`."""
    text = re.sub(r"\{([^/{}]*)/[^{}]*\}", r"\1", text)
    text = re.sub(r"%HESITATION", "uh", text, flags=re.IGNORECASE)
    text = re.sub(r"<[^>]*>|[()@{}]", " ", text)
    text = re.sub(r"\b([A-Za-z])\. (?=[A-Za-z]\.)", r"\1", text)
    return " ".join(text.replace(".", "").split())


CORPUS = PublishedCorpus(
    title="Switchboard-1, Fisher English, eval2000",
    hours="Switchboard-1 260, Fisher English 1,960, eval2000 11 (all of its audio)",
    licence="LDC user agreement",
    needs=NEEDS,
    read=read,
    languages=("en",),
)
