"""CTC beside independent computations of it, and in parts of a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import SMALL_TRANSFORMER
from tests.trainables.builders import characters_of, corpus_of, small_model
from trainables.config import Progress
from trainables.data.batches import Batch, Stream
from trainables.data.corpus import Corpus
from trainables.loop import _Update
from trainables.losses.build import TrainingLoss
from trainables.losses.config import CtcConfig, MaskConfig
from trainables.losses.ctc import ctc_losses, ctc_terms
from trainables.losses.terms import total
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoints import read_checkpoint
from trainables.models.config import TransformerConfig
from trainables.stage import OptimiserConfig, Phase

UNMASKED = CtcConfig(mask=MaskConfig(time_probability=0, channel_probability=0))


class Given(nn.Module):
    """A backbone that says what it is given: (B, T, V) logits, and so many valid frames of each."""

    mask_width = 1
    feature_norm = nn.Identity()

    def __init__(self, logits_BTV: Tensor, num_frames: Sequence[int]) -> None:
        super().__init__()
        self.logits_BTV, self.num_frames_B = logits_BTV, torch.tensor(num_frames)

    def features(self, *_: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits_BTV, self.num_frames_B

    def context(self, features_BTD: Tensor, *_: Any, **__: Any) -> Tensor:
        return features_BTD


def batch_with(tokens: Sequence[Sequence[int]], waveform_BS: Tensor | None = None, **changes: Any) -> Batch:
    empty = torch.zeros(len(tokens), 1)
    return Batch(
        waveform_BS=empty if waveform_BS is None else waveform_BS,
        num_samples_B=changes.pop("num_samples_B", torch.ones(len(tokens), dtype=torch.long)),
        tokens_BU=nn.utils.rnn.pad_sequence([torch.tensor(t, dtype=torch.long) for t in tokens], batch_first=True),
        num_tokens_B=torch.tensor([len(t) for t in tokens]),
        seeds=tuple(range(len(tokens))),
        seed=0,
        counted=True,
    )


def losses_of(logits_BTV: Tensor, num_frames: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
    model: Any = nn.ModuleDict({"ctc_head": nn.Identity()})
    model.backbone = Given(logits_BTV, num_frames)
    return ctc_losses(model, batch_with(tokens), UNMASKED)


def nll_by_enumeration(logits_TV: Tensor, tokens: Sequence[int]) -> float:
    """Over all paths, in float64: those that give the tokens when repeats are merged and blanks dropped."""
    likelihoods = logits_TV.double().softmax(1).tolist()
    found = []
    for path in itertools.product(range(logits_TV.shape[1]), repeat=len(likelihoods)):
        if [symbol for symbol, _ in itertools.groupby(path) if symbol] == list(tokens):
            found.append(math.prod(row[symbol] for row, symbol in zip(likelihoods, path, strict=True)))
    return -math.log(math.fsum(found)) if found else 0.0


def nll_by_recursion(logits_TV: Tensor, tokens: Sequence[int]) -> Tensor:
    """Graves et al. (2006), equations 6 to 8: forward variables over the tokens with blanks around them."""
    log_p = logits_TV.log_softmax(1)
    states = [0, *itertools.chain.from_iterable((token, 0) for token in tokens)]
    minus_infinity = log_p.new_full((), -torch.inf)
    forward = [log_p[0, state] if s < 2 else minus_infinity for s, state in enumerate(states)]
    for row in log_p[1:]:
        following = []
        for s, state in enumerate(states):
            before = forward[max(0, s - 1) : s + 1]
            if s >= 2 and state != 0 and state != states[s - 2]:
                before = [forward[s - 2], *before]
            reached = [f for f in before if f > -torch.inf]  # the gradient of a sum of nothing is not a number
            following.append(torch.stack(reached).logsumexp(0) + row[state] if reached else minus_infinity)
        forward = following
    return -torch.stack([f for f in forward[-2:] if f > -torch.inf]).logsumexp(0)


def random_logits(seed: int, *shape: int, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 2), max_size=3)), min_size=1, max_size=4),
    st.integers(0, 999),
)
def test_value_equals_the_enumeration_of_all_paths(utterances: list[tuple[int, list[int]]], seed: int) -> None:
    """3 symbols, up to 6 frames and 3 tokens, in a padded batch; without any path an utterance costs nothing."""
    num_frames, tokens = zip(*utterances, strict=True)
    logits_BTV = random_logits(seed, len(utterances), max(num_frames), 3)
    expected = [
        nll_by_enumeration(row[:count], text) for row, count, text in zip(logits_BTV, num_frames, tokens, strict=True)
    ]
    assert losses_of(logits_BTV, num_frames, tokens).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


CASE = ([40, 25, 33], [[3, 3, 1, 7, 2, 2, 9], [], [5, 1, 5, 1, 8, 8, 8, 4, 6, 2]])


def test_value_and_gradient_equal_the_forward_recursion_in_float64() -> None:
    """Repeats, an empty text, padded frames and padded tokens, and 12 symbols."""
    num_frames, tokens = CASE
    logits_BTV = random_logits(0, 3, 40, 12).requires_grad_()
    exact_BTV = logits_BTV.detach().double().requires_grad_()
    found_B = losses_of(logits_BTV, num_frames, tokens)
    expected_B = torch.stack(
        [nll_by_recursion(row[:n], text) for row, n, text in zip(exact_BTV, num_frames, tokens, strict=True)]
    )
    torch.testing.assert_close(found_B.double(), expected_B, rtol=1e-6, atol=0)
    (found,) = torch.autograd.grad(found_B.sum(), logits_BTV)
    (expected,) = torch.autograd.grad(expected_B.sum(), exact_BTV)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_moves_probability_and_does_not_make_any() -> None:
    """It is the softmax minus the share of each symbol in all alignments: both sum to 1 in each valid frame."""
    num_frames, tokens = CASE
    logits_BTV = random_logits(1, 3, 40, 12).requires_grad_()
    (gradient,) = torch.autograd.grad(losses_of(logits_BTV, num_frames, tokens).sum(), logits_BTV)
    assert gradient.sum(2).abs().max() < 1e-4
    shares = logits_BTV.detach().softmax(2) - gradient
    for row, own, count, text in zip(gradient, shares, num_frames, tokens, strict=True):
        assert not row[count:].any()
        assert float(own[:count].min()) > -1e-4
        absent = [symbol for symbol in range(1, 12) if symbol not in text]
        assert own[:count, absent].abs().max() < 1e-4


def test_certain_logits_cost_nothing_and_wrong_ones_their_logits() -> None:
    """By hand: a path of probability almost 1, and one that is e^-30 as likely."""
    certain = 30.0 * nn.functional.one_hot(torch.tensor([[1, 1, 0, 1, 2, 0]]), 4).float()
    assert losses_of(certain, [6], [[1, 1, 2]]).item() == pytest.approx(0, abs=1e-6)
    assert losses_of(certain, [6], [[1, 1, 3]]).item() == pytest.approx(30, abs=1.0)


# transformers


SYMBOLS = 12


@pytest.fixture(scope="module")
def reference() -> Any:
    """A small random wav2vec 2.0 of transformers with a CTC head; blank is 0."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        conv_dim=(24,) * 7,
        vocab_size=SYMBOLS,
        pad_token_id=0,
        ctc_loss_reduction="sum",
        ctc_zero_infinity=True,
    )
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # far from one symbol for all frames
    return model


def noise_batch(tokens: Sequence[Sequence[int]], frames: Sequence[int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    waveforms = [torch.randn(400 + 320 * (n - 1), generator=generator) for n in frames]
    lengths = torch.tensor([len(w) for w in waveforms])
    return batch_with(tokens, nn.utils.rnn.pad_sequence(waveforms, batch_first=True), num_samples_B=lengths)


@pytest.mark.parametrize(
    ("frames", "tokens"),
    [
        ([60, 60, 60], [[3, 3, 1], [7, 2, 5, 5, 9, 11], [1]]),
        ([60, 43, 51], [[3, 3, 1], [7, 2, 5, 5, 9, 11], [1]]),
        ([60, 3], [[3, 3, 1], [4, 4]]),
        ([60, 2], [[3, 3, 1], [4, 4]]),
    ],
    ids=["equal lengths", "padded", "just long enough", "too short"],
)
def test_loss_and_gradients_are_those_of_transformers(
    reference: Any, tmp_path: Path, frames: list[int], tokens: list[list[int]]
) -> None:
    """Its loss is the sum over utterances; ours is that over their number."""
    reference.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    model = AcousticModel(checkpoint.model, SYMBOLS, seed=0).eval()
    for part in ("backbone", "ctc_head"):
        checkpoint.load_into(model, part)
    batch = noise_batch(tokens, frames)
    padded = torch.arange(batch.waveform_BS.shape[1]) >= batch.num_samples_B[:, None]
    labels = batch.tokens_BU.masked_fill(torch.arange(batch.tokens_BU.shape[1]) >= batch.num_tokens_B[:, None], -100)
    expected = reference(batch.waveform_BS, attention_mask=(~padded).long(), labels=labels).loss
    terms = ctc_terms(model, batch, UNMASKED)
    assert terms["ctc"].sum.item() == pytest.approx(expected.item(), rel=1e-5)
    assert total(terms).item() == pytest.approx(expected.item() / len(frames), rel=1e-5)
    found = torch.autograd.grad(total(terms), [model.ctc_head.weight, model.backbone.feature_norm.weight])
    weights = [reference.lm_head.weight, reference.wav2vec2.feature_projection.layer_norm.weight]
    wanted = torch.autograd.grad(expected / len(frames), weights)
    for one, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


# Parts of a batch


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return corpus_of(small_corpus)


def parts_of(corpus: Corpus, accumulation: int, batch_seconds: float = 16.0) -> list[Batch]:
    """The parts of a global batch of a stream, which is the same for any number of parts: 7 utterances of 16 s."""
    stream = Stream(
        corpus.train,
        characters_of(corpus),
        batch_seconds=batch_seconds,
        seed=3,
        augment_speed=True,
        rank=0,
        world_size=1,
        accumulation=accumulation,
    )
    return stream.next()


def utterances_of(parts: Sequence[Batch]) -> int:
    """That count."""
    return sum(len(batch.seeds) for batch in parts if batch.counted)


@pytest.mark.parametrize("accumulation", [2, 3, 4])
def test_parts_of_a_batch_sum_to_its_loss_and_gradient(corpus: Corpus, accumulation: int) -> None:
    """Masks and changes of speed belong to the utterance; the parts are of unequal sizes."""
    model = small_model(corpus)
    config = CtcConfig()
    (whole,) = parts_of(corpus, 1)
    parts = parts_of(corpus, accumulation)
    assert utterances_of(parts) == len(whole.seeds) == 7
    assert sum(batch.share for batch in parts) == pytest.approx(1)
    expected = total(ctc_terms(model, whole, config))
    found = [total(ctc_terms(model, batch, config)) for batch in parts]
    assert sum(loss.item() for loss in found) == pytest.approx(expected.item(), rel=1e-5)
    unweighted = sum(ctc_terms(model, batch, config)["ctc"].mean().item() for batch in parts) / accumulation
    assert unweighted != pytest.approx(expected.item(), rel=1e-4)
    parameters = [*model.backbone.parameters(), *model.ctc_head.parameters()]
    wanted = torch.autograd.grad(expected, parameters)
    summed = [sum(g) for g in zip(*(torch.autograd.grad(loss, parameters) for loss in found), strict=True)]
    for one, other in zip(summed, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-6)


def test_a_batch_of_fewer_utterances_than_parts_has_parts_that_count_nothing(corpus: Corpus) -> None:
    model = small_model(corpus)
    (whole,), parts = parts_of(corpus, 1, batch_seconds=3.0), parts_of(corpus, 6, batch_seconds=3.0)
    assert len(whole.seeds) < 6 == len(parts)
    found = [total(ctc_terms(model, batch, CtcConfig())).item() for batch in parts]
    assert [value == 0 for value in found] == [not batch.counted for batch in parts]
    assert sum(found) == pytest.approx(total(ctc_terms(model, whole, CtcConfig())).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["compact_cnn_gru", "transformer"])
def test_the_loop_s_update_from_parts_is_that_from_the_whole(corpus: Corpus, kind: str) -> None:
    """Gradients after the update of the real loop, which sums the parts; no dropout, no statistics over padding."""
    extractor = {"kind": "wave", "channels": 8, "compact": True, "masked_statistics": True}
    dropout = {"hidden": 0, "attention": 0, "activation": 0, "input": 0, "features": 0, "layer": 0}
    settings = {**SMALL_TRANSFORMER, "extractor": extractor, "dropout": dropout}
    phase = Phase(
        loss=CtcConfig(),
        learning_rates={"backbone": 1e-3, "ctc_head": 1e-3},
        optimiser=OptimiserConfig(max_gradient_norm=None),
    )
    found = []
    for accumulation in (1, 3):
        model = small_model(corpus)
        if kind == "transformer":
            model = AcousticModel(TransformerConfig.model_validate(settings), len(characters_of(corpus)), seed=0)
        update = _Update(model, phase, scale_loss=False, device=torch.device("cpu"))
        parts: Any = [{"labelled": batch} for batch in parts_of(corpus, accumulation)]
        terms, made = update(parts, Progress(0, 2), 1.0, torch.autocast("cpu", torch.bfloat16, enabled=False))
        assert made
        assert len(terms) == accumulation
        parameters = [*model.backbone.parameters(), *model.ctc_head.parameters()]
        found.append((terms, [p.grad for p in parameters]))
    (whole_terms, whole), (part_terms, parts_found) = found
    assert sum(t["ctc"].sum for t in part_terms).item() == pytest.approx(whole_terms[0]["ctc"].sum.item(), rel=1e-5)
    assert sum(t["ctc"].count for t in part_terms) == whole_terms[0]["ctc"].count
    largest = max(float(g.abs().max()) for g in whole if g is not None)
    for one, other in zip(parts_found, whole, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * largest)


def test_the_loss_of_a_stage_s_module_is_the_term_s_share(corpus: Corpus) -> None:
    """What the loop calls, for the second of three parts."""
    model = small_model(corpus)
    batch = parts_of(corpus, 3)[1]
    loss, terms = TrainingLoss(model, CtcConfig())({"labelled": batch}, Progress(0, 1))
    assert 0 < batch.share < 1
    assert loss.item() == pytest.approx(batch.share * (terms["ctc"].sum / terms["ctc"].count).item(), rel=1e-6)
