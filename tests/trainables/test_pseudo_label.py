"""Training on what a teacher writes: the teacher, its labels, and what they count."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import SMALL_MODEL, SMALL_TRANSFORMER
from tests.trainables.builders import batch_of, characters_of, corpus_of
from trainables.config import Progress
from trainables.data.batches import Batch, make_batch
from trainables.data.corpus import Corpus
from trainables.decoding.greedy import greedy_decode
from trainables.evaluate import transcribe
from trainables.loop import _Update
from trainables.losses.build import TrainingLoss
from trainables.losses.config import CtcConfig, PseudoLabelConfig, Stream
from trainables.losses.ctc import ctc_log_probabilities, ctc_terms
from trainables.losses.pseudo_label import Teacher, pseudo_label_terms
from trainables.losses.terms import Terms, total
from trainables.models.acoustic import AcousticModel
from trainables.models.config import CompactCnnGruConfig, TransformerConfig
from trainables.stage import Phase

Batches = Mapping[Stream, Batch]
CPU = torch.device("cpu")
NOW = Progress(5, 10)
CONFIG = PseudoLabelConfig(teacher_decay=0.9)


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return corpus_of(small_corpus)


@pytest.fixture(scope="module")
def batches(corpus: Corpus) -> Batches:
    return {"labelled": batch_of(corpus, [0, 1, 2]), "unlabelled": batch_of(corpus, range(3, 11), labelled=False)}


def model_of(corpus: Corpus, **settings: Any) -> AcousticModel:
    """With a head that is not certain of one symbol throughout."""
    config = CompactCnnGruConfig.model_validate({**SMALL_MODEL, **settings})
    model = AcousticModel(config, len(characters_of(corpus)), seed=0)
    with torch.no_grad():
        model.ctc_head.weight.mul_(4)
    return model


def margins(model: AcousticModel, batch: Batch) -> Tensor:
    """(B,) by how much the blank would have to be likelier for an utterance to be empty."""
    with torch.no_grad():
        log_probabilities_BTV, num_frames_B = ctc_log_probabilities(model, batch)
    excess_BT = log_probabilities_BTV[..., 1:].amax(2) - log_probabilities_BTV[..., 0]
    return torch.stack([row[:count].max() for row, count in zip(excess_BT, num_frames_B.tolist(), strict=True)])


def hushed(model: AcousticModel, batch: Batch, empty: int) -> AcousticModel:
    """With so much likelier a blank that exactly so many utterances of the batch are empty."""
    ordered = [float("-inf"), *margins(model, batch).sort().values.tolist(), float("inf")]
    between = max(-50.0, ordered[empty]) / 2 + min(50.0, ordered[empty + 1]) / 2
    with torch.no_grad():
        model.ctc_head.bias[0] += between
    return model


def terms_of(
    model: AcousticModel, batches: Batches, config: PseudoLabelConfig = CONFIG, progress: Progress = NOW
) -> Terms:
    return pseudo_label_terms(model, batches, config, progress, Teacher(model, config.teacher_decay))


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


# The teacher


def test_the_teacher_starts_as_the_model(corpus: Corpus) -> None:
    model = model_of(corpus)
    teacher = Teacher(model, 0.9)
    for part in ("backbone", "ctc_head"):
        mine, its = teacher.get_submodule(part).state_dict(), model.get_submodule(part).state_dict()
        assert mine.keys() == its.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, its[name])
            assert tensor.data_ptr() != its[name].data_ptr()


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_after_n_updates_it_is_the_moving_average_in_closed_form(corpus: Corpus, decay: float) -> None:
    """decay^n x first weights + (1 - decay) x sum of decay^(n - i) x weights after update i, in float64."""
    model = model_of(corpus)
    loss = TrainingLoss(model, CONFIG.with_(teacher_decay=decay))
    assert loss.teacher is not None
    n = 7
    generator = torch.Generator().manual_seed(0)
    history = [[p.detach().double() for p in loss.parts.parameters()]]
    for _ in range(n):
        with torch.no_grad():
            for p in loss.parts.parameters():
                p.add_(torch.randn(p.shape, generator=generator))
        loss.after_update()
        history.append([p.detach().double().clone() for p in loss.parts.parameters()])
    weights = [decay**n] + [(1 - decay) * decay ** (n - i) for i in range(1, n + 1)]
    assert sum(weights) == pytest.approx(1)
    for averaged, *past in zip(loss.teacher.parameters(), *history, strict=True):
        expected = sum(weight * values for weight, values in zip(weights, past, strict=True))
        torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-5)


def test_without_a_decay_it_follows_at_once(corpus: Corpus) -> None:
    model = model_of(corpus)
    teacher = Teacher(model, 0.0)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    teacher.update(model)
    for one, other in zip(teacher.backbone.parameters(), model.backbone.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def pseudo_phase(config: PseudoLabelConfig, frozen_steps: int = 0) -> Phase:
    rates: Any = {"backbone": 1e-2, "ctc_head": 1e-2}
    return Phase(loss=config, learning_rates=rates, frozen_backbone_steps=frozen_steps)


def run(update: _Update, batches: Batches, step: int) -> bool:
    with_precision = torch.autocast("cpu", torch.bfloat16, enabled=False)
    return update([batches], Progress(step, 10), 1.0, with_precision)[1]


def test_the_training_loop_moves_it_after_each_update(corpus: Corpus, batches: Batches) -> None:
    """And not when an update is not made, for its gradient is not finite; its state is part of a checkpoint."""
    model = model_of(corpus)
    update = _Update(model, pseudo_phase(CONFIG.with_(warmup_steps=2)), scale_loss=False, device=CPU)
    teacher = update.loss.teacher
    assert teacher is not None
    expected = [p.detach().clone() for p in teacher.parameters()]
    for step in range(4):
        assert run(update, batches, step)
        learnt = [*model.backbone.parameters(), *model.ctc_head.parameters()]
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, learnt, strict=True)]
        for one, other in zip(teacher.parameters(), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    broken = {**batches, "labelled": replace(batches["labelled"], share=float("nan"))}
    assert not run(update, broken, 4)
    for one, other in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

    resumed = _Update(model_of(corpus), pseudo_phase(CONFIG), scale_loss=False, device=CPU)
    resumed.load_state(copy.deepcopy(update.state()))
    assert resumed.loss.teacher is not None
    assert all(torch.equal(a, b) for a, b in zip(resumed.loss.teacher.parameters(), teacher.parameters(), strict=True))


@pytest.mark.parametrize("frozen_steps", [0, 1])
def test_it_never_learns_by_gradients_and_is_never_in_training(
    corpus: Corpus, batches: Batches, frozen_steps: int
) -> None:
    model = model_of(corpus, dropout=0.3)
    update = _Update(model, pseudo_phase(CONFIG, frozen_steps), scale_loss=False, device=CPU)
    teacher = update.loss.teacher
    assert teacher is not None
    optimised = {id(p) for group in update.optimiser.param_groups for p in group["params"]}
    for step in range(2):
        run(update, batches, step)
        transcribe(model, corpus.dev, characters_of(corpus), CPU)  # an evaluation in between
        assert model.training
        assert not any(module.training for module in teacher.modules())
        assert not any(p.requires_grad or p.grad is not None or id(p) in optimised for p in teacher.parameters())


def test_the_gradient_does_not_flow_through_the_labels(corpus: Corpus, batches: Batches) -> None:
    labelled = Teacher(model_of(corpus), 0.9).label(batches["unlabelled"])
    assert labelled.tokens_BU.dtype == torch.long
    assert not labelled.tokens_BU.requires_grad


# Its labels


def best_paths(model: AcousticModel | Teacher, batch: Batch) -> list[list[int]]:
    """The likeliest symbol of each frame of each utterance by itself, repeats merged, blanks dropped."""
    paths = []
    for waveform_S, samples in zip(batch.waveform_BS, batch.num_samples_B.tolist(), strict=True):
        alone = waveform_S[None, :samples]
        with torch.no_grad():
            raw_BTD, num_frames_B = model.backbone.features(alone, torch.tensor([samples]))
            context_BTC = model.backbone.context(model.backbone.feature_norm(raw_BTD), num_frames_B)
            best = model.ctc_head(context_BTC)[0].argmax(1).tolist()
        paths.append([symbol for symbol, _ in itertools.groupby(best) if symbol])
    return paths


def tokens_of(batch: Batch) -> list[list[int]]:
    return [row[:count].tolist() for row, count in zip(batch.tokens_BU, batch.num_tokens_B.tolist(), strict=True)]


def test_labels_are_the_greedy_decoding_of_unmasked_speech_without_dropout(corpus: Corpus, batches: Batches) -> None:
    """Those of a model with the teacher's weights, one utterance at a time; the student's own differ."""
    student = model_of(corpus, dropout=0.5)
    teacher = Teacher(student, 0.9)
    with torch.no_grad():
        for p in student.parameters():
            p.mul_(0.3)
    unlabelled = batches["unlabelled"]
    labelled = teacher.label(unlabelled)
    expected = best_paths(model_of(corpus).eval(), unlabelled)
    assert tokens_of(labelled) == expected
    assert len({tuple(path) for path in expected}) > 4
    assert tokens_of(labelled) != best_paths(student.eval(), unlabelled)

    characters = characters_of(corpus)
    texts = greedy_decode(*ctc_log_probabilities(teacher, unlabelled), characters)
    assert [characters.decode(path).strip() for path in tokens_of(labelled)] == texts
    assert torch.equal(labelled.waveform_BS, unlabelled.waveform_BS)
    assert (labelled.seeds, labelled.seed, labelled.share) == (unlabelled.seeds, unlabelled.seed, unlabelled.share)


def test_a_transformer_labels_without_dropped_layers_and_dropout(corpus: Corpus, batches: Batches) -> None:
    """Masked statistics, so that an utterance has the same frames alone and in a batch."""
    extractor = {"kind": "wave", "channels": 8, "compact": True, "masked_statistics": True}
    config = TransformerConfig.model_validate(
        {**SMALL_TRANSFORMER, "extractor": extractor, "dropout": {"layer": 0.9, "hidden": 0.5, "input": 0.5}}
    )
    model = AcousticModel(config, len(characters_of(corpus)), seed=0)
    with torch.no_grad():
        model.ctc_head.weight.mul_(10)
    labelled = Teacher(model, 0.9).label(batches["unlabelled"])
    assert tokens_of(labelled) == best_paths(model.eval(), batches["unlabelled"])
    assert int(labelled.num_tokens_B.min()) > 0


def test_labels_are_made_from_the_audio_alone(corpus: Corpus, batches: Batches) -> None:
    """Unlabelled speech has no transcripts, and if there were some, they would change nothing."""
    assert all(utterance.text is None for utterance in corpus.unlabelled)
    plain = batches["unlabelled"]
    assert plain.tokens_BU.shape[1] == 0
    told = make_batch(
        [replace(corpus.unlabelled[i], text="no") for i in range(3, 11)], characters_of(corpus), plain.seeds
    )
    assert int(told.num_tokens_B.min()) > 0
    model = model_of(corpus)
    one, other = (terms_of(model, {**batches, "unlabelled": batch}) for batch in (plain, told))
    for name, term in one.items():
        assert torch.equal(term.sum, other[name].sum)
        assert torch.equal(term.count, other[name].count)


# What they count


def test_the_term_is_the_ctc_loss_towards_the_labels(corpus: Corpus, batches: Batches) -> None:
    """Of masked speech, as on labelled speech."""
    model = model_of(corpus)
    terms = terms_of(model, batches)
    labelled = Teacher(model, 0.0).label(batches["unlabelled"])
    assert int(labelled.num_tokens_B.min()) > 0
    expected = ctc_terms(model, labelled, CONFIG.ctc)["ctc"]
    assert torch.equal(terms["pseudo_ctc"].sum, expected.sum)
    assert terms["pseudo_ctc"].count == terms["pseudo_labelled"].sum == terms["pseudo_labelled"].count == 8
    unmasked = CONFIG.ctc.mask.with_(time_probability=0, channel_probability=0)
    assert expected.sum != ctc_terms(model, labelled, CtcConfig(mask=unmasked))["ctc"].sum
    supervised = ctc_terms(model, batches["labelled"], CONFIG.ctc)["ctc"]
    assert torch.equal(terms["ctc"].sum, supervised.sum)
    assert terms["ctc"].count == supervised.count


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_the_weight_scales_the_term_and_its_gradient(corpus: Corpus, batches: Batches, weight: float) -> None:
    model = model_of(corpus)
    terms = terms_of(model, batches, CONFIG.with_(weight=weight))
    supervised, pseudo = (terms[name].sum / terms[name].count for name in ("ctc", "pseudo_ctc"))
    assert pseudo.item() > 0.1
    assert total(terms).item() == pytest.approx((supervised + weight * pseudo).item(), rel=1e-6)
    expected = gradient(supervised, model.backbone) + weight * gradient(pseudo, model.backbone)
    scale = float(expected.abs().max())
    torch.testing.assert_close(gradient(total(terms), model.backbone), expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("empty", [1, 4, 7])
def test_utterances_without_a_pseudo_label_add_nothing(corpus: Corpus, batches: Batches, empty: int) -> None:
    """The sum over utterances and its gradient are those of the other utterances alone; the mean is over all."""
    unlabelled = batches["unlabelled"]
    model = hushed(model_of(corpus), unlabelled, empty)
    labels = Teacher(model, 0.9).label(unlabelled).num_tokens_B
    assert int((labels == 0).sum()) == empty
    spoken = [i for i in range(8) if labels[i] > 0]
    others = {**batches, "unlabelled": batch_of(corpus, [3 + i for i in spoken], labelled=False)}
    one, other = (terms_of(model, b)["pseudo_ctc"] for b in (batches, others))
    assert (one.count, other.count) == (8, 8 - empty)
    torch.testing.assert_close(one.sum, other.sum, rtol=1e-5, atol=0)
    for part in ("backbone", "ctc_head"):
        found, expected = (gradient(term.sum, model.get_submodule(part)) for term in (one, other))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_parts_of_a_batch_add_up_to_it_however_the_pseudo_labels_fall(corpus: Corpus, batches: Batches) -> None:
    model = hushed(model_of(corpus), batches["unlabelled"], 4)
    whole = terms_of(model, batches)["pseudo_ctc"]
    parts = [
        replace(batch_of(corpus, [3 + i for i in indices], labelled=False), share=len(indices) / 8)
        for indices in ([0, 1, 2], [3, 4, 5], [6, 7])
    ]
    found = [terms_of(model, {**batches, "unlabelled": part})["pseudo_ctc"] for part in parts]
    together = sum(float(term.weight * term.mean().detach()) for term in found)
    assert together == pytest.approx(float(whole.weight * whole.mean().detach()), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_teacher_that_finds_nothing_teaches_nothing(corpus: Corpus, batches: Batches, weight: float) -> None:
    model = hushed(model_of(corpus), batches["unlabelled"], 8)
    terms = terms_of(model, batches, CONFIG.with_(weight=weight))
    assert terms["pseudo_ctc"].sum.item() == terms["pseudo_labelled"].sum == 0
    assert terms["pseudo_ctc"].count == terms["pseudo_labelled"].count == 8
    supervised = ctc_terms(model, batches["labelled"], CONFIG.ctc)
    assert total(terms).item() == total(supervised).item()
    for part in ("backbone", "ctc_head"):
        module = model.get_submodule(part)
        assert not gradient(terms["pseudo_ctc"].mean(), module).any()
        assert torch.equal(gradient(total(terms), module), gradient(total(supervised), module))


@pytest.mark.parametrize("stream", ["labelled", "unlabelled"])
def test_a_filler_counts_nothing(corpus: Corpus, batches: Batches, stream: Stream) -> None:
    model = model_of(corpus)
    terms = terms_of(model, {**batches, stream: replace(batches[stream], counted=False)})
    silent, other = ("ctc", "pseudo_ctc") if stream == "labelled" else ("pseudo_ctc", "ctc")
    assert terms[silent].count == terms[silent].sum == 0
    assert torch.equal(total(terms), terms[other].mean())
    if stream == "unlabelled":
        assert terms["pseudo_labelled"].count == terms["pseudo_labelled"].sum == 0


@pytest.mark.parametrize("step", [0, 3, 4, 9])
def test_before_the_warmup_is_over_there_is_no_unlabelled_term(corpus: Corpus, batches: Batches, step: int) -> None:
    model = model_of(corpus)
    terms = terms_of(model, batches, CONFIG.with_(warmup_steps=4), Progress(step, 10))
    assert ("pseudo_ctc" in terms) is (step >= 4)
    supervised = total(ctc_terms(model, batches["labelled"], CONFIG.ctc))
    assert torch.equal(total(terms), supervised) is (step < 4)


def test_the_warmup_trains_as_supervised_training_does_while_the_teacher_follows(
    corpus: Corpus, batches: Batches
) -> None:
    models = [model_of(corpus), model_of(corpus)]
    phases = [pseudo_phase(CONFIG.with_(warmup_steps=3)), pseudo_phase(CONFIG).with_(loss=CONFIG.ctc)]
    updates = [_Update(m, p, scale_loss=False, device=CPU) for m, p in zip(models, phases, strict=True)]
    for step in range(4):
        for update in updates:
            run(update, batches, step)
        same = all(torch.equal(a, b) for a, b in zip(*(m.backbone.parameters() for m in models), strict=True))
        assert same is (step < 3)
    teacher = updates[0].loss.teacher
    assert teacher is not None
    assert not torch.equal(teacher.ctc_head.weight, model_of(corpus).ctc_head.weight)
