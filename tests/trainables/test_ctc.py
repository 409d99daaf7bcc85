from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import SMALL_MODEL
from tests.trainables.builders import batch_of, characters_of, corpus_of, small_model
from trainables.data.batches import Batch
from trainables.data.corpus import Corpus
from trainables.data.text import BLANK, Characters
from trainables.decoding.greedy import greedy_decode
from trainables.evaluate import transcribe
from trainables.losses.config import CtcConfig, MaskConfig
from trainables.losses.ctc import ctc_log_probabilities, ctc_terms
from trainables.models.acoustic import AcousticModel
from trainables.models.config import CompactCnnGruConfig
from trainables.scoring import Hypothesis, error_rates

UNMASKED = CtcConfig(mask=MaskConfig(time_probability=0, channel_probability=0))
CHARACTERS = Characters(["ab "])  # 1 is the space, 2 is a, 3 is b


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return corpus_of(small_corpus)


def frames_to_samples(num_frames: int) -> int:
    """The shortest audio of that many frames: 40 ms apart, the first one from a window of 25 ms."""
    return 400 + 160 * 4 * (num_frames - 1)


def tiny_batch(corpus: Corpus, num_frames: list[int], tokens: list[list[int]], *, counted: bool = True) -> Batch:
    """The first frames of real utterances, with made-up tokens."""
    waveform = batch_of(corpus, range(len(num_frames))).waveform_BS[:, : frames_to_samples(max(num_frames))]
    return Batch(
        waveform_BS=waveform,
        num_samples_B=torch.tensor([frames_to_samples(n) for n in num_frames]),
        tokens_BU=torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in tokens], batch_first=True),
        num_tokens_B=torch.tensor([len(t) for t in tokens]),
        seeds=tuple(range(len(num_frames))),
        seed=0,
        counted=counted,
    )


def three_symbol_model() -> AcousticModel:
    return AcousticModel(CompactCnnGruConfig.model_validate(SMALL_MODEL), 3, seed=0)


def collapse(path: tuple[int, ...]) -> list[int]:
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK]


def nll_by_enumeration(log_probabilities_TV: Tensor, tokens: list[int]) -> float:
    """Minus the log of the summed probability of every path that collapses to the tokens."""
    rows = log_probabilities_TV.double().tolist()
    paths = itertools.product(range(len(rows[0])), repeat=len(rows))
    likelihood = sum(
        math.exp(sum(row[symbol] for row, symbol in zip(rows, path, strict=True)))
        for path in paths
        if collapse(path) == tokens
    )
    return -math.log(likelihood)


@pytest.mark.parametrize("config", [UNMASKED, CtcConfig()], ids=["unmasked", "masked"])
def test_value_equals_the_enumeration_of_all_alignments(corpus: Corpus, config: CtcConfig) -> None:
    """A repeated symbol, an empty text, a full alignment, and padding of both frames and tokens."""
    model = three_symbol_model()
    num_frames, tokens = [6, 5, 4, 3], [[1, 2, 2], [1, 1], [], [2, 1, 2]]
    batch = tiny_batch(corpus, num_frames, [t or [0] for t in tokens])
    batch.num_tokens_B[2] = 0
    log_probabilities, frames = ctc_log_probabilities(model, batch, config.mask)
    assert frames.tolist() == num_frames
    expected = sum(nll_by_enumeration(log_probabilities[i, : num_frames[i]], tokens[i]) for i in range(len(tokens)))
    term = ctc_terms(model, batch, config)["ctc"]
    assert term.sum.item() == pytest.approx(expected, rel=1e-5)
    assert term.count.item() == 4


def test_log_probabilities_sum_to_one(corpus: Corpus) -> None:
    log_probabilities, _ = ctc_log_probabilities(small_model(corpus), batch_of(corpus, [0, 1]))
    torch.testing.assert_close(log_probabilities.exp().sum(2), torch.ones(log_probabilities.shape[:2]))


def test_augmentation_masks_change_the_output_and_belong_to_the_utterance(corpus: Corpus) -> None:
    model = small_model(corpus)
    plain, _ = ctc_log_probabilities(model, batch_of(corpus, [0, 1]))
    masked, num_frames = ctc_log_probabilities(model, batch_of(corpus, [0, 1]), MaskConfig())
    assert not torch.allclose(plain, masked, atol=1e-3)
    for row, n, i in zip(masked, num_frames.tolist(), (0, 1), strict=True):
        alone, _ = ctc_log_probabilities(model, batch_of(corpus, [i]), MaskConfig())
        torch.testing.assert_close(row[:n], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("num_frames", "tokens"), [(2, [1, 2, 1]), (2, [1, 1])], ids=["too long", "no room for the blank between repeats"]
)
def test_an_utterance_without_an_alignment_counts_zero_not_infinity(
    corpus: Corpus, num_frames: int, tokens: list[int]
) -> None:
    model = three_symbol_model()
    both = ctc_terms(model, tiny_batch(corpus, [6, num_frames], [[1, 2], tokens]), UNMASKED)["ctc"]
    alone = ctc_terms(model, tiny_batch(corpus, [6], [[1, 2]]), UNMASKED)["ctc"]
    assert alone.sum > 0
    assert both.sum.item() == pytest.approx(alone.sum.item(), rel=1e-5)
    gradients = torch.autograd.grad(both.sum, [*model.backbone.parameters(), *model.ctc_head.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_filler_counts_for_nothing_and_moves_nothing(corpus: Corpus) -> None:
    model = three_symbol_model()
    term = ctc_terms(model, tiny_batch(corpus, [6], [[1, 2]], counted=False), UNMASKED)["ctc"]
    assert (term.sum.item(), term.count.item()) == (0, 0)
    assert not any(gradient.any() for gradient in torch.autograd.grad(term.sum, model.ctc_head.parameters()))


@pytest.mark.parametrize(
    ("best", "num_frames", "text"),
    [
        ([2, 2, 3, 3, 3], 5, "ab"),
        ([2, 0, 2, 2], 4, "aa"),
        ([0, 0, 0], 3, ""),
        ([0, 2, 0, 0, 3, 0], 6, "ab"),
        ([2, 0, 1, 1, 0, 3], 6, "a b"),
        ([2, 3, 2, 3], 2, "ab"),
        ([2, 2, 2, 3], 3, "a"),
        ([1, 0, 2, 1], 4, "a"),
        ([2, 1, 0, 1, 3], 5, "a  b"),
    ],
)
def test_greedy_decoding_by_hand(best: list[int], num_frames: int, text: str) -> None:
    """Repeats merge, then blanks go, frames beyond the utterance are not read, outer spaces are stripped."""
    scores = torch.nn.functional.one_hot(torch.tensor([best]), len(CHARACTERS)).float().log_softmax(2)
    assert greedy_decode(scores, torch.tensor([num_frames]), CHARACTERS) == [text]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_greedy_decoding_is_the_collapse_of_the_best_path(best: list[int]) -> None:
    scores = torch.nn.functional.one_hot(torch.tensor([best]), len(CHARACTERS)).float()
    expected = CHARACTERS.decode(collapse(tuple(best))).strip()
    assert greedy_decode(scores, torch.tensor([len(best)]), CHARACTERS) == [expected]


def hypotheses(*pairs: tuple[str, str]) -> list[Hypothesis]:
    return [Hypothesis(str(i), reference, text) for i, (reference, text) in enumerate(pairs)]


def edit_distance(one: list[str], other: list[str]) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def test_error_rates_are_those_of_the_corpus_not_the_mean_of_the_utterances() -> None:
    """By hand: words 1 of 2 and 1 of 4 wrong, characters 4 of 7 and 1 of 22."""
    rates = error_rates(hypotheses(("uno dos", "uno"), ("tres cuatro cinco seis", "tres quatro cinco seis")))
    assert rates == {"wer": pytest.approx(2 / 6), "cer": pytest.approx(5 / 29)}
    assert rates["wer"] != pytest.approx((1 / 2 + 1 / 4) / 2)
    assert rates["cer"] != pytest.approx((4 / 7 + 1 / 22) / 2)


@pytest.mark.parametrize(
    ("text", "wer", "cer"), [("uno dos", 0, 0), ("", 1, 1), ("uno dos y tres", 1.0, 1.0), ("unodos", 1.0, 1 / 7)]
)
def test_error_rates_of_one_utterance(text: str, wer: float, cer: float) -> None:
    assert error_rates(hypotheses(("uno dos", text))) == {"wer": pytest.approx(wer), "cer": pytest.approx(cer)}


WORDS = st.lists(st.sampled_from(["a", "ab", "ba", "abb"]), min_size=1, max_size=6).map(" ".join)


@given(st.lists(st.tuples(WORDS, WORDS | st.just("")), min_size=1, max_size=5))
def test_error_rates_agree_with_an_edit_distance_of_our_own(pairs: list[tuple[str, str]]) -> None:
    words = sum(edit_distance(r.split(), h.split()) for r, h in pairs) / sum(len(r.split()) for r, _ in pairs)
    letters = sum(edit_distance(list(r), list(h)) for r, h in pairs) / sum(len(r) for r, _ in pairs)
    assert error_rates(hypotheses(*pairs)) == {"wer": pytest.approx(words), "cer": pytest.approx(letters)}


def test_transcribing_a_split_equals_transcribing_each_utterance_alone(corpus: Corpus) -> None:
    """With dropout in the model, which evaluation switches off."""
    characters = characters_of(corpus)
    model = AcousticModel(CompactCnnGruConfig.model_validate({**SMALL_MODEL, "dropout": 0.5}), len(characters), seed=0)
    together = transcribe(model, corpus.train, characters, torch.device("cpu"))
    alone = [transcribe(model, [u], characters, torch.device("cpu"))[0] for u in corpus.train]
    assert together == sorted(alone, key=lambda h: h.id)
    assert {h.id: h.reference for h in together} == {u.id: u.text for u in corpus.train}
    assert len({h.hypothesis for h in together}) > 1


@pytest.mark.parametrize("training", [True, False])
def test_transcribing_leaves_the_mode_of_the_model(corpus: Corpus, training: bool) -> None:
    model = small_model(corpus).train(training)
    transcribe(model, corpus.dev, characters_of(corpus), torch.device("cpu"))
    assert model.training is training
