"""What a stage keeps over an interruption, and what it takes from its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SMALL_MODEL, bl_just, pretrain_finetune, small_trial, spanish_rows, write_corpus
from tests.trainables.builders import characters_of, corpus_of
from tests.trainables.test_loop import run, weights, without_times
from trainables.data.batches import Stream
from trainables.data.seeds import fold
from trainables.loop import DivergedError, build_model, run_stage
from trainables.losses.config import Part
from trainables.models.acoustic import count_parameters
from trainables.stage import OptimiserConfig, Report, Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of


def stages(corpus: Path, regime: dict[str, Any], **model: Any) -> list[Stage]:
    """Stages that write a checkpoint as often as they may."""
    trial = TrialConfig.model_validate(small_trial(corpus, regime, model={**SMALL_MODEL, **model}))
    return [stage.with_(checkpoint_seconds=1e-9) for stage in stages_of(trial)]


def supervised(corpus: Path, steps: int = 4, **settings: Any) -> Stage:
    train = {"steps": steps, "batch_seconds": 6, "report_every": 1, "evaluate_every": 100, **settings}
    return stages(corpus, {"kind": "supervised", "train": train})[0]


class InterruptedTrainingError(Exception):
    """Stands for the end of the process; what a killed process leaves is in its last checkpoint."""


def interrupted(stage: Stage, store: StageStore, at: int) -> list[Report]:
    """Train until the report of that step; what had been reported before."""
    reports: list[Report] = []

    def report(new: Report) -> None:
        if new.step == at:
            raise InterruptedTrainingError
        reports.append(new)

    with pytest.raises(InterruptedTrainingError):
        run_stage(stage, store, report)
    return reports


def assert_same_weights(stage: Stage, one: StageStore, other: StageStore) -> None:
    expected, found = weights(stage, one), weights(stage, other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("at", [2, 3, 4, 6, 7])
def test_an_interruption_at_any_report_leaves_no_trace(small_corpus: Path, tmp_path: Path, at: int) -> None:
    """Evaluations between the reports of the loss, dropout, and checkpoints between the reports of the loss."""
    settings = {"steps": 7, "report_every": 3, "evaluate_every": 2}
    regime = {"kind": "bl_just", "joint": {**settings, "batch_seconds": 6}, "finetune": None}
    (stage,) = stages(small_corpus, regime, dropout=0.2)
    whole, broken = StageStore(tmp_path / "whole"), StageStore(tmp_path / "broken")
    expected = run(stage, whole)
    before = interrupted(stage, broken, at)
    resumed = run(stage, broken)
    assert [r.step for r in resumed] == [2, 3, 4, 6, 7]
    assert without_times(resumed) == without_times(expected)
    assert_same_weights(stage, whole, broken)
    for name in ("hypotheses-dev.jsonl", "hypotheses-test.jsonl"):
        assert (broken.folder(stage) / name).read_bytes() == (whole.folder(stage) / name).read_bytes()
    checkpointed = [r for r in before if r.step < at]  # the report that was interrupted comes before its checkpoint
    assert resumed[: len(checkpointed)] == checkpointed
    assert not {r.reported_at for r in resumed[len(checkpointed) :]} & {r.reported_at for r in before}


def test_a_stage_interrupted_twice_counts_the_time_of_all_its_attempts(small_corpus: Path, tmp_path: Path) -> None:
    stage, store = supervised(small_corpus, 6), StageStore(tmp_path)
    first = interrupted(stage, store, 3)
    second = interrupted(stage, store, 5)
    third = run(stage, store)
    assert second[:2] == first
    assert third[: len(second)] == second
    elapsed = [r.elapsed_seconds for r in third]
    assert elapsed == sorted(elapsed)
    assert len(set(elapsed)) == 6
    assert [r.accelerator_seconds for r in third] == elapsed


def test_without_time_for_a_checkpoint_none_is_written_and_training_starts_again(
    small_corpus: Path, tmp_path: Path
) -> None:
    stage, store = supervised(small_corpus).with_(checkpoint_seconds=3600), StageStore(tmp_path)
    before = interrupted(stage, store, 3)
    assert not (store.partial_folder(stage) / "checkpoint.pt").exists()
    after = run(stage, store)
    assert without_times(after)[:2] == without_times(before)
    assert after[0].reported_at > before[-1].reported_at


@pytest.mark.parametrize("spoil", ["torn", "one bit", "missing"])
def test_a_spoilt_checkpoint_costs_the_steps_since_the_one_before(
    small_corpus: Path, tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage, store, whole = supervised(small_corpus), StageStore(tmp_path), StageStore(tmp_path / "whole")
    before = interrupted(stage, store, 4)
    path = store.partial_folder(stage) / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if spoil == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 3] if spoil == "torn" else content)
    after, expected = run(stage, store), run(stage, whole)
    assert without_times(after) == without_times(expected)
    assert_same_weights(stage, store, whole)
    again = [a.reported_at > b.reported_at for a, b in zip(after, before, strict=False)]
    assert again == [False, False, True], "the last step of the first attempt was made again, and no earlier one"
    assert ("is not as it was written" in caplog.text) == (spoil != "missing")


def test_without_a_whole_checkpoint_training_starts_again(small_corpus: Path, tmp_path: Path) -> None:
    stage, store, whole = supervised(small_corpus), StageStore(tmp_path), StageStore(tmp_path / "whole")
    interrupted(stage, store, 4)
    for path in store.partial_folder(stage).glob("checkpoint*.pt"):
        path.write_bytes(b"")
    assert without_times(run(stage, store)) == without_times(run(stage, whole))


def test_a_folder_without_its_done_mark_is_no_obstacle(small_corpus: Path, tmp_path: Path) -> None:
    """What an interrupted deletion or copy leaves."""
    stage, store = supervised(small_corpus, 1), StageStore(tmp_path)
    store.folder(stage).mkdir(parents=True)
    (store.folder(stage) / "backbone.safetensors").write_bytes(b"half a fi")
    run(stage, store)
    assert store.result(stage)
    assert weights(stage, store)


def test_after_divergence_the_checkpoint_holds_finite_weights(small_corpus: Path, tmp_path: Path) -> None:
    stage, store = supervised(small_corpus, 20, learning_rate=1e30), StageStore(tmp_path)
    with pytest.raises(DivergedError):
        run(stage, store)
    state = torch.load(store.partial_folder(stage) / "checkpoint.pt", weights_only=True)
    assert 1 <= state["step"] < 20
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert store.result(stage) is None
    assert not store.lease(stage).path.exists()


def test_pretraining_is_blind_to_the_transcripts(tmp_path: Path) -> None:
    """The same audio with other texts, of another alphabet: one fingerprint, and the same bits."""
    rows = spanish_rows(16)
    other_rows = [{**row, "text": f"совсем другой текст {i}"} for i, row in enumerate(rows)]
    one, other = (
        stages(write_corpus(tmp_path / name, r), pretrain_finetune())[0]
        for name, r in {"one": rows, "other": other_rows}.items()
    )
    assert one.fingerprint() == other.fingerprint()
    first, second = StageStore(tmp_path / "first"), StageStore(tmp_path / "second")
    assert without_times(run(one, first)) == without_times(run(other, second))
    assert_same_weights(one, first, second)


@pytest.mark.parametrize(
    ("regime", "taken_over", "fresh"),
    [(pretrain_finetune(2), ("backbone",), ("ctc_head",)), (bl_just(4), ("backbone", "ctc_head"), ())],
    ids=["pretrain_finetune", "bl_just"],
)
def test_a_stage_starts_from_the_stored_parts_and_from_fresh_others(
    small_corpus: Path, tmp_path: Path, regime: dict[str, Any], taken_over: tuple[Part, ...], fresh: tuple[Part, ...]
) -> None:
    store = StageStore(tmp_path)
    first, second = stages(small_corpus, regime)
    run(first, store)
    stored = weights(first, store)
    num_symbols = len(characters_of(corpus_of(small_corpus)))
    started, untrained = build_model(second, store, num_symbols), build_model(first, store, num_symbols)
    for part in taken_over:
        for name, tensor in started.get_submodule(part).state_dict().items():
            assert torch.equal(tensor, stored[f"{part}.{name}"])
        pairs = zip(started.get_submodule(part).parameters(), untrained.get_submodule(part).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
    for part in fresh:
        for a, b in zip(
            started.get_submodule(part).parameters(), untrained.get_submodule(part).parameters(), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", ["backbone", "ctc_head"])
def test_each_part_is_trained_at_its_own_learning_rate(small_corpus: Path, tmp_path: Path, frozen: Part) -> None:
    """At a rate of 1e-30 nothing moves; 1e-25 is for weights that start at zero."""
    stage, store = supervised(small_corpus), StageStore(tmp_path)
    rates = {part: 1e-30 if part == frozen else 1e-3 for part in stage.parts}
    stage = stage.with_(phases=(stage.phases[0].with_(learning_rates=rates),))
    model = build_model(stage, store, len(characters_of(corpus_of(small_corpus))))
    run(stage, store)
    trained = weights(stage, store)
    for part in stage.parts:
        for name, parameter in model.get_submodule(part).named_parameters():
            moved = (trained[f"{part}.{name}"] - parameter).abs().max().item()
            assert moved < 1e-25 if part == frozen else moved > 1e-6, f"{part}.{name}"


def test_the_first_update_moves_weights_by_the_scheduled_learning_rate(small_corpus: Path, tmp_path: Path) -> None:
    """Adam's first update is learning rate x sign of the gradient: here 0.1 x start_scale 0.01."""
    stage, store = supervised(small_corpus, 1, learning_rate=0.1), StageStore(tmp_path)
    optimiser = OptimiserConfig(weight_decay=0.0, epsilon=1e-20)
    stage = stage.with_(phases=(stage.phases[0].with_(optimiser=optimiser),))
    run(stage, store)
    trained = weights(stage, store)
    model = build_model(stage, store, num_symbols=len(trained["ctc_head.bias"]))
    moved = (trained["ctc_head.weight"] - model.ctc_head.weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-3, atol=0)


def test_dropout_differs_from_step_to_step(tmp_path: Path) -> None:
    """One utterance, no masks, a rate at which nothing moves: the losses can differ by the noise alone."""
    root = write_corpus(tmp_path / "corpus", spanish_rows(3))
    still = {"batch_seconds": 6, "report_every": 1, "augment_speed": False, "learning_rate": 1e-30}
    mask = {"time_probability": 0, "channel_probability": 0}
    regime = {"kind": "supervised", "train": {"steps": 4, **still, "loss": {"mask": mask}}}
    for dropout, different in {0.0: 1, 0.5: 4}.items():
        (stage,) = stages(root, regime, dropout=dropout)
        assert len({report.metrics["ctc"] for report in run(stage, StageStore(tmp_path))}) == different


def test_reports_count_the_audio_that_the_stage_drew(small_corpus: Path, tmp_path: Path) -> None:
    """The joint stage draws unlabelled audio in every step and labelled audio in three of five."""
    corpus = corpus_of(small_corpus)
    (stage,) = stages(small_corpus, {**bl_just(9), "finetune": None})
    reports = run(stage, StageStore(tmp_path))
    streams = {
        name: Stream(utterances, None, batch_seconds=6, seed=fold(0, name), augment_speed=True, rank=0, world_size=1)
        for name, utterances in {"labelled": corpus.train, "unlabelled": corpus.unlabelled}.items()
    }
    for step, report in enumerate(reports):
        streams["unlabelled"].next()
        if step % 5 >= 2:
            streams["labelled"].next()
        drawn = {name: stream.audio_seconds for name, stream in streams.items()}
        assert report.audio_seconds == pytest.approx(sum(drawn.values()))
        assert report.epochs == pytest.approx(drawn["labelled"] / sum(u.duration_seconds for u in corpus.train))


def test_a_report_is_the_mean_over_the_utterances_since_the_last_one(small_corpus: Path, tmp_path: Path) -> None:
    """Batches of 0.1 s hold one utterance each, so that the mean of five steps is that of their reports."""
    every, fifth = (supervised(small_corpus, 10, batch_seconds=0.1, report_every=n) for n in (1, 5))
    store = StageStore(tmp_path)
    single = [report.metrics["ctc"] for report in run(every, store)]
    means = [report.metrics["ctc"] for report in run(fifth, store)]
    assert means == pytest.approx([sum(single[:5]) / 5, sum(single[5:]) / 5])


def test_the_result_counts_the_parameters_of_the_trained_parts(small_corpus: Path, tmp_path: Path) -> None:
    stage, store = stages(small_corpus, pretrain_finetune(1))[0], StageStore(tmp_path)
    result = run_stage(stage, store, lambda report: None)
    model = build_model(stage, store, 30)
    assert result.num_parameters == count_parameters(model.backbone) + count_parameters(model.self_supervised_head)
