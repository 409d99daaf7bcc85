"""N-gram language models in ARPA files: estimation, and the words that a file knows."""

from __future__ import annotations

import gzip
import math
import re
import shutil
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
RESERVED = frozenset({UNKNOWN, "<UNK>", START, END})  # KenLM reads <UNK> as <unk>
MAX_ORDER = 6  # of KenLM as it is built by default
FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # lmplz --discount_fallback; of counts 0, 1, 2, 3 and more
LMPLZ_MEMORY = "2G"  # lmplz sorts on disk what does not fit; by default it takes 80 % of the machine
KENLM_BINARY = b"mmap lm http://kheafield.com/code"
LOG_ZERO = -99  # of a back-off weight, as in SRILM's files; lmplz writes -inf, which KenLM refuses to read
GZIP = b"\x1f\x8b"

Gram = tuple[str, ...]


def estimate(sentences: Iterable[Sequence[str]], order: int, path: Path) -> None:
    """Write an ARPA file of the interpolated modified Kneser-Ney model of the sentences' words (or characters).

    Chen and Goodman, An empirical study of smoothing techniques for language modeling (Harvard TR-10-98, 1998), with
    the discounts in closed form (their equation 26), unigrams interpolated with the uniform distribution over words,
    `</s>` and `<unk>`, and nothing pruned. Where an order has too little text for its discounts, they are 0.5, 1 and
    1.5. `lmplz -o ORDER --discount_fallback` of KenLM (https://kheafield.com/code/kenlm) gives the same numbers, and is
    used when it is on the PATH. Without it the n-grams must fit into memory, about 400 bytes each: it is meant for up
    to a few million words of text.

    The file is complete or not there. Its folder is made when missing. KenLM reads models of order 2 and more.

    Raises ValueError for an order outside 1 to 6, for text without a word, and for words that are empty, hold white
    space or are reserved (`<s>`, `</s>`, `<unk>`). Raises RuntimeError when lmplz fails.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(
            f"order {order}: must be from 1 to {MAX_ORDER} (the most that KenLM reads); choose one of them"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _write_with_lmplz if shutil.which("lmplz") else _write
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        arpa = Path(folder) / "arpa"
        write(_checked(sentences), order, arpa)
        arpa.replace(path)


def vocabulary(path: Path) -> list[str]:
    """The words of an ARPA file, plain or compressed with gzip, in its order, without `<s>`, `</s>` and `<unk>`.

    Raises ValueError for a file that is not there or not ARPA; KenLM's binary format keeps only hashes of its words.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(len(KENLM_BINARY))
        if start == KENLM_BINARY:
            raise ValueError(
                f"{path}: a KenLM binary does not tell its words; name a lexicon beside it, or use the ARPA file"
            )
        opened = gzip.open if start.startswith(GZIP) else open
        with opened(path, "rt", encoding="utf-8", newline="\n") as lines:
            words = list(_unigrams(lines))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as an ARPA file, plain or .gz: {error}") from error
    if not words:
        raise ValueError(f"{path}: no unigram below a line \\1-grams:, so no ARPA file; name one, plain or .gz")
    return [word for word in words if word not in RESERVED]


def _unigrams(lines: Iterable[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        fields = line.rstrip("\r\n").split("\t")
        if inside and fields[0].startswith("\\"):
            return
        if inside and len(fields) > 1:
            yield fields[1]
        inside = inside or fields[0] == "\\1-grams:"


def _checked(sentences: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    words = 0
    for sentence in sentences:
        for word in sentence:
            if word in RESERVED:
                raise ValueError(f"word {word!r} is reserved in ARPA files; leave it out, sentences are delimited here")
            if word.split() != [word] or "\0" in word:
                raise ValueError(
                    f"word {word!r}: words of an ARPA file are not empty and hold no white space; split the sentence, "
                    "or write a space as another character, such as |"
                )
        words += len(sentence)
        yield sentence
    if not words:
        raise ValueError("no sentences with words, got 0 words; a language model needs text: give at least one")


def _write_with_lmplz(sentences: Iterable[Sequence[str]], order: int, path: Path) -> None:
    text, written = path.with_name("text"), path.with_name("lmplz.arpa")
    with text.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(" ".join(sentence) + "\n" for sentence in sentences)
    options = ["-o", str(order), "--discount_fallback", "-S", LMPLZ_MEMORY, "-T", str(path.with_name("sorted"))]
    command = ["lmplz", *options, "--text", str(text), "--arpa", str(written)]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with code {ended.returncode}: {ended.stderr.strip()[-1000:]}")
    with written.open("rb") as lines, path.open("wb") as arpa:
        arpa.writelines(re.sub(rb"(\t.*\t)-inf\n", rb"\g<1>%d\n" % LOG_ZERO, line) for line in lines)


def _write(sentences: Iterable[Sequence[str]], order: int, path: Path) -> None:
    """What lmplz writes, but for the order of the lines."""
    text = _text_counts(sentences, order)
    counts = _adjusted_counts(text, order)
    uniform = 1 / (len(counts[0]) + 1)  # the words, </s> and <unk>
    lower: Mapping[Gram, float] = {(): uniform}
    probabilities: list[Mapping[Gram, float]] = []
    weights: list[Mapping[Gram, float]] = []
    for grams, counts_of_counts in zip(counts, _counts_of_counts(counts, text), strict=True):
        discounts = _discounts(counts_of_counts)
        totals, weight = _interpolation(grams, discounts)
        lower = {
            gram: (count - discounts[min(count, 3)]) / totals[gram[:-1]] + weight[gram[:-1]] * lower[gram[1:]]
            for gram, count in grams.items()
        }
        probabilities.append(lower)
        weights.append(weight)
    probabilities[0] = {(UNKNOWN,): weights[0][()] * uniform, (START,): 1.0, **probabilities[0]}
    _print(probabilities, weights[1:], path)


def _text_counts(sentences: Iterable[Sequence[str]], order: int) -> Counter[Gram]:
    """How often each n-gram of the highest order is in the text, with as many `<s>` before a sentence as it can hold.

    They are in the order of their first appearance.
    """
    counts: Counter[Gram] = Counter()
    for sentence in sentences:
        padded = (*[START] * (order - 1), *sentence, END)
        counts.update(zip(*(padded[i:] for i in range(order)), strict=False))
    return counts


def _adjusted_counts(text: Mapping[Gram, int], order: int) -> list[dict[Gram, int]]:
    """For each order the counts of its n-grams, of which only the first word may be `<s>`.

    Those of the highest order and those that start a sentence count as often as they are in the text, others as often
    as there are different words before them.
    """
    starts = {gram[extra:]: count for gram, count in text.items() if (extra := gram.count(START) - 1) > 0}
    counts = [{gram: count for gram, count in text.items() if gram.count(START) < 2}]
    for length in range(order - 1, 0, -1):
        preceded = Counter(gram[1:] for gram in counts[0])
        counts.insert(0, {**preceded, **{gram: count for gram, count in starts.items() if len(gram) == length}})
    return counts


def _counts_of_counts(counts: Sequence[Mapping[Gram, int]], text: Mapping[Gram, int]) -> list[Counter[int]]:
    """For each order how many n-grams have each count.

    As in lmplz, the end of the last n-gram enters the lower orders with its count in the text: the last when words are
    numbered as they first appear and n-grams sorted by their last word, then by the one before it, and so on.
    """
    found = [Counter(grams.values()) for grams in counts]
    numbers: dict[str, int] = {START: 0, END: 1}
    for gram in text:
        numbers.setdefault(gram[-1], len(numbers))
    last = max(text, key=lambda gram: [numbers[word] for word in reversed(gram)])
    for length, grams in enumerate(counts[:-1], 1):
        end = last[-length:]
        if end in grams:
            found[length - 1][grams[end]] -= 1
            found[length - 1][sum(count for gram, count in text.items() if gram[-length:] == end)] += 1
    return found


def _discounts(counts_of_counts: Mapping[int, int]) -> tuple[float, ...]:
    """Discounts of counts 0, 1, 2, and 3 and more, in single precision: lmplz refuses negative ones, rounded or not."""
    n = [np.float32(counts_of_counts.get(count, 0)) for count in range(5)]
    if not all(n[1:4]):
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    discounts = [0.0, *(float(np.float32(c) - np.float32(c + 1) * y * n[c + 1] / n[c]) for c in (1, 2, 3))]
    in_range = all(0 <= discount <= count for count, discount in enumerate(discounts))
    return tuple(discounts) if in_range else FALLBACK_DISCOUNTS


def _interpolation(
    grams: Mapping[Gram, int], discounts: Sequence[float]
) -> tuple[Mapping[Gram, int], dict[Gram, float]]:
    """For each history the sum of its counts, and the weight of the lower order: what discounts take of that sum."""
    totals: Counter[Gram] = Counter()
    freed: dict[Gram, float] = {}
    for gram, count in grams.items():
        history = gram[:-1]
        totals[history] += count
        freed[history] = freed.get(history, 0.0) + discounts[min(count, 3)]
    return totals, {history: freed[history] / total for history, total in totals.items()}


def _print(probabilities: Sequence[Mapping[Gram, float]], weights: Sequence[Mapping[Gram, float]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as arpa:
        arpa.write("\\data\\\n")
        arpa.writelines(f"ngram {order}={len(grams)}\n" for order, grams in enumerate(probabilities, 1))
        for order, grams in enumerate(probabilities, 1):
            arpa.write(f"\n\\{order}-grams:\n")
            for gram, probability in grams.items():
                back_off = f"\t{_log10(weights[order - 1].get(gram, 1.0))}" if order < len(probabilities) else ""
                arpa.write(f"{_log10(min(probability, 1.0))}\t{' '.join(gram)}{back_off}\n")
        arpa.write("\n\\end\\\n")


def _log10(value: float) -> str:
    return f"{math.log10(value) if value else LOG_ZERO:.7g}"
