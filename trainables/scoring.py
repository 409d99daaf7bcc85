"""Error rates of hypotheses, and where the errors are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

import jiwer

from trainables.data.phones import pronounce
from trainables.data.scripts import COMMON, UNSPACED, mixed_tokens, script_of

Unit = Literal["words", "characters"]
Pair = tuple[str, str]  # a reference token and its hypothesis token; "" beside an insertion or a deletion


@dataclass(frozen=True)
class Hypothesis:
    """What was said in one utterance, and what was recognised."""

    id: str
    reference: str
    hypothesis: str
    duration_seconds: float = 0.0
    speaker: str = ""


class Counts(NamedTuple):
    """Errors (substitutions, deletions, insertions) and lengths of one utterance's reference; spaces are characters."""

    errors: int
    words: int
    character_errors: int
    characters: int


@dataclass(frozen=True)
class Confusion:
    """How often a token was recognised as another; "" as reference is an insertion, as hypothesis a deletion."""

    reference: str
    hypothesis: str
    count: int


def error_rates(hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
    """Rates of the whole set as fractions: its errors / its reference tokens, not a mean of utterances' ratios.

    Always `wer` and `cer`; when the references have no words, errors / 1. And if a reference mixes scripts or is in a
    script without spaces between words (`trainables.data.scripts`), on mixed tokens:

    - `mer`, of all utterances;
    - `mer_switched`, of those whose reference mixes scripts, and `mer_monolingual`, of the others;
    - `mer_<script>` for each script of the references (`mer_common`: tokens without letters): its tokens that are
      substituted or deleted, and inserted tokens of that script, / its tokens;
    - `pier` (point-of-interest error rate, arXiv:2501.09512), of the switched words: in each reference that mixes
      scripts, the tokens with letters that are not of its most frequent script (of equals, the first is not switched).
      An insertion counts to the reference token after it, at the end to the last one, as in the authors' program
      (https://github.com/enesyugan/PIER-CodeSwitching-Evaluation).

    Kana and Han together are one script for what is mixed and what is switched. A rate whose references have no token
    is left out. Alignments are jiwer's: of several with as few errors, it takes one.

    Raises ValueError without hypotheses.
    """
    references, texts = _texts(hypotheses)
    rates = {"wer": float(jiwer.wer(references, texts)), "cer": float(jiwer.cer(references, texts))}
    tokens = [mixed_tokens(reference) for reference in references]
    if any(_mixes_scripts(t) or not UNSPACED.isdisjoint(map(script_of, t)) for t in tokens):
        rates |= _mixed_error_rates([_mixed_pairs(t, mixed_tokens(h)) for t, h in zip(tokens, texts, strict=True)])
    return rates


def phone_error_rate(hypotheses: Sequence[Hypothesis], language: str) -> dict[str, float]:
    """`per` as a fraction: phone errors / phones of the references' pronunciations. Hypotheses are phones.

    Raises ValueError without hypotheses.
    """
    references, texts = _texts(hypotheses)
    return {"per": float(jiwer.wer([" ".join(pronounce(r, language)) for r in references], texts))}


def counts(hypothesis: Hypothesis) -> Counts:
    """What the utterance adds to the sums of `wer` and `cer`."""
    word_pairs, character_pairs = _pairs(hypothesis, "words"), _pairs(hypothesis, "characters")
    return Counts(_errors(word_pairs), _length(word_pairs), _errors(character_pairs), _length(character_pairs))


def confusions(hypotheses: Iterable[Hypothesis], unit: Unit) -> list[Confusion]:
    """What was recognised as what, the most frequent first, equals by text."""
    found = Counter(pair for h in hypotheses for pair in _pairs(h, unit) if pair[0] != pair[1])
    return [Confusion(*pair, count) for pair, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))]


def worst(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """All hypotheses, those with the most word errors first, equals by id."""
    return sorted(hypotheses, key=lambda h: (-counts(h).errors, h.id))


def _texts(hypotheses: Sequence[Hypothesis]) -> tuple[list[str], list[str]]:
    if not hypotheses:
        raise ValueError("no hypotheses, got an empty list; error rates need at least one: score a split with speech")
    return [h.reference for h in hypotheses], [h.hypothesis for h in hypotheses]


def _pairs(hypothesis: Hypothesis, unit: Unit) -> list[Pair]:
    process = jiwer.process_words if unit == "words" else jiwer.process_characters
    return list(_aligned(process(hypothesis.reference, hypothesis.hypothesis)))


def _mixed_pairs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    return list(_aligned(jiwer.process_words(" ".join(reference), " ".join(hypothesis))))


def _aligned(output: jiwer.WordOutput | jiwer.CharacterOutput) -> Iterator[Pair]:
    for chunk in output.alignments[0]:
        reference = output.references[0][chunk.ref_start_idx : chunk.ref_end_idx]
        hypothesis = output.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx]
        yield from zip_longest(reference, hypothesis, fillvalue="")


def _errors(pairs: Iterable[Pair]) -> int:
    return sum(reference != hypothesis for reference, hypothesis in pairs)


def _length(pairs: Iterable[Pair]) -> int:
    return sum(reference != "" for reference, _ in pairs)


def _references(pairs: Iterable[Pair]) -> list[str]:
    return [reference for reference, _ in pairs if reference]


def _mixed_error_rates(utterances: Sequence[list[Pair]]) -> dict[str, float]:
    switched = [pairs for pairs in utterances if _mixes_scripts(_references(pairs))]
    monolingual = [pairs for pairs in utterances if not _mixes_scripts(_references(pairs))]
    parts = {"mer": _joined(utterances), "mer_switched": _joined(switched), "mer_monolingual": _joined(monolingual)}
    for reference, hypothesis in parts["mer"]:
        parts.setdefault(f"mer_{script_of(reference or hypothesis)}", []).append((reference, hypothesis))
    parts["pier"] = [pair for pairs in switched for pair in _points_of_interest(pairs)]
    return {name: _errors(pairs) / _length(pairs) for name, pairs in parts.items() if _length(pairs)}


def _joined(utterances: Iterable[list[Pair]]) -> list[Pair]:
    return [pair for pairs in utterances for pair in pairs]


def _points_of_interest(pairs: Sequence[Pair]) -> Iterator[Pair]:
    references = _references(pairs)
    writing = Counter(_writing(token) for token in references if script_of(token) != COMMON)
    unswitched = {COMMON, max(writing, key=writing.__getitem__)}
    following = references[-1]
    for reference, hypothesis in reversed(pairs):
        following = reference or following
        if _writing(following) not in unswitched:
            yield reference, hypothesis


def _mixes_scripts(tokens: Iterable[str]) -> bool:
    return len({_writing(token) for token in tokens} - {COMMON}) > 1


def _writing(token: str) -> str:
    """The script, where Kana are Han: Japanese is written in both, and that is no switch of language."""
    script = script_of(token)
    return "han" if script in ("hiragana", "katakana") else script
