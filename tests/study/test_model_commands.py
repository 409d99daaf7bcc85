"""`study models`, `export` and `transcribe`, and presets and trained weights in sweep files."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForCTC, AutoProcessor

from study.run import main
from study.spec import StudySpec, read_spec
from tests.conftest import SMALL_MODEL, SMALL_TRANSFORMER, small_trial
from tests.study.builders import add_trial, open_study, spec_of, supervised, write_sweep
from tests.study.conftest import Call
from tests.trainables.builders import corpus_of
from trainables.loop import run_stage
from trainables.models.config import CnnGruConfig, TransformerConfig
from trainables.models.presets import PRESETS, ModelConfig
from trainables.recogniser import Recogniser
from trainables.settings_file import SettingsError
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import stages_of

Settings = dict[str, Any]

MODELS: TypeAdapter[Any] = TypeAdapter(ModelConfig)
TRANSFORMER: Settings = {**SMALL_TRANSFORMER, "layers": 1}
BRIEF: Settings = {"steps": 2, "learning_rate": 1e-4, "batch_seconds": 6, "report_every": 1, "evaluate_every": 2}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


class TestModels:
    @pytest.fixture(scope="class")
    def sizes(self) -> list[Settings]:
        with pytest.MonkeyPatch.context() as patch:
            printed: list[str] = []
            patch.setattr("builtins.print", printed.append)
            assert main(["models", "--json"]) == 0
        found: list[Settings] = json.loads("".join(printed))
        return found

    def test_as_json_are_all_presets_in_order(self, sizes: list[Settings]) -> None:
        assert [size["name"] for size in sizes] == list(PRESETS)
        grid = {f"cnn_gru_{c}x{r}" for c, r in itertools.product((2, 3, 4), (4, 5, 6))}
        squeezed = {"sq_w2v_e384_o256", "sq_w2v_e384_c96", "sq_w2v_e512_c48", "sq_w2v_e512_c64"}
        assert grid | squeezed <= {size["name"] for size in sizes}
        for size in sizes:
            numbers = ("parameters_ctc", "parameters_pretraining", "frame_rate_hz", "flops_per_second")
            assert all(size[number] > 0 for number in numbers), size

    @pytest.mark.parametrize(
        ("name", "outputs", "ctc", "pretraining", "frame_rate_hz"),
        [
            ("w2v2_base", 32, 94_396_320, 95_044_608, 50),
            ("sew_d_tiny", 32, 24_127_423, 29_260_831, 50),
            ("cnn_gru_3x5", 1023, 27_257_631, 24_292_256, 50),
            ("compact_cnn_gru", 32, 631_184, 702_192, 25),
        ],
    )
    def test_sizes_are_those_of_the_papers(
        self, sizes: list[Settings], name: str, outputs: int, ctc: int, pretraining: int, frame_rate_hz: float
    ) -> None:
        """P-SEW Table 1 prints 94.4 and 24.1 million; P-BLJ Table 2 27.26 million; the others are this project's."""
        (size,) = (size for size in sizes if size["name"] == name)
        assert (size["outputs"], size["parameters_ctc"]) == (outputs, ctc)
        assert (size["parameters_pretraining"], size["frame_rate_hz"]) == (pretraining, frame_rate_hz)

    def test_as_text_are_a_line_each_with_what_a_reader_should_know(self, call: Call) -> None:
        code, out, _ = call("models")
        assert code == 0
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
        assert [row[0] for row in rows if row[0]] == list(PRESETS)
        start = [row[0] for row in rows].index("w2v2_small")
        small = [rows[start], *itertools.takewhile(lambda row: not row[0], rows[start + 1 :])]
        assert small[0][1:5] == ["24,851,872", "32", "25,332,224", "50"]
        note = " ".join(row[-1] for row in small)
        assert note == "P-SEW Table 1 prints 24.8 M; this is 24.9 M, and the cause is not known"


class Storage:
    """A storage folder with trained stages and the ledger of two studies, `race` and `rerun`."""

    def __init__(self, root: Path, corpus: Path) -> None:
        self.root, self.corpus = root, corpus
        regime = {"kind": "pretrain_finetune", "pretrain": {"steps": 1, "batch_seconds": 6}, "finetune": BRIEF}
        arms = {
            "one": {"trial": small_trial(corpus, {"kind": "supervised", "train": BRIEF}, model=TRANSFORMER)},
            "two": {"trial": small_trial(corpus, regime, model=TRANSFORMER)},
            "gru": {"trial": small_trial(corpus, {"kind": "supervised", "train": BRIEF})},
        }
        self.stages: dict[str, Stage] = {}
        self.race, self.rerun = (spec_of(root, study=study, arms=arms) for study in ("race", "rerun"))
        self._add(self.race, "one", 0, "finished")
        self._add(self.race, "one", 1, "unfinished")
        self._add(self.race, "one", 2, "failed")
        self._add(self.race, "two", 0, "finished", seed=2)
        self._add(self.race, "gru", 0, "finished")
        self._add(self.rerun, "one", 0, "finished", seed=1)

    def _add(self, spec: StudySpec, arm: str, number: int, status: Any, seed: int | None = None) -> None:
        ledger = open_study(spec)
        name, stages = add_trial(ledger, spec, arm, number, seed=seed)
        if status == "finished":
            for stage in stages:
                result = run_stage(stage, StageStore(self.root), lambda report: None)
                ledger.append(stage.fingerprint(), result.reports)
        if status != "unfinished":
            ledger.end_trial(spec.study, name, status, "lost" if status == "failed" else None)
        ledger.close()
        self.stages[f"{spec.study}/{name}"] = stages[-1]

    def folder(self, trial: str) -> Path:
        return StageStore(self.root).folder(self.stages[trial])

    def audio(self, count: int = 2) -> list[Path]:
        return [u.path for u in corpus_of(self.corpus).dev[:count]]

    def texts(self, trial: str) -> list[str]:
        recogniser = Recogniser.open(self.folder(trial))
        return [recogniser.transcribe(path) for path in self.audio()]


@pytest.fixture(scope="module")
def storage(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(tmp_path_factory.mktemp("results"), small_corpus)


class TestTranscribe:
    @pytest.mark.parametrize(
        ("name", "trial"),
        [
            ("two-000", "race/two-000"),
            ("race/two-000", "race/two-000"),
            ("race/one-000", "race/one-000"),
            ("rerun/one-000", "rerun/one-000"),
            ("gru-000", "race/gru-000"),
        ],
    )
    def test_takes_the_last_stage_of_the_trial(self, storage: Storage, call: Call, name: str, trial: str) -> None:
        code, out, _ = call("transcribe", name, *storage.audio(), "--storage", storage.root, "--json")
        assert code == 0
        lines = [json.loads(line) for line in out.splitlines()]
        expected = zip(storage.audio(), storage.texts(trial), strict=True)
        assert lines == [{"file": str(path), "text": text} for path, text in expected]
        assert all(line["text"] for line in lines)

    def test_of_the_tests_models_are_different(self, storage: Storage) -> None:
        trials = ("race/one-000", "rerun/one-000", "race/two-000", "race/gru-000")
        assert len({tuple(storage.texts(trial)) for trial in trials}) == 4

    def test_takes_a_folder(self, storage: Storage, call: Call, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(storage.folder("race/one-000"), tmp_path / "copy"))
        code, out, _ = call("transcribe", folder, *storage.audio())
        assert code == 0
        expected = zip(storage.audio(), storage.texts("race/one-000"), strict=True)
        assert out.splitlines() == [f"{path}\t{text}" for path, text in expected]

    def test_finds_a_storage_folder_by_its_relative_path(
        self, storage: Storage, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(storage.root.parent)
        code, out, _ = call("transcribe", "two-000", *storage.audio(1), "--storage", storage.root.name)
        assert (code, out.split("\t")[1].rstrip("\n")) == (0, storage.texts("race/two-000")[0])

    def test_writes_json_lines_in_utf_8_as_it_goes(
        self, storage: Storage, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Recogniser, "transcribe", lambda self, path: 'añadió\n"ya"')
        _, out, _ = call("transcribe", "two-000", *storage.audio(), "--storage", storage.root, "--json")
        assert len(out.splitlines()) == 2
        assert [json.loads(line)["text"] for line in out.splitlines()] == ['añadió\n"ya"'] * 2
        assert "añadió" in out

    def test_names_every_missing_file_before_it_starts(self, storage: Storage, call: Call, tmp_path: Path) -> None:
        missing = [tmp_path / "one.wav", tmp_path / "two.wav"]
        code, out, err = call("transcribe", "two-000", storage.audio()[0], *missing, "--storage", storage.root)
        assert (code, out) == (2, "")
        assert err.splitlines() == [f"{path}: no such file" for path in missing]

    @pytest.mark.parametrize("content", ["text", "short", "silence"])
    def test_names_a_file_that_it_cannot_use(self, storage: Storage, call: Call, tmp_path: Path, content: str) -> None:
        path = tmp_path / "bad.wav"
        samples = {"text": 0, "short": 700, "silence": 16_000}[content]
        loudness = 0.0 if content == "silence" else 0.1
        soundfile.write(path, np.full(samples, loudness, dtype=np.float32), 16_000)
        if content == "text":
            path.write_text("no sound")
        code, out, err = call("transcribe", "two-000", storage.audio()[0], path, "--storage", storage.root, "--json")
        reason = {"text": "cannot be decoded", "short": "is 0.044 s; the model needs 720", "silence": "holds no sound"}
        assert code == 2
        assert json.loads(out)["file"] == str(storage.audio()[0])
        assert err.startswith(f"{path}: {reason[content]}")


class TestExport:
    @pytest.mark.parametrize(
        ("name", "trial"),
        [("two-000", "race/two-000"), ("race/one-000", "race/one-000"), ("rerun/one-000", "rerun/one-000")],
    )
    def test_writes_a_folder_that_transformers_opens(
        self, storage: Storage, call: Call, tmp_path: Path, name: str, trial: str
    ) -> None:
        folder = tmp_path / "some" / "folder"
        assert call("export", name, folder, "--storage", storage.root) == (0, f"{folder}\n", "")
        assert AutoModelForCTC.from_pretrained(folder).config.hidden_size == 32
        assert AutoProcessor.from_pretrained(folder).feature_extractor.sampling_rate == 16_000
        recogniser = Recogniser.open(folder)
        assert [recogniser.transcribe(path) for path in storage.audio()] == storage.texts(trial)

    def test_fills_an_empty_folder_and_leaves_one_that_is_not(
        self, storage: Storage, call: Call, tmp_path: Path
    ) -> None:
        assert call("export", "two-000", tmp_path, "--storage", storage.root)[0] == 0
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        code, out, err = call("export", "race/one-000", tmp_path, "--storage", storage.root)
        assert (code, out, err) == (2, "", f"{tmp_path}: is there already, and not an empty folder; name a new one\n")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_does_not_write_over_a_file(self, storage: Storage, call: Call, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        code, out, err = call("export", "two-000", tmp_path / "file", "--storage", storage.root)
        assert (code, out) == (2, "")
        assert str(tmp_path / "file") in err
        assert (tmp_path / "file").read_text() == "mine"

    def test_of_a_model_that_transformers_lacks_is_refused(self, storage: Storage, call: Call, tmp_path: Path) -> None:
        code, out, err = call("export", "gru-000", tmp_path / "folder", "--storage", storage.root)
        assert (code, out, err) == (2, "", "transformers has no model like compact_cnn_gru\n")
        assert not (tmp_path / "folder").exists()


REFUSED: dict[str, tuple[str, str]] = {
    "ambiguous": ("one-000", "one-000: several studies have it; name one of race/one-000, rerun/one-000"),
    "unknown": ("two-00", r"two-00: no such folder, and no such trial in .*; did you mean 'two-000'\?"),
    "unknown in its study": ("rerun/two-000", "rerun/two-000: no such folder, and no such trial in "),
    "like no other": ("zzz", "zzz: no such folder, and no such trial in .*; known: gru-000, one-000, "),
    "unfinished": ("one-001", "race/one-001: is unfinished; only a finished trial has results"),
    "failed": ("race/one-002", "race/one-002: is failed; only a finished trial has results"),
}


class TestNames:
    @pytest.fixture(params=["export", "transcribe"])
    def use(self, request: pytest.FixtureRequest, storage: Storage, call: Call, tmp_path: Path) -> Iterator[Call]:
        """Either command with the name of a trial."""
        target = tmp_path / "folder" if request.param == "export" else storage.audio()[0]

        def run(name: str, root: Path = storage.root) -> tuple[int, str, str]:
            return call(request.param, name, target, "--storage", root)

        yield run
        assert not (tmp_path / "folder").exists()

    @pytest.mark.parametrize(("name", "message"), REFUSED.values(), ids=REFUSED)
    def test_that_name_no_trained_model_are_refused(self, use: Call, name: str, message: str) -> None:
        code, out, err = use(name)
        assert (code, out) == (2, "")
        assert re.match(message, err), err
        assert len(err.splitlines()) == 1

    def test_known_trials_are_named_once(self, use: Call) -> None:
        """Two studies have a trial one-000."""
        _, _, err = use("zzz")
        assert err.count("one-000") == 1

    def test_in_a_storage_folder_without_a_ledger_are_refused(self, use: Call, tmp_path: Path) -> None:
        code, _, err = use("two-000", tmp_path)
        assert code == 2
        assert err.startswith(f"{tmp_path / 'ledger.db'}: no such file")

    def test_of_a_folder_of_something_else_are_refused(self, use: Call, tmp_path: Path) -> None:
        code, _, err = use(str(tmp_path))
        assert code == 2
        assert err.startswith(f"{tmp_path}: neither config.json (Hugging Face) nor stage.json")

    def test_of_a_trial_whose_stage_was_deleted_are_refused(self, use: Call, storage: Storage, tmp_path: Path) -> None:
        shutil.copy(storage.root / "ledger.db", tmp_path / "ledger.db")
        code, _, err = use("two-000", tmp_path)
        assert code == 2
        assert storage.stages["race/two-000"].name() in err

    def test_of_a_stage_without_ctc_are_refused(self, use: Call, storage: Storage) -> None:
        (folder,) = (storage.root / "stages" / "pretrain").iterdir()
        code, _, err = use(str(folder))
        assert code == 2
        assert err.startswith(f"{folder}: has no symbols")


SWEEP = """\
study: presets
question: Which one?
trial:
  model: MODEL
arms:
  one:
    trial:
      regime: {kind: supervised, train: {steps: 10}}
    space: SPACE
search: {trials: 3}
convergence: {target: 0.4}
"""


def sweep_file(folder: Path, model: str, space: str = "{}") -> Path:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.replace("MODEL", model).replace("SPACE", space), encoding="utf-8")
    return path


def errors(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_spec(path, overrides)
    return [error.removeprefix(f"{path}:") for error in caught.value.errors]


class TestPresets:
    def test_what_stands_beside_one_replaces_its_own(self, tmp_path: Path) -> None:
        model = read_spec(sweep_file(tmp_path, "{preset: sew_tiny, width: 256}")).trial_config("one").model
        assert isinstance(model, TransformerConfig)
        assert model == PRESETS["sew_tiny"].with_(preset="sew_tiny", width=256)
        assert (model.width, model.num_heads, model.inner_width, model.squeeze) == (256, 4, 1024, 2)

    def test_an_arm_may_name_another_than_the_study(self, tmp_path: Path) -> None:
        path = sweep_file(tmp_path, "{preset: sew_tiny, layers: 4}")
        model = read_spec(path, ["arms.one.trial.model.preset=sew_d_small"]).trial_config("one").model
        assert model == PRESETS["sew_d_small"].with_(preset="sew_d_small", layers=4)

    @pytest.mark.parametrize(
        ("field", "value", "presets"),
        [
            ("width", 256, ["w2v2_tiny", "sew_tiny", "sew_d_tiny"]),
            ("layers", 5, ["sew_mid", "w2v2_large_lv60", "sew_tiny_fbfe"]),
            ("quantiser", {"entries": 100}, ["cnn_gru_2x4", "sew_d_base", "compact_cnn_gru"]),
            ("gru_layers", 1, ["cnn_gru_4x6", "compact_cnn_gru"]),
        ],
    )
    def test_a_fixed_field_is_kept_for_every_preset_of_a_space(
        self, tmp_path: Path, field: str, value: Any, presets: Sequence[str]
    ) -> None:
        space = f"{{model.preset: {{kind: categorical, choices: [{', '.join(presets)}]}}}}"
        path = sweep_file(tmp_path, json.dumps({"preset": presets[0], field: value}), space)
        spec = read_spec(path)
        for preset in presets:
            model = spec.trial_config("one", {"model.preset": preset}).model
            assert model == MODELS.validate_python({"preset": preset, field: value})
            found = getattr(model, field)
            assert (found.entries if field == "quantiser" else found) == (100 if field == "quantiser" else value)
            assert model.preset == preset

    @pytest.mark.parametrize("paths", itertools.permutations(["model.preset", "model.width", "model.dropout.layer"]))
    def test_a_searched_field_comes_before_the_preset_of_the_point_in_any_order(
        self, tmp_path: Path, paths: Sequence[str]
    ) -> None:
        values = {"model.preset": ["w2v2_tiny", "sew_d_small"], "model.width": [256, 384], "model.dropout.layer": [0.3]}
        space = {path: {"kind": "categorical", "choices": values[path]} for path in paths}
        spec = read_spec(sweep_file(tmp_path, "{preset: sew_tiny}", json.dumps(space)))
        for preset, width in itertools.product(values["model.preset"], values["model.width"]):
            point = {"model.preset": preset, "model.width": width, "model.dropout.layer": 0.3}
            model = spec.trial_config("one", {path: point[path] for path in paths}).model
            expected = {"preset": preset, "width": width, "dropout": {"layer": 0.3}}
            assert model == MODELS.validate_python(expected)
            assert (model.width, model.num_heads, model.attention.kind) == (
                width,
                width // 64,
                "disentangled" if preset == "sew_d_small" else "standard",
            )

    def test_a_searched_field_alone_leaves_the_preset_of_the_file(self, tmp_path: Path) -> None:
        space = "{model.width: {kind: categorical, choices: [256, 384]}}"
        spec = read_spec(sweep_file(tmp_path, "{preset: sew_d_tiny, layers: 3}", space))
        model = spec.trial_config("one", {"model.width": 256}, seed=4).model
        assert model == PRESETS["sew_d_tiny"].with_(preset="sew_d_tiny", layers=3, width=256)

    def test_a_searched_preset_needs_none_in_the_file(self, tmp_path: Path) -> None:
        path = sweep_file(tmp_path, "", "{model.preset: {kind: grid, choices: [sew_tiny, cnn_gru_2x4]}}")
        path.write_text(path.read_text().replace("  model: \n", "  seed: 3\n"))
        spec = read_spec(path)
        for name in ("sew_tiny", "cnn_gru_2x4"):
            assert spec.trial_config("one", {"model.preset": name}).model == PRESETS[name].with_(preset=name)

    def test_an_unknown_one_has_its_line_and_the_list(self, tmp_path: Path) -> None:
        (error,) = errors(sweep_file(tmp_path, "{preset: sew_tinny}"))
        assert error == "4:3: trial.model: no preset 'sew_tinny'; did you mean 'sew_tiny'?"

    def test_an_unknown_one_in_a_space_has_its_line(self, tmp_path: Path) -> None:
        space = "{model.preset: {kind: categorical, choices: [sew_tiny, sew_tinny]}}"
        (error,) = errors(sweep_file(tmp_path, "{preset: sew_tiny}", space))
        assert error.startswith("9:13: arms.one.space.model.preset: 'sew_tinny' is not possible: no preset 'sew_tinny'")
        assert error.endswith("; did you mean 'sew_tiny'?")

    def test_a_kind_that_contradicts_it_is_refused(self, tmp_path: Path) -> None:
        (error,) = errors(sweep_file(tmp_path, "{preset: sew_tiny, kind: cnn_gru}"))
        assert (
            error == "4:3: trial.model: preset 'sew_tiny' is of kind 'transformer', got kind 'cnn_gru'; leave kind out"
        )
        assert read_spec(sweep_file(tmp_path, "{preset: sew_tiny, kind: transformer}"))

    def test_a_field_that_it_does_not_have_is_refused(self, tmp_path: Path) -> None:
        (error,) = errors(sweep_file(tmp_path, "{preset: cnn_gru_3x5, width: 256}"))
        assert error.startswith("4:32: trial.model.width: unknown field 'width'")

    def test_a_combination_that_cannot_be_is_refused_before_it_starts(self, tmp_path: Path) -> None:
        """SEW-D is post-LN."""
        space = "{model.preset: {kind: categorical, choices: [w2v2_tiny, sew_d_tiny]}}"
        (error,) = errors(sweep_file(tmp_path, "{preset: w2v2_tiny, norm_first: true}", space))
        assert error.startswith("9:13: arms.one.space.model.preset: 'sew_d_tiny' is not possible: norm_first does not")

    def test_the_name_of_one_is_no_part_of_a_stages_identity(self, tmp_path: Path) -> None:
        preset = PRESETS["cnn_gru_2x4"]
        assert isinstance(preset, CnnGruConfig)
        written = preset.model_dump_json(exclude={"preset"})
        trials = [
            read_spec(sweep_file(tmp_path, model)).trial_config("one") for model in ("{preset: cnn_gru_2x4}", written)
        ]
        assert [trial.model.preset for trial in trials] == ["cnn_gru_2x4", None]
        assert stages_of(trials[0])[0].fingerprint() == stages_of(trials[1])[0].fingerprint()


class TestInit:
    @pytest.mark.parametrize("verb", ["run", "plan"])
    def test_is_no_flag(self, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        path = sweep_file(tmp_path, "{preset: sew_tiny}")
        for words in (["--init", "somewhere"], ["--init=somewhere"]):
            with pytest.raises(SystemExit) as caught:
                main([verb, str(path), *words])
            assert caught.value.code == 2
            assert "unrecognized arguments: --init" in capsys.readouterr().err

    def test_is_a_setting_like_any_other(self, tmp_path: Path, call: Call) -> None:
        path = write_sweep(tmp_path / "sweep.yaml", arms={"one": {"trial": supervised()}})
        code, out, err = call("plan", path, "trial.init=/no/such")
        assert (code, out) == (2, "")
        assert err == "command line (trial.init=/no/such): trial.init: /no/such: no such file or folder\n"

    def test_of_a_trained_trial_is_a_folder_that_fits_or_is_refused(
        self, storage: Storage, tmp_path: Path, call: Call
    ) -> None:
        folder = storage.folder("race/two-000")
        trial = small_trial(storage.corpus, supervised()["regime"], model=TRANSFORMER, init=str(folder))
        path = write_sweep(tmp_path / "sweep.yaml", arms={"one": {"trial": trial}})
        assert call("plan", path, "--json")[0] == 0
        trial["model"] = SMALL_MODEL
        path = write_sweep(tmp_path / "sweep.yaml", arms={"one": {"trial": trial}})
        code, _, err = call("plan", path)
        assert code == 2
        assert f"arms.one.trial.init: {folder} is of another model; kind: transformer, not compact_cnn_gru" in err
