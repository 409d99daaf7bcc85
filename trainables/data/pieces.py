"""Pieces of words: a unigram language model of them (Kudo 2018), trained by SentencePiece on the train transcripts."""

from __future__ import annotations

import io
from collections.abc import Iterable
from importlib.metadata import version

from trainables.data.corpus import CorpusError
from trainables.data.text import Characters

WORD_START = "\u2581"  # SentencePiece's mark of a word's first piece
LONGEST_TEXT_BYTES = 100_000  # SentencePiece leaves out longer lines, 4,192 bytes by default


class Pieces(Characters):
    """At most `vocabulary_size` symbols, the blank included; fewer, when the texts are too few for so many.

    The first piece of a word begins with a space. The place of the blank is that of SentencePiece's unknown piece: what
    the train transcripts have no character for is left out. Raises CorpusError for fewer than `fewest_pieces`.
    """

    def __init__(self, texts: Iterable[str], vocabulary_size: int) -> None:
        from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

        texts = list(texts)
        if (needed := fewest_pieces(texts)) > vocabulary_size:
            raise CorpusError(
                f"vocabulary_size {vocabulary_size}: pieces of these transcripts need at least {needed}, one for each "
                "character and two more; set a larger one"
            )
        content = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=content,
            model_type="unigram",
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=LONGEST_TEXT_BYTES,
            num_threads=1,  # more of them may give other pieces
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
        self._processor = SentencePieceProcessor(model_proto=content.getvalue())
        written = (self._processor.id_to_piece(i) for i in range(1, self._processor.get_piece_size()))
        self._set(("<blank>", *(piece.replace(WORD_START, " ") for piece in written)))

    @property
    def boundary(self) -> int | None:
        """None: the first piece of a word tells that it begins."""
        return None

    def encode(self, text: str) -> list[int]:
        """Indices of the likeliest pieces."""
        return [index for index in self._processor.encode(text) if index]


def fewest_pieces(texts: Iterable[str]) -> int:
    """The smallest vocabulary: the blank, the start of a word, and each character."""
    return len(set("".join(texts)) - {" "}) + 2


def trainer() -> str:
    """What makes the pieces, with its version. Another one may make others."""
    return f"sentencepiece {version('sentencepiece')}"
