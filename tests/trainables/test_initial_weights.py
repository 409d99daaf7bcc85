"""Starting from trained weights (`init`), what keeps a trial from running, and bf16 and compiled layers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import SEWConfig, SEWForCTC, Wav2Vec2Config

from study.run import main
from study.spec import read_spec
from tests.conftest import (
    SMALL_MODEL,
    SMALL_TRANSFORMER,
    Row,
    bl_just,
    pretrain_finetune,
    small_trial,
    spanish_rows,
    write_corpus,
)
from tests.study.builders import write_sweep
from tests.trainables.builders import characters_of, corpus_of
from tests.trainables.test_checkpoints import (
    COMPACT,
    assert_same_weights,
    context_of,
    drawn,
    edit_json,
    edit_weights,
    loaded,
    pretrained,
    save,
    waveform_of,
    write_pt,
)
from tests.trainables.test_loop import run
from trainables.models.acoustic import AcousticModel
from trainables.models.checkpoint_files import CheckpointError
from trainables.models.checkpoints import read_checkpoint
from trainables.settings_file import SettingsError
from trainables.stage import Stage
from trainables.start import build_model
from trainables.store import StageStore
from trainables.trial import TrialConfig, problems, stages_of

Settings = dict[str, Any]

NO_DROPOUT = dict.fromkeys(("hidden", "attention", "activation", "input", "features", "layer"), 0.0)
MODEL: Settings = SMALL_TRANSFORMER
SEW = SEWConfig(
    conv_dim=COMPACT,
    hidden_size=32,
    num_attention_heads=2,
    num_hidden_layers=2,
    intermediate_size=128,
    num_conv_pos_embeddings=15,
    num_conv_pos_embedding_groups=4,
    vocab_size=9,
)


def supervised(steps: int = 3, **settings: Any) -> Settings:
    train = {"steps": steps, "batch_seconds": 6, "report_every": 1, "evaluate_every": 100, **settings}
    return {"kind": "supervised", "train": train}


REGIMES = {"supervised": supervised(), "pretrain_finetune": pretrain_finetune(3), "bl_just": bl_just(6)}


def trial_of(corpus: Path, regime: Settings | None = None, model: Settings = MODEL, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate(small_trial(corpus, regime or supervised(), model=model, **changes))


def first_stage(corpus: Path, source: Path | None, regime: Settings | None = None, model: Settings = MODEL) -> Stage:
    return stages_of(trial_of(corpus, regime, model, init=str(source) if source else None))[0]


def built(stage: Stage, store: StageStore, corpus: Path) -> AcousticModel:
    return build_model(stage, store, len(characters_of(corpus_of(corpus))))


@dataclass(frozen=True)
class Start:
    """Weights, the settings of a model that fits them, and a model that has them."""

    source: Path
    model: Settings
    expected: AcousticModel
    has_self_supervised_head: bool


def save_sew(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        SEWForCTC(SEW).save_pretrained(folder)
    return folder


def sew(corpus: Path, folder: Path) -> Start:
    drawn(SEWForCTC, SEW).save_pretrained(folder)
    return Start(folder, MODEL, loaded(read_checkpoint(folder), 9, "backbone"), False)


def wav2vec2_with_its_head(corpus: Path, folder: Path) -> Start:
    checkpoint = read_checkpoint(save("self-supervised", folder))
    model = loaded(checkpoint, 9, "backbone", "self_supervised_head")
    return Start(folder, checkpoint.model.model_dump(mode="json"), model, True)


def stage_folder(corpus: Path, folder: Path, regime: Settings, *, has_self_supervised_head: bool) -> Start:
    (stage, *_), store = stages_of(trial_of(corpus, regime, seed=5)), StageStore(folder)
    run(stage, store)
    model = AcousticModel(stage.model, len(characters_of(corpus_of(corpus))), seed=1)
    for part in stage.parts:
        stored = safetensors.torch.load_file(store.folder(stage) / f"{part}.safetensors")
        model.get_submodule(part).load_state_dict(stored)
    return Start(store.folder(stage), MODEL, model, has_self_supervised_head)


def pretraining_stage(corpus: Path, folder: Path) -> Start:
    return stage_folder(corpus, folder, pretrain_finetune(2), has_self_supervised_head=True)


def supervised_stage(corpus: Path, folder: Path) -> Start:
    return stage_folder(corpus, folder, supervised(2), has_self_supervised_head=False)


def fairseq(corpus: Path, folder: Path) -> Start:
    model, weights = pretrained("sew")
    path = write_pt(folder / "model.pt", {"model": weights})
    return Start(path, model.config.model_dump(mode="json"), model, True)


@pytest.fixture(
    scope="module",
    params=[sew, wav2vec2_with_its_head, pretraining_stage, supervised_stage, fairseq],
    ids=lambda p: p.__name__,
)
def start(request: pytest.FixtureRequest, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    return request.param(small_corpus, tmp_path_factory.mktemp("start"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


class TestInit:
    @pytest.mark.parametrize("regime", REGIMES)
    def test_gives_the_backbone_and_the_self_supervised_head_where_it_is_trained_and_there(
        self, small_corpus: Path, tmp_path: Path, start: Start, regime: str
    ) -> None:
        store = StageStore(tmp_path)
        stage = first_stage(small_corpus, start.source, REGIMES[regime], start.model)
        model = built(stage, store, small_corpus)
        fresh = built(first_stage(small_corpus, None, REGIMES[regime], start.model), store, small_corpus)
        assert_same_weights(model.backbone, start.expected.backbone)
        assert_same_weights(model.ctc_head, fresh.ctc_head)
        taken_over = start.has_self_supervised_head and regime != "supervised"
        head = start.expected.self_supervised_head if taken_over else fresh.self_supervised_head
        assert_same_weights(model.self_supervised_head, head)

    def test_of_a_folder_of_transformers_gives_what_transformers_computes(
        self, small_corpus: Path, tmp_path: Path
    ) -> None:
        sew(small_corpus, tmp_path)
        model = built(first_stage(small_corpus, tmp_path), StageStore(tmp_path), small_corpus).eval()
        with torch.no_grad():
            expected_BTC = drawn(SEWForCTC, SEW).sew(waveform_of(8_000)).last_hidden_state
        torch.testing.assert_close(context_of(model, waveform_of(8_000)), expected_BTC, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("regime", REGIMES)
    def test_is_for_the_first_stage_only(self, small_corpus: Path, tmp_path: Path, regime: str) -> None:
        source = save_sew(tmp_path / "sew")
        first, *later = stages_of(trial_of(small_corpus, REGIMES[regime], init=str(source)))
        assert len(later) == (regime != "supervised")
        assert first.start
        assert first.start.source == str(source)
        assert [stage.start for stage in later] == [None] * len(later)

    def test_reaches_later_stages_through_what_the_first_one_trained(self, small_corpus: Path, tmp_path: Path) -> None:
        store = StageStore(tmp_path)
        first, second = stages_of(trial_of(small_corpus, bl_just(3), init=str(save_sew(tmp_path / "sew"))))
        run(first, store)
        shutil.rmtree(tmp_path / "sew")
        model = built(second, store, small_corpus)
        for part in ("backbone", "ctc_head"):
            stored = safetensors.torch.load_file(store.folder(first) / f"{part}.safetensors")
            for name, tensor in model.get_submodule(part).state_dict().items():
                assert torch.equal(tensor, stored[name]), name
        assert run(second, store)

    def test_changes_the_losses_of_every_regime_from_the_first_on(self, small_corpus: Path, tmp_path: Path) -> None:
        source = save_sew(tmp_path / "sew")
        for name, regime in REGIMES.items():
            one, other = first_stage(small_corpus, source, regime), first_stage(small_corpus, None, regime)
            started, fresh = run(one, StageStore(tmp_path)), run(other, StageStore(tmp_path))
            loss = "contrastive" if name != "supervised" else "ctc"
            assert all(value == value and abs(value) < 1e6 for r in started for value in r.metrics.values())
            assert abs(started[0].metrics[loss] / fresh[0].metrics[loss] - 1) > 1e-3
            assert started[0].audio_seconds == fresh[0].audio_seconds

    def test_is_part_of_the_model_only_before_the_first_step(self, small_corpus: Path, tmp_path: Path) -> None:
        """A run that goes on from its end needs the weights no more."""
        store, source = StageStore(tmp_path), save_sew(tmp_path / "sew")
        stage = first_stage(small_corpus, source)
        reports = run(stage, store)
        trained = safetensors.torch.load_file(store.folder(stage) / "backbone.safetensors")
        before = loaded(read_checkpoint(source), 9, "backbone").backbone.state_dict()
        assert trained.keys() == before.keys()
        assert not torch.equal(trained["layers.0.expand.weight"], before["layers.0.expand.weight"])
        shutil.rmtree(source)
        assert run(stage, store) == reports


class TestIdentity:
    def test_is_that_of_the_content_wherever_it_lies(
        self, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = save_sew(tmp_path / "one")
        shutil.copytree(one, tmp_path / "elsewhere" / "other")
        monkeypatch.chdir(tmp_path / "elsewhere")
        stages = [first_stage(small_corpus, source) for source in (one, one.parent / "elsewhere/other", Path("other"))]
        sources = {stage.start.source for stage in stages if stage.start}
        assert len(sources) == 2
        assert all(Path(source).is_absolute() for source in sources)
        assert len({stage.fingerprint() for stage in stages}) == 1

    def test_does_not_depend_on_the_name_of_a_pt_file(self, small_corpus: Path, tmp_path: Path) -> None:
        source = fairseq(small_corpus, tmp_path)
        renamed = Path(shutil.copy(source.source, tmp_path / "renamed.pt"))
        one, other = (first_stage(small_corpus, path, None, source.model) for path in (source.source, renamed))
        assert one.fingerprint() == other.fingerprint()

    def test_is_another_with_other_weights_and_without_any(self, small_corpus: Path, tmp_path: Path) -> None:
        sources = [save_sew(tmp_path / "one", 1), save_sew(tmp_path / "two", 2), None]
        assert len({first_stage(small_corpus, source).fingerprint() for source in sources}) == 3

    def test_of_later_stages_follows_the_first(self, small_corpus: Path, tmp_path: Path) -> None:
        last = {
            stages_of(trial_of(small_corpus, pretrain_finetune(3), init=init))[-1].fingerprint()
            for init in (str(save_sew(tmp_path / "one", 1)), str(save_sew(tmp_path / "two", 2)), None)
        }
        assert len(last) == 3

    def test_weights_that_changed_since_the_plan_are_refused(self, small_corpus: Path, tmp_path: Path) -> None:
        source = save_sew(tmp_path / "sew")
        stage, store = first_stage(small_corpus, source), StageStore(tmp_path / "store")
        edit_weights(source, {"lm_head.bias": torch.ones(9)})
        for start in (lambda: built(stage, store, small_corpus), lambda: run(stage, store)):
            with pytest.raises(CheckpointError, match=f"^{re.escape(str(source))}: its weights are not those that the"):
                start()
        assert store.result(stage) is None
        assert run(first_stage(small_corpus, source), store)

    def test_weights_that_are_gone_since_the_plan_are_refused(self, small_corpus: Path, tmp_path: Path) -> None:
        stage = first_stage(small_corpus, save_sew(tmp_path / "sew"))
        shutil.rmtree(tmp_path / "sew")
        with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'sew'}: no such file or folder")):
            built(stage, StageStore(tmp_path), small_corpus)

    def test_of_a_model_of_the_hub_is_its_name_until_it_is_downloaded(
        self, small_corpus: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name, folder = Path("somebody/sew"), save_sew(tmp_path / "sew")
        planned = first_stage(small_corpus, name)
        assert planned.start
        assert planned.start.sha256 == "not downloaded: somebody/sew"
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
        assert first_stage(small_corpus, name).fingerprint() == first_stage(small_corpus, folder).fingerprint()
        with pytest.raises(CheckpointError, match=r"^somebody/sew: its weights are not those that the study was"):
            built(planned, StageStore(tmp_path), small_corpus)


OTHER_MODELS: dict[str, tuple[Settings, Sequence[str]]] = {
    "width": ({**MODEL, "width": 64}, ["width: 32, not 64", "feedforward_width: 128, not 256"]),
    "heads": ({**MODEL, "heads": 4}, ["heads: 2, not 4"]),
    "layers": ({**MODEL, "layers": 3}, ["layers: 2, not 3"]),
    "squeeze": ({**MODEL, "squeeze": 1}, ["squeeze: 2, not 1"]),
    "attention": ({**MODEL, "attention": {"kind": "disentangled"}}, ["attention: {'kind': 'standard'}, not {'kind'"]),
    "another kind": (SMALL_MODEL, ["kind: transformer, not compact_cnn_gru"]),
}


class TestModelsThatDoNotFit:
    @pytest.mark.parametrize(("model", "messages"), OTHER_MODELS.values(), ids=OTHER_MODELS)
    def test_are_refused_in_a_plan_and_at_the_start_with_fields_and_values(
        self, small_corpus: Path, tmp_path: Path, model: Settings, messages: Sequence[str]
    ) -> None:
        source = save_sew(tmp_path)
        ((field, planned),) = problems(trial_of(small_corpus, model=model, init=str(source)))
        assert field == "init"
        with pytest.raises(CheckpointError) as caught:
            built(first_stage(small_corpus, source, model=model), StageStore(tmp_path), small_corpus)
        for message in (planned, str(caught.value)):
            assert message.startswith(f"{source}"), message
            assert "is of another model; " in message
            assert all(expected in message for expected in messages), message

    def test_are_told_the_preset_that_fits(self, small_corpus: Path, tmp_path: Path) -> None:
        """The defaults of transformers are wav2vec 2.0 base."""
        Wav2Vec2Config().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").touch()
        ((_, message),) = problems(trial_of(small_corpus, init=str(tmp_path)))
        assert message.endswith("{preset: w2v2_base}`")
        ((_, message),) = problems(trial_of(small_corpus, model={**MODEL, "layers": 3}, init=str(save_sew(tmp_path))))
        assert message.endswith("is of another model; layers: 2, not 3")

    @pytest.mark.parametrize(
        "extra",
        [{"dropout": NO_DROPOUT}, {"quantiser": {"entries": 4, "dim": 8}}, {"normalise_waveform": True}],
        ids=["dropout", "quantiser", "normalise_waveform"],
    )
    def test_what_holds_no_weight_of_the_backbone_is_free(
        self, small_corpus: Path, tmp_path: Path, extra: Settings
    ) -> None:
        source = save_sew(tmp_path / "sew")
        for regime in REGIMES.values():
            trial = trial_of(small_corpus, regime, {**MODEL, **extra}, init=str(source))
            assert list(problems(trial)) == []
            assert built(stages_of(trial)[0], StageStore(tmp_path), small_corpus)

    def test_a_stages_folder_is_checked_like_any_other(self, small_corpus: Path, tmp_path: Path) -> None:
        source = supervised_stage(small_corpus, tmp_path).source
        assert list(problems(trial_of(small_corpus, init=str(source)))) == []
        ((field, message),) = problems(trial_of(small_corpus, model={**MODEL, "layers": 3}, init=str(source)))
        assert (field, message) == ("init", f"{source} is of another model; layers: 2, not 3")

    def test_a_pt_file_is_looked_into_before_anything_starts(
        self, small_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        start = fairseq(small_corpus, tmp_path)
        model = {**start.model, "layers": 3}
        assert list(problems(trial_of(small_corpus, model=model, init=str(start.source)))) == []
        arm = {"trial": small_trial(small_corpus, supervised(), model=model, init=str(start.source))}
        assert main([str(write_sweep(tmp_path / "sweep.yaml", arms={"one": arm}))]) == 2
        assert f"{start.source}: is of another model; layers: 2, not 3" in capsys.readouterr().err
        assert not (tmp_path / "results").exists()

    def test_every_pt_file_that_a_space_chooses_is_looked_into_before_anything_starts(
        self, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("study.plan.make_plan", lambda spec: pytest.fail("went on to the plan"))
        start = fairseq(small_corpus, tmp_path)
        other = write_pt(tmp_path / "other.pt", {"model": {"mask_emb": torch.zeros(64)}})
        arm = {
            "trial": small_trial(small_corpus, supervised(), model=start.model, init=str(start.source)),
            "space": {"init": {"kind": "categorical", "choices": [str(start.source), str(other)]}},
        }
        assert main([str(write_sweep(tmp_path / "sweep.yaml", arms={"one": arm}))]) == 2
        assert str(other) in capsys.readouterr().err


class TestProblems:
    def test_a_trial_that_can_run_has_none(self, small_corpus: Path, tmp_path: Path) -> None:
        assert list(problems(trial_of(small_corpus))) == []
        assert list(problems(trial_of(small_corpus, init=str(save_sew(tmp_path))))) == []

    @pytest.mark.parametrize("name", ["/no/such/folder", "no/such/folder", "missing.pt", "~/no such"])
    def test_a_path_that_does_not_exist_is_one(self, small_corpus: Path, name: str) -> None:
        assert list(problems(trial_of(small_corpus, init=name))) == [("init", f"{name}: no such file or folder")]

    def test_a_folder_of_something_else_is_one(self, small_corpus: Path, tmp_path: Path) -> None:
        ((field, message),) = problems(trial_of(small_corpus, init=str(tmp_path)))
        assert field == "init"
        assert message.startswith(f"{tmp_path}: neither config.json (Hugging Face) nor stage.json")

    def test_a_model_that_is_not_supported_is_one(self, small_corpus: Path, tmp_path: Path) -> None:
        edit_json(save_sew(tmp_path) / "config.json", model_type="hubert")
        ((field, message),) = problems(trial_of(small_corpus, init=str(tmp_path)))
        assert (field, "got 'hubert'" in message, str(tmp_path) in message) == ("init", True, True)

    def test_a_folder_without_weights_is_one(self, small_corpus: Path, tmp_path: Path) -> None:
        (save_sew(tmp_path) / "model.safetensors").unlink()
        ((field, message),) = problems(trial_of(small_corpus, init=str(tmp_path)))
        assert field == "init"
        assert message.startswith(f"{tmp_path}: no weights here")

    def test_a_name_of_the_hub_that_is_not_on_this_machine_is_none(self, small_corpus: Path, offline: None) -> None:
        assert list(problems(trial_of(small_corpus, init="somebody/some-model"))) == []

    def test_a_name_of_the_hub_that_is_here_is_checked(
        self, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = save_sew(tmp_path / "sew")
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
        assert list(problems(trial_of(small_corpus, init="somebody/sew"))) == []
        found = problems(trial_of(small_corpus, model={**MODEL, "layers": 1}, init="somebody/sew"))
        assert list(found) == [("init", "somebody/sew is of another model; layers: 2, not 1")]


def changed(rows: list[Row], changes: Sequence[Row]) -> list[Row]:
    """The rows with the first ones of train changed."""
    train = [i for i, row in enumerate(rows) if row["split"] == "train"]
    return [row | dict(zip(train, changes, strict=False)).get(i, {}) for i, row in enumerate(rows)]


class TestCorpora:
    @pytest.mark.parametrize(
        ("model", "too_short", "long_enough", "needed"),
        [(MODEL, "0.049", "0.050", "0.050"), (SMALL_MODEL, "0.027", "0.028", "0.028")],
        ids=["transformer", "compact_cnn_gru"],
    )
    def test_an_utterance_that_is_too_short_for_the_model_is_named_with_its_seconds(
        self, tmp_path: Path, model: Settings, too_short: str, long_enough: str, needed: str
    ) -> None:
        """Two frames of 320 samples and a receptive field of 400, one window of 400: 720 and 400 samples, at 1.1 x."""
        rows = changed(spanish_rows(16), [{"text": "a", "duration_seconds": too_short}])
        short = next(row["id"] for row in rows if row["duration_seconds"] == too_short)
        corpus = write_corpus(tmp_path / "short", rows)
        ((field, message),) = problems(trial_of(corpus, model=model))
        assert field == "corpus"
        assert message.startswith(f"utterance {short!r} lasts {too_short} s, and this model needs {needed} s")
        rows = changed(spanish_rows(16), [{"text": "a", "duration_seconds": long_enough}])
        assert list(problems(trial_of(write_corpus(tmp_path / "long", rows), model=model))) == []

    @pytest.mark.parametrize("split", ["dev", "test"])
    def test_an_utterance_too_short_is_found_in_every_split(self, tmp_path: Path, split: str) -> None:
        rows = spanish_rows(16)
        row = next(row for row in rows if row["split"] == split)
        row |= {"duration_seconds": "0.02", "text": "a"}
        ((_, message),) = problems(trial_of(write_corpus(tmp_path, rows)))
        assert f"utterance {row['id']!r} lasts 0.020 s" in message

    def test_texts_that_ctc_cannot_align_are_refused_above_one_in_a_hundred(self, tmp_path: Path) -> None:
        """By hand: `llama` needs a frame a letter and a blank between the l's; 0.105 s are 1680 samples, 5 frames."""
        rows = spanish_rows(136)
        assert sum(row["split"] == "train" for row in rows) == 102
        unalignable = {"text": "llama", "duration_seconds": "0.105"}
        one = write_corpus(tmp_path / "one", changed(rows, [unalignable]))
        assert list(problems(trial_of(one))) == []
        two = write_corpus(tmp_path / "two", changed(rows, [unalignable] * 2))
        ((field, message),) = problems(trial_of(two))
        assert field == "corpus"
        assert message.startswith("2 of 102 train utterances have fewer frames than CTC needs for their text, such as ")
        assert "with 5 frames for 6;" in message
        example = message.split("such as ")[1].split(" with")[0].strip("'")
        assert example in {row["id"] for row in rows if row["split"] == "train"}

    @pytest.mark.parametrize(
        ("text", "seconds", "aligns"),
        [("llama", "0.105", False), ("llama", "0.125", True), ("lame", "0.085", True), ("lamer", "0.085", False)],
    )
    def test_a_text_needs_a_frame_a_letter_and_one_between_equal_ones(
        self, tmp_path: Path, text: str, seconds: str, aligns: bool
    ) -> None:
        """0.085 s, 0.105 s and 0.125 s are 4, 5 and 6 frames."""
        rows = changed(spanish_rows(16), [{"text": text, "duration_seconds": seconds}])
        found = list(problems(trial_of(write_corpus(tmp_path, rows))))
        assert [field for field, _ in found] == ([] if aligns else ["corpus"])

    def test_a_model_with_more_frames_a_second_takes_what_another_cannot(self, tmp_path: Path) -> None:
        rows = changed(spanish_rows(16), [{"text": "lame", "duration_seconds": "0.105"}])
        corpus = write_corpus(tmp_path, rows)
        assert list(problems(trial_of(corpus, model=MODEL))) == []
        ((_, message),) = problems(trial_of(corpus, model=SMALL_MODEL))  # a frame every 40 ms
        assert "take a model with more frames a second" in message


class TestSweepFiles:
    def errors(self, path: Path, corpus: Path, *, shared: Settings, own: Settings) -> list[str]:
        trial = small_trial(corpus, supervised(), model=MODEL)
        content = {"trial": {**trial, **shared}, "arms": {"one": {"trial": own}, "two": {}}}
        with pytest.raises(SettingsError) as caught:
            read_spec(write_sweep(path, **content))
        return caught.value.errors

    def place(self, path: Path, key: str = "init") -> str:
        lines = path.read_text().splitlines()
        ((line, column),) = [(i, text.index(f'"{key}":') + 1) for i, text in enumerate(lines, 1) if f'"{key}":' in text]
        return f"{path}:{line}:{column}"

    def test_an_init_that_cannot_be_used_has_its_line_and_column(self, small_corpus: Path, tmp_path: Path) -> None:
        path = tmp_path / "sweep.yaml"
        found = self.errors(path, small_corpus, shared={}, own={"init": "/no/such"})
        assert found == [f"{self.place(path)}: arms.one.trial.init: /no/such: no such file or folder"]
        found = self.errors(path, small_corpus, shared={"init": "/no/such"}, own={})
        assert found == [f"{self.place(path)}: trial.init: /no/such: no such file or folder"]

    def test_an_init_of_another_model_has_its_line_and_column(self, small_corpus: Path, tmp_path: Path) -> None:
        path, source = tmp_path / "sweep.yaml", save_sew(tmp_path / "sew")
        found = self.errors(path, small_corpus, shared={"init": str(source)}, own={"model": {"layers": 3}})
        message = f"{source} is of another model; layers: 2, not 3"
        assert found == [f"{self.place(path)}: trial.init: {message}"]

    def test_a_corpus_that_does_not_go_with_the_model_has_its_line_and_column(self, tmp_path: Path) -> None:
        rows = changed(spanish_rows(16), [{"text": "a", "duration_seconds": "0.02"}])
        corpus, path = write_corpus(tmp_path / "corpus", rows), tmp_path / "sweep.yaml"
        found = self.errors(path, corpus, shared={}, own={})
        assert len(found) == 1
        assert found[0].startswith(f"{self.place(path, 'corpus')}: trial.corpus: utterance ")

    def test_a_stages_folder_is_a_good_init(self, small_corpus: Path, tmp_path: Path) -> None:
        source = supervised_stage(small_corpus, tmp_path).source
        arm = {"trial": small_trial(small_corpus, supervised(), model=MODEL, init=str(source))}
        assert read_spec(write_sweep(tmp_path / "sweep.yaml", arms={"one": arm})).arms

    @pytest.mark.parametrize("verb", ["plan", "run"])
    def test_a_folder_without_weights_is_an_error_and_no_crash(
        self, small_corpus: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (save_sew(tmp_path / "sew") / "model.safetensors").unlink()
        arm = {"trial": small_trial(small_corpus, supervised(), model=MODEL, init=str(tmp_path / "sew"))}
        assert main([verb, str(write_sweep(tmp_path / "sweep.yaml", arms={"one": arm}))]) == 2
        assert f"{tmp_path / 'sew'}: no weights here" in capsys.readouterr().err

    def test_a_model_that_the_hub_does_not_give_ends_the_study_before_it_starts(
        self, small_corpus: Path, tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arm = {"trial": small_trial(small_corpus, supervised(), model=MODEL, init="somebody/some-model")}
        path = write_sweep(tmp_path / "sweep.yaml", arms={"one": arm})
        assert main(["plan", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert main(["run", str(path)]) == 2
        assert "somebody/some-model: neither a file or folder here, nor to be had" in capsys.readouterr().err


def losses(stage: Stage, store: Path) -> list[float]:
    return [r.metrics["ctc"] for r in run(stage, StageStore(store))]


class TestPrecisionAndCompilation:
    @pytest.mark.parametrize("model", [MODEL, SMALL_MODEL], ids=["transformer", "compact_cnn_gru"])
    def test_training_in_bf16_is_close_to_that_in_fp32(
        self, small_corpus: Path, tmp_path: Path, model: Settings
    ) -> None:
        one, two = (first_stage(small_corpus, None, supervised(precision=p), model) for p in ("fp32", "bf16"))
        assert one.fingerprint() != two.fingerprint()
        full, half = losses(one, tmp_path), losses(two, tmp_path)
        assert half[0] == pytest.approx(full[0], rel=0.03)
        assert half[0] != full[0]
        assert torch.tensor(half).isfinite().all()
        stored = safetensors.torch.load_file(StageStore(tmp_path).folder(two) / "backbone.safetensors")
        assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float32}

    @pytest.mark.parametrize("regime", [pretrain_finetune(2), bl_just(6)], ids=["pretrain_finetune", "bl_just"])
    def test_self_supervised_training_in_bf16_has_finite_losses(
        self, small_corpus: Path, tmp_path: Path, regime: Settings
    ) -> None:
        first = next(name for name in ("pretrain", "joint") if name in regime)
        regime = {**regime, first: {**regime[first], "precision": "bf16"}}
        reports = run(first_stage(small_corpus, None, regime), StageStore(tmp_path))
        assert torch.tensor([value for r in reports for value in r.metrics.values()]).isfinite().all()

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
    def test_compiled_layers_without_dropout_give_the_same_losses(self, small_corpus: Path, tmp_path: Path) -> None:
        model = {**MODEL, "layers": 1, "dropout": NO_DROPOUT}
        one, two = (first_stage(small_corpus, None, supervised(compile_layers=c), model) for c in (False, True))
        expected, found = losses(one, tmp_path / "one"), losses(two, tmp_path / "two")
        assert found == pytest.approx(expected, rel=1e-4)
        stored = [StageStore(tmp_path / s).folder(i) / "backbone.safetensors" for s, i in (("one", one), ("two", two))]
        names = [safetensors.torch.load_file(path).keys() for path in stored]
        assert names[0] == names[1]
