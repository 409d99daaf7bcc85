"""`study similarity`: from the weights of real stages to what it says of them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import search_spaces
from study.ledger import Ledger
from study.similarity import choose, measure
from study.similarity_report import (
    INITIAL,
    LOOKS,
    Closeness,
    PairSimilarity,
    Similarities,
    TrialStages,
    closeness,
    read_similarities,
    similarities_as_dict,
    similarity_figure,
    similarity_file,
    similarity_notes,
    similarity_sentences,
    similarity_table,
)
from study.spec import StudySpec, read_spec
from tests.conftest import pretrain_finetune, small_trial
from tests.study.builders import add_trial, open_study, spec_of
from tests.study.conftest import Call
from trainables.data.corpus import read_corpus
from trainables.loop import run_stage
from trainables.settings_file import SettingsError
from trainables.similarity import hidden_states, initial_backbone, linear_cka, svcca, trained_backbone
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import stages_of

SHORT = {"steps": 2, "batch_seconds": 6, "report_every": 1}
REGIMES: dict[str, dict[str, Any]] = {
    "plain": pretrain_finetune(2),
    "wav2vec_s": {
        "kind": "wav2vec_s",
        "pretrain": SHORT,
        "semi_supervised": {**SHORT, "evaluate_every": 2},
        "finetune": {**SHORT, "evaluate_every": 2},
    },
}
UTTERANCES = 3
PAIRS_OF = {"plain": 3, "wav2vec_s": 6}  # of three and of four sets of weights


def study_of(storage: Path, corpus: Path) -> StudySpec:
    """Two arms that share their pre-training. What is decoded with a language model is no other set of weights."""
    trials = {name: small_trial(corpus, regime) for name, regime in REGIMES.items()}
    trials["plain"] |= {"language_model": {}}
    arms = {name: {"trial": trial} for name, trial in trials.items()}
    return spec_of(storage, arms=arms, search={"trials": 1, "metric": "dev_cer"})


def train(ledger: Ledger, spec: StudySpec, arm: str, seed: int) -> list[Stage]:
    """A finished replication, whose weights are in the storage."""
    name, stages = add_trial(ledger, spec, arm, origin="replication", seed=seed)
    trained = [stage for stage in stages if stage.kind != "decode"]
    for stage in trained:
        result = run_stage(stage, StageStore(spec.storage), lambda report: None)
        ledger.append(stage.fingerprint(), result.reports)
    ledger.end_trial(spec.study, name, "finished")
    return trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_corpus: Path) -> StudySpec:
    torch.set_num_threads(1)
    spec = study_of(tmp_path_factory.mktemp("study") / "results", small_corpus)
    ledger = open_study(spec)
    for seed in (1, 2):
        for arm in REGIMES:
            train(ledger, spec, arm, seed)
    ledger.close()
    return spec


@pytest.fixture
def spec(trained: StudySpec, tmp_path: Path) -> StudySpec:
    """Of a copy of the storage."""
    shutil.copytree(trained.storage, tmp_path / "results")
    return trained.with_(storage=tmp_path / "results")


def measured(spec: StudySpec, utterances: int = UTTERANCES) -> tuple[Similarities, list[int]]:
    """What was found, and how many pairs were computed for each trial."""
    told: list[str] = []
    path = measure(spec, Ledger.in_folder(spec.storage), utterances, told.append)
    found = read_similarities(path)
    assert found
    return found, [int(line.split(": ")[1].split()[0]) for line in told]


def folder_of(spec: StudySpec, trial: str, kind: str) -> Path:
    rows = Ledger.in_folder(spec.storage).trial_stages(spec.study, trial)
    (name,) = (row["name"] for row in rows if row["kind"] == kind)
    return StageStore(spec.storage).named_folder(kind, name)


class TestMeasure:
    def test_compares_all_pairs_of_weights_and_those_of_a_shared_pretraining_once(self, spec: StudySpec) -> None:
        found, computed = measured(spec)
        assert [(t.trial, list(t.weights)) for t in found.trials] == [
            ("plain-000-seed1", [INITIAL, "pretrain", "finetune"]),
            ("plain-000-seed2", [INITIAL, "pretrain", "finetune"]),
            ("wav2vec_s-000-seed1", [INITIAL, "pretrain", "semi_supervised", "finetune"]),
            ("wav2vec_s-000-seed2", [INITIAL, "pretrain", "semi_supervised", "finetune"]),
        ]
        assert computed == [3, 3, 5, 5]
        assert len(found.pairs) == 16

    def test_equals_what_the_weights_give_by_hand(self, spec: StudySpec) -> None:
        found, _ = measured(spec)
        trial = found.trials[2]
        folders = {kind: folder_of(spec, trial.trial, kind) for kind in ("semi_supervised", "finetune")}
        last = Stage.model_validate_json((folders["finetune"] / "stage.json").read_bytes())
        chosen = choose(read_corpus(last.corpus).dev, UTTERANCES)
        backbones = {kind: trained_backbone(folder) for kind, folder in folders.items()}
        backbones[INITIAL] = initial_backbone(last, StageStore(spec.storage))
        states = {kind: hidden_states(backbone, chosen, torch.device("cpu")) for kind, backbone in backbones.items()}
        for kind in ("semi_supervised", INITIAL):
            pair = found.pair(trial, kind, "finetune")
            x, y = states[kind][0], states["finetune"][0]
            assert pair.cka == pytest.approx((linear_cka(x, y),))
            assert pair.svcca == pytest.approx((svcca(x, y),))
            assert (pair.frames, pair.width) == x.shape

    def test_computes_nothing_a_second_time(self, spec: StudySpec) -> None:
        first, _ = measured(spec)
        before = similarity_file(spec.storage, spec.study).read_bytes()
        assert measured(spec) == (first, [0, 0, 0, 0])
        assert similarity_file(spec.storage, spec.study).read_bytes() == before

    def test_computes_only_what_is_new(self, spec: StudySpec) -> None:
        first, _ = measured(spec)
        train(Ledger.in_folder(spec.storage), spec, "plain", 3)
        second, computed = measured(spec)
        assert computed == [0, 0, 3, 0, 0]
        assert first.pairs.items() <= second.pairs.items()

    def test_of_other_utterances_is_another_one_and_keeps_the_first(self, spec: StudySpec) -> None:
        first, _ = measured(spec)
        other, computed = measured(spec, 1)
        assert computed == [3, 3, 5, 5]
        trial = other.trials[0]
        assert other.pair(trial, INITIAL, "finetune").frames < first.pair(first.trials[0], INITIAL, "finetune").frames
        assert measured(spec)[1] == [0, 0, 0, 0]

    def test_goes_on_after_an_interruption(self, spec: StudySpec) -> None:
        def interrupt(line: str) -> None:
            if line.startswith("wav2vec_s-000-seed2"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure(spec, Ledger.in_folder(spec.storage), UTTERANCES, interrupt)
        assert measured(spec)[1] == [0, 0, 0, 5]

    def test_replaces_a_file_of_another_version(self, spec: StudySpec) -> None:
        path = similarity_file(spec.storage, spec.study)
        path.parent.mkdir(parents=True)
        path.write_text('{"version": 0}')
        assert measured(spec)[1] == [3, 3, 5, 5]

    def test_leaves_out_stages_whose_weights_were_removed(self, spec: StudySpec) -> None:
        shutil.rmtree(folder_of(spec, "wav2vec_s-000-seed1", "semi_supervised"))
        found, _ = measured(spec)
        assert list(found.trials[2].weights) == [INITIAL, "pretrain", "finetune"]
        rows = {(row.arm, row.stage): row for row in closeness(found)}
        assert list(rows["wav2vec_s", "semi_supervised"].by_seed) == [2]
        assert list(rows["wav2vec_s", "pretrain"].by_seed) == [1, 2]

    @pytest.mark.parametrize("gone", ["plain-000-seed1", "wav2vec_s-000-seed2"])
    def test_names_trials_whose_last_weights_were_removed(self, spec: StudySpec, gone: str) -> None:
        shutil.rmtree(folder_of(spec, gone, "finetune"))
        found, _ = measured(spec)
        assert len(found.trials) == 3
        assert gone not in [trial.trial for trial in found.trials]
        notes = similarity_notes(similarity_file(spec.storage, spec.study))
        assert notes[-1] == f"Without {gone}, whose last weights are gone or unreadable."

    def test_refuses_a_study_without_weights(self, spec: StudySpec) -> None:
        shutil.rmtree(spec.storage / "stages")
        with pytest.raises(SettingsError, match="nothing to compare: plain-000-seed1, whose last weights are gone"):
            measured(spec)
        assert not similarity_file(spec.storage, spec.study).exists()

    def test_refuses_a_study_without_finished_trials(self, tmp_path: Path, small_corpus: Path) -> None:
        spec = study_of(tmp_path / "results", small_corpus)
        open_study(spec).close()
        with pytest.raises(SettingsError, match="nothing to compare: no trial has finished"):
            measured(spec)


def test_fewer_utterances_are_among_more(small_corpus: Path) -> None:
    dev = read_corpus(study_of(small_corpus, small_corpus).trial_config("plain").corpus).dev
    assert choose(dev, 2) == choose(dev, 4)[:2] == choose(dev[::-1], 2)
    assert sorted(u.id for u in choose(dev, 99)) == [u.id for u in dev]


class TestCommand:
    def test_prints_a_row_for_each_stage_and_measure_and_says_what_they_mean(self, spec: StudySpec, call: Call) -> None:
        code, out, err = call("similarity", "race", "--storage", spec.storage, "--utterances", UTTERANCES)
        assert code == 0
        assert "wav2vec_s-000-seed2: 5 pairs of stages to compare on 3 utterances" in err
        path, printed = similarity_file(spec.storage, spec.study), " ".join(out.split())  # lines are broken
        _, rows = similarity_table(path)
        assert len(rows) == 2 * (2 + 3)
        assert all(" │ ".join(row[:5]) in printed for row in rows)
        assert all(words in printed for words in (*similarity_sentences(path), *similarity_notes(path)))

    def test_prints_json_for_programs(self, spec: StudySpec, call: Call) -> None:
        code, out, _ = call("similarity", "race", "--storage", spec.storage, "--utterances", UTTERANCES, "--json")
        found = json.loads(out)
        assert code == 0
        assert found["study"] == "race"
        assert {trial["trial"]: len(trial["pairs"]) for trial in found["trials"]} == {
            f"{arm}-000-seed{seed}": count for arm, count in PAIRS_OF.items() for seed in (1, 2)
        }
        gained = [row for row in found["closeness"] if row["gain"]]
        assert [(row["stage"], row["measure"], row["baseline"]) for row in gained] == [
            ("semi_supervised", "cka", "plain"),
            ("semi_supervised", "svcca", "plain"),
        ]

    def test_refuses_an_unknown_study_and_no_utterances(self, spec: StudySpec, call: Call) -> None:
        code, _, err = call("similarity", "rice", "--storage", spec.storage)
        assert (code, "no study 'rice'" in err) == (2, True)
        with pytest.raises(SystemExit):
            call("similarity", "race", "--utterances", "0")


Layers = tuple[float, ...]


def similarities(path: Path, arms: Mapping[str, Mapping[str, Sequence[Layers]]]) -> Path:
    """A file of arms -> stage before the last -> similarity to the last one, of each seed (from 1), of each layer.

    SVCCA is half of that.
    """
    trials, pairs = [], {}
    for arm, stages in arms.items():
        count = max(len(values) for values in stages.values())
        for seed in range(1, count + 1):
            there = [stage for stage, values in stages.items() if seed <= len(values)]
            weights = {stage: f"{stage} of {arm} {seed}" for stage in (*there, "finetune")}
            trial = TrialStages(arm=arm, trial=f"{arm}-{seed}", seed=seed, utterances="u", weights=weights)
            trials.append(trial)
            for stage in there:
                cka = stages[stage][seed - 1]
                pair = PairSimilarity(cka=cka, svcca=tuple(v / 2 for v in cka), frames=1000, width=10)
                pairs[trial.key(stage, "finetune")] = pair
            for stage, later in itertools.combinations(there, 2):
                pairs[trial.key(stage, later)] = PairSimilarity(cka=(0.5, 0.5), svcca=(0.5, 0.5), frames=9, width=10)
    found = Similarities(
        study="race",
        utterances=5,
        comparisons=(("ours", "theirs"),),
        trials=tuple(trials),
        missing=(),
        pairs=pairs,
    )
    path.write_text(found.model_dump_json())
    return path


ARMS: dict[str, dict[str, list[Layers]]] = {
    "theirs": {INITIAL: [(0.1, 0.1), (0.1, 0.1)], "pretrain": [(0.5, 0.3), (0.4, 0.2)]},
    "ours": {
        INITIAL: [(0.2, 0.1), (0.2, 0.2)],
        "pretrain": [(0.6, 0.4), (0.7, 0.5)],
        "semi_supervised": [(0.9, 0.9), (0.9, 0.7)],
    },
}


def row_of(path: Path, arm: str, stage: str) -> Closeness:
    """By CKA."""
    found = read_similarities(path)
    assert found
    (row,) = (r for r in closeness(found) if (r.arm, r.stage, r.measure) == (arm, stage, "cka"))
    return row


class TestCloseness:
    def test_is_the_mean_over_layers_with_students_t_over_seeds(self, tmp_path: Path) -> None:
        """By hand: 0.5 and 0.6; with one degree of freedom t = 12.706, and the standard error is 0.05."""
        row = row_of(similarities(tmp_path / "s.json", ARMS), "ours", "pretrain")
        assert row.by_seed == pytest.approx({1: 0.5, 2: 0.6})
        assert row.mean.estimate == pytest.approx(0.55)
        assert row.mean.high == pytest.approx(0.55 + 12.7062 * 0.05, abs=1e-4)

    def test_of_a_semi_supervised_stage_gains_on_the_pretraining_of_the_same_seeds(self, tmp_path: Path) -> None:
        """By hand: 0.9 - 0.5 and 0.8 - 0.6, and against the baseline 0.9 - 0.4 and 0.8 - 0.3."""
        row = row_of(similarities(tmp_path / "s.json", ARMS), "ours", "semi_supervised")
        assert row.gain
        assert row.gain.estimate == pytest.approx(0.3)
        assert row.gain.low == pytest.approx(0.3 - 12.7062 * 0.1, abs=1e-4)
        assert row.baseline == "theirs"
        assert row.baseline_gain
        assert (row.baseline_gain.estimate, row.baseline_gain.low, row.baseline_gain.high) == pytest.approx((0.5,) * 3)

    def test_is_paired_over_the_seeds_that_both_have(self, tmp_path: Path) -> None:
        arms = {"ours": {**ARMS["ours"], "semi_supervised": [(0.9, 0.9)]}}
        row = row_of(similarities(tmp_path / "s.json", arms), "ours", "semi_supervised")
        assert row.gain
        assert (row.gain.estimate, row.gain.low) == (pytest.approx(0.4), None)
        assert (row.baseline, row.baseline_gain) == (None, None)

    def test_without_the_pretrainings_weights_has_no_gain(self, tmp_path: Path) -> None:
        arms = {"ours": {k: v for k, v in ARMS["ours"].items() if k != "pretrain"}}
        assert row_of(similarities(tmp_path / "s.json", arms), "ours", "semi_supervised").gain is None


def arms_with_gains(*gains: float) -> dict[str, dict[str, list[Layers]]]:
    stages = {"pretrain": [(0.5,) for _ in gains], "semi_supervised": [(0.5 + gain,) for gain in gains]}
    return {"ours": {INITIAL: [(0.1,) for _ in gains], **stages}}


class TestSentences:
    @pytest.mark.parametrize(
        ("gains", "words"),
        [
            ((0.2, 0.21, 0.22), "the semi-supervised stage is closer to fine-tuning than pre-training is by CKA"),
            ((-0.2, -0.21, -0.22), "the semi-supervised stage is further from fine-tuning than pre-training is by CKA"),
            (
                (0.2, -0.1, 0.1),
                "no significant difference in how close the semi-supervised stage and pre-training are to",
            ),
            ((0.2,), "with one seed it cannot be told whether the semi-supervised stage closes the gap"),
        ],
    )
    def test_say_what_the_interval_says(self, tmp_path: Path, gains: tuple[float, ...], words: str) -> None:
        first, second = similarity_sentences(similarities(tmp_path / "s.json", arms_with_gains(*gains)))
        assert words in first
        assert "SVCCA" in second

    def test_give_the_numbers_that_they_rest_on(self, tmp_path: Path) -> None:
        first, _ = similarity_sentences(similarities(tmp_path / "s.json", ARMS))
        assert "semi-supervised 0.850, pre-training 0.550, difference +0.300 (-0.971 to +1.571), 2 seeds." in first
        assert first.endswith("Against the pre-training of theirs: +0.500 (+0.500 to +0.500).")

    def test_without_semi_supervised_stages_tell_how_close_pretraining_is(self, tmp_path: Path) -> None:
        path = similarities(tmp_path / "s.json", {"theirs": ARMS["theirs"]})
        assert similarity_sentences(path)[0] == (
            "theirs: pretrain and finetune are alike to 0.350 (0.000 to 0.985) by CKA, 2 seeds."
        )

    def test_notes_say_that_few_frames_bias_svcca(self, tmp_path: Path) -> None:
        path = similarities(tmp_path / "s.json", ARMS)
        assert len(similarity_notes(path)) == 1
        few = path.read_text().replace('"frames":1000', '"frames":99')
        path.write_text(few)
        assert "Only 99 frames for layers as wide as 10" in similarity_notes(path)[1]


class TestReport:
    def test_has_nothing_where_nothing_was_measured(self, tmp_path: Path) -> None:
        path = tmp_path / "similarity.json"
        assert similarity_figure(path) is None
        assert similarities_as_dict(path) is None
        assert (similarity_sentences(path), similarity_notes(path), similarity_table(path)[1]) == ([], [], [])

    def test_table_has_a_row_for_each_stage_and_measure(self, tmp_path: Path) -> None:
        head, rows = similarity_table(similarities(tmp_path / "s.json", ARMS))
        assert {len(row) for row in rows} == {len(head)}
        assert [row[:4] for row in rows if row[0] == "ours"] == [
            ["ours", stage, "finetune", measure]
            for stage in (INITIAL, "pretrain", "semi_supervised")
            for measure in ("CKA", "SVCCA")
        ]
        assert rows[-2][-2:] == ["+0.300 (-0.971 to +1.571)", "+0.500 (+0.500 to +0.500), theirs"]

    def test_figure_draws_the_mean_of_each_stage_layer_by_layer(self, tmp_path: Path) -> None:
        found = similarity_figure(similarities(tmp_path / "s.json", ARMS))
        assert found
        assert len(found.figure.axes) == 4
        panel = found.figure.axes[2]
        drawn = {line.get_label(): list(map(float, line.get_ydata())) for line in panel.get_lines()}
        assert drawn["semi_supervised"] == pytest.approx([0.9, 0.8])
        assert drawn["pretrain"] == pytest.approx([0.65, 0.45])
        looks = {(line.get_linestyle(), line.get_marker()) for line in panel.get_lines()}
        assert len(looks) == len({line.get_color() for line in panel.get_lines()}) == 3

    def test_every_stage_that_others_follow_has_a_look(self) -> None:
        """Of all regimes: the shipped sweep has an arm for each."""
        spec = read_spec(Path(search_spaces.__file__).parent / "regimes_prompts.yaml", [])
        chains = [stages_of(spec.trial_config(arm)) for arm in spec.arms]
        assert {stage.kind for chain in chains for stage in chain[:-1]} <= LOOKS.keys()

    def test_points_are_those_of_the_figure(self, tmp_path: Path) -> None:
        drawn = similarity_figure(similarities(tmp_path / "s.json", ARMS))
        assert drawn
        found = [dict(zip(drawn.columns, row, strict=True)) for row in drawn.rows]
        assert len(found) == 2 * 2 * (2 + 3)
        (point,) = (
            p for p in found if (p["arm"], p["stage"], p["measure"], p["layer"]) == ("ours", "pretrain", "svcca", 2)
        )
        assert (point["mean"], point["lowest"], point["highest"]) == pytest.approx((0.225, 0.2, 0.25))
