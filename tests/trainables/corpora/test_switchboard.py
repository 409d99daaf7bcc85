from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainables.corpora import layouts_b
from tests.trainables.corpora.layouts import write_text
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpora.switchboard import CORPUS
from trainables.data.corpus import CorpusError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts_b.switchboard(tmp_path)


def read(root: Path) -> list[Segment]:
    return list(CORPUS.read(root, "en"))


def transcript(root: Path, side: str) -> Path:
    return root / "swb_ms98_transcriptions" / side[2:4] / side[2:6] / f"{side}-ms98-a-trans.text"


def spoken(root: Path, words: str) -> str | None:
    """What is read of an utterance of Switchboard-1; None when it is left out."""
    write_text(transcript(root, "sw2001A"), [f"sw2001A-ms98-a-0002 0.5 1.5 {words}"])
    return {s.id: s.text for s in read(root)}.get("sw2001A-ms98-a-0002")


def test_switchboard_equals_lhotse_s_parser_but_for_the_speakers(root: Path) -> None:
    from lhotse.audio import Recording
    from lhotse.recipes.switchboard import make_segments

    segments = {s.id: s for s in read(root) if s.split != "test"}
    theirs = [
        segment
        for conversation in layouts_b.CONVERSATIONS
        for channel, side in enumerate("AB")
        for segment in make_segments(
            transcript(root, f"sw{conversation}{side}"),
            Recording(f"sw0{conversation}", [], layouts_b.TELEPHONE_HZ, 80_000, 10.0, [0, 1]),
            channel,
        )
    ]
    assert len(theirs) == len(segments) == 4 * 2 * 4
    for one in theirs:
        ours = segments[one.id]
        assert (ours.path.stem, ours.channel, ours.text) == (one.recording_id, one.channel, one.text)
        assert (ours.start_seconds, ours.duration_seconds) == pytest.approx((one.start, one.duration), abs=1e-6)


def test_fisher_equals_lhotse_s_parser(root: Path) -> None:
    from lhotse.recipes.fisher_english import create_supervision

    layouts_b.with_fisher(root)
    (path,) = root.rglob("fe_03_00001.txt")
    theirs = create_supervision(({"00001": {"A": "2602", "B": "1790"}}, path))
    ours = [s for s in read(root) if s.path.stem == "fe_03_00001"]
    assert len(ours) == 6
    assert [(s.channel, s.text, s.speaker) for s in ours] == [(t.channel, t.text, f"fe-{t.speaker}") for t in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.start_seconds, one.duration_seconds) == pytest.approx((other.start, other.duration), abs=1e-3)
    assert {s.split for s in ours} == {"train"}


def test_dev_is_the_first_whole_conversation_when_that_is_a_tenth(root: Path) -> None:
    dev = {s.path.stem for s in read(root) if s.split == "dev"}
    train = {s.path.stem for s in read(root) if s.split == "train"}
    assert (dev, train) == ({"sw02001"}, {"sw02005", "sw02006", "sw03178"})


def long_transcripts(root: Path, utterances: Iterator[int]) -> None:
    for conversation, count in zip(range(2100, 4000), utterances, strict=False):
        name = f"sw{conversation}A"
        write_text(transcript(root, name), [f"{name}-ms98-a-{n:04d} {n} {n + 1} yes" for n in range(count)])


def test_dev_has_4000_utterances_of_a_large_corpus(tmp_path: Path) -> None:
    for folder in ("LDC97S62", "LDC2002S09"):
        (tmp_path / folder).mkdir()
    write_text(
        tmp_path / "LDC2002T43" / "hub5e00.english.000405.stm", ["en_4156 A en_4156_A 0.5 1.5 <O,en,F,en-F> YES"]
    )
    counts = random.Random(0).choices(range(150, 250), k=240)
    long_transcripts(tmp_path, iter(counts))
    segments = read(tmp_path)
    dev = [s for s in segments if s.split == "dev"]
    conversations = len({s.path.stem for s in dev})
    assert len(dev) == sum(counts[:conversations]) >= 4000 > sum(counts[: conversations - 1])
    assert {s.path.stem for s in dev} == {f"sw0{2100 + n}" for n in range(conversations)}
    assert len([s for s in segments if s.split == "train"]) == sum(counts) - len(dev)


def test_without_a_table_each_side_is_a_speaker(root: Path) -> None:
    assert {s.speaker for s in read(root) if s.split == "dev"} == {"sw2001A", "sw2001B"}


def test_callers_of_dev_are_left_out_of_train(root: Path) -> None:
    """Caller 1020 is side A of 2001, which is dev, and side B of 2005."""
    before = {s.id for s in read(root)}
    segments = read(layouts_b.with_callers(root))
    assert {s.speaker for s in segments if s.split == "dev"} == {"sw-1020", "sw-1044"}
    left_out = before - {s.id for s in segments}
    assert {i[:7] for i in left_out} == {"sw2005B"}
    assert len(left_out) == 4


@pytest.mark.parametrize(
    ("published", "heard"),
    [
        ("[laughter-yeah] i'm -[an]y", "yeah i'm -y"),
        ("[laughter-th[is]-]", "th-"),
        ("[it'n/isn't] ab[solute]- {yuppiedom}", "it'n ab- yuppiedom"),
        ("[lem[guini]-/linguini] ex[specially]-/especially]", "lem- ex-"),
        ("them_1 them_1's", "them them's"),
        ("<b_aside> come here <e_aside> [noise] [vocalized-noise] uh-huh", "come here uh-huh"),
        ("[noise] [laughter] -", None),
        ("[silence]", None),
        ("", None),
    ],
)
def test_words_of_switchboard(root: Path, published: str, heard: str | None) -> None:
    assert spoken(root, published) == heard


@pytest.mark.parametrize(
    ("published", "heard"),
    [
        ("i want- [laughter] to go [mn]", "i want- to go"),
        ("on the t._v. and a._t._m.s", "on the tv and atms"),
        ("(( i think )) so", None),
        ("[noise] ", None),
    ],
)
def test_words_of_fisher(root: Path, published: str, heard: str | None) -> None:
    layouts_b.with_fisher(root)
    (path,) = root.rglob("fe_03_00001.txt")
    write_text(path, ["# fe_03_00001.sph", "", f"1.00 2.00 B: {published}"])
    assert [s.text for s in read(root) if s.path.stem == "fe_03_00001"] == ([heard] if heard else [])


@pytest.mark.parametrize(
    ("published", "heard"),
    [
        ("(%HESITATION) I WATCH T. V.", "uh I WATCH TV"),
        ("THE (I-) <B_ASIDE> I. B. M.'S { A LOT / ALOT / @ } ((YES))", "THE I- IBM'S A LOT YES"),
        ("IGNORE_TIME_SEGMENT_IN_SCORING", None),
        ("", None),
    ],
)
def test_words_of_eval2000(root: Path, published: str, heard: str | None) -> None:
    (path,) = root.rglob("*.stm")
    write_text(path, [f"sw_4390 B sw_4390_B 1.00 2.50 <O,en,M,en-M> {published}"])
    test = [s for s in read(root) if s.split == "test"]
    assert [s.text for s in test] == ([heard] if heard else [])
    assert all((s.id, s.speaker, s.channel) == ("sw_4390-B_000100-000250", "sw_4390-B", 1) for s in test)


def test_a_known_error_of_fisher_is_corrected(root: Path) -> None:
    layouts_b.with_fisher(root)
    (path,) = root.rglob("fe_03_00001.txt")
    write_text(path.with_name("fe_03_11487.txt"), ["# fe_03_11487.sph", "", "31.09 234.06 A: yes"])
    (segment,) = (s for s in read(root) if s.path.stem == "fe_03_11487")
    assert (segment.start_seconds, segment.duration_seconds) == pytest.approx((231.09, 2.97))


def test_half_of_a_part_of_fisher_is_refused(root: Path) -> None:
    (root / "LDC2005S13").mkdir()
    with pytest.raises(LayoutError, match=r"missing LDC2005T19/\. Needed"):
        CORPUS.read(root, "en")


def test_folders_without_transcripts_are_refused(tmp_path: Path) -> None:
    for folder in ("LDC97S62", "swb_ms98_transcriptions", "LDC2002S09", "LDC2002T43"):
        (tmp_path / folder).mkdir()
    with pytest.raises(LayoutError, match=r"trans\.text, LDC2002T43/\*\*/hub5e00\.english\.000405\.stm\. Needed"):
        CORPUS.read(tmp_path, "en")


@pytest.mark.parametrize(
    ("pattern", "line", "rule"),
    [
        ("sw2001A-*", "sw2001A-ms98-a-0002 0.5", "must be an utterance of sw2001A, start and end in seconds"),
        ("sw2001A-*", "sw2001B-ms98-a-0002 0.5 1.5 yes", "must be an utterance of sw2001A"),
        ("sw2001A-*", "sw2001A-ms98-a-0002 0.5 x yes", "must be numbers from 0 on, got '0.5' and 'x'"),
        ("sw2001A-*", "sw2001A-ms98-a-0002 -1 1.5 yes", "must be numbers from 0 on, got '-1' and '1.5'"),
        ("fe_03_00001.txt", "1.00 2.00 C: yes", "must be start and end in seconds, `A:` or `B:`"),
        ("fe_03_p1_calldata.tbl", "00001,20021211", "must have the call first and the callers sixth"),
        ("conv_tab.csv", "2001,Y", "must have the conversation first"),
        ("*.stm", "en_4156 C en_4156_A 1.00 2.00 <O> YES", "must be a file, A or B"),
        ("*.stm", "en_4156 A en_4156_A 1.00 2.00 NO YES", "a label <...>"),
    ],
)
def test_a_malformed_line_is_named_with_file_and_line(root: Path, pattern: str, line: str, rule: str) -> None:
    layouts_b.with_fisher(layouts_b.with_callers(root))
    (path,) = root.rglob(pattern)
    lines = path.read_text().splitlines()
    write_text(path, [lines[0], line])
    with pytest.raises(CorpusError) as error:
        read(root)
    assert str(error.value).startswith(f"{path}:2: ")
    assert rule in str(error.value)


def test_a_transcript_that_is_not_text_is_named(root: Path) -> None:
    transcript(root, "sw2001A").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match=r"sw2001A-ms98-a-trans\.text: cannot be read as text"):
        read(root)


def test_a_transcript_of_no_side_is_named(root: Path) -> None:
    transcript(root, "sw2001A").rename(transcript(root, "sw2001A").with_name("sw2001-ms98-a-trans.text"))
    with pytest.raises(CorpusError, match=r"must be named after a side such as sw2001A"):
        read(root)
