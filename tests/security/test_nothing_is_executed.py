"""Files from elsewhere are data: nothing of them is run."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.corpora import layouts
from trainables.checkpoint import NEWEST, load_checkpoint
from trainables.data.corpora import lhotse_manifests
from trainables.data.corpora.segment import LayoutError
from trainables.models.checkpoint_files import CheckpointError
from trainables.models.checkpoints import read_checkpoint
from trainables.settings_file import SettingsError, read_settings_file

ROOT = Path(__file__).parents[2]
PACKAGES = ("study", "search_spaces", "trainables", "cluster")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUN_TEXT = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "importlib.import_module",
    "runpy.run_path",
}
UNPACK = {"extractall", "unpack_archive"}
SAFE_YAML = {"safe_load", "safe_load_all", "safe_dump"}


def dotted(node: ast.expr) -> str:
    """`torch.load` of the expression with that meaning; empty for others."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_constant(call: ast.Call, name: str, value: object) -> bool:
    return any(
        word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is value
        for word in call.keywords
    )


def has_keyword(call: ast.Call, name: str) -> bool:
    return any(word.arg == name for word in call.keywords)


def problem(node: ast.AST) -> str | None:
    """Why this piece of code may run what a file holds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        return next((f"imports {name}" for name in names if name.partition(".")[0] in UNPICKLERS), None)
    if not isinstance(node, ast.Call):
        return None
    name = dotted(node.func)
    wrong = {
        "runs text": name in RUN_TEXT,
        "unpickles": name == "torch.load" and not is_constant(node, "weights_only", True),
        "may unpickle": name.startswith(("np.load", "numpy.load")) and has_keyword(node, "allow_pickle"),
        "makes objects of YAML": name.startswith("yaml.") and "load" in name and name[5:] not in SAFE_YAML,
        "may read what runs": name.startswith(("pd.", "pandas.")) and not name.endswith(".DataFrame"),
        "gives a shell text": has_keyword(node, "shell") and not is_constant(node, "shell", False),
        "unpacks anywhere": name.rpartition(".")[2] in UNPACK and not has_keyword(node, "filter"),
    }
    return next((f"{what}: {name}" for what, is_so in wrong.items() if is_so), None)


def problems(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if (found := problem(node)) is not None:
            yield node.lineno, found  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_a_file_holds(path: Path) -> None:
    assert not list(problems(path.read_text("utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        *(
            "import pickle",
            "from joblib import load",
            "import dill as d",
            "eval(text)",
            "exec(text)",
            "os.system(text)",
        ),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)"),
        *("yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)", "subprocess.run(text, shell=True)"),
        *("tarfile.open(path).extractall(folder)", "shutil.unpack_archive(path)"),
    ],
)
def test_what_would_run_a_file_is_recognised(source: str) -> None:
    assert list(problems(source))


class MakesFolder:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[MakesFolder]:
    """After the test its folder is not there; that it works is tried then."""
    trap = MakesFolder(tmp_path / "made")
    yield trap
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_fairseq_file_is_not_unpickled(is_zip: bool, trap: MakesFolder, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"args": None, "model": {"mask_emb": trap}}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"model\.pt: cannot be read as weights \(UnpicklingError"):
        read_checkpoint(path)


def test_pytorch_weights_of_hugging_face_are_not_unpickled(trap: MakesFolder, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    torch.save({"lm_head.weight": trap}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read as weights \(UnpicklingError"):
        read_checkpoint(tmp_path)


def test_the_checkpoint_of_a_stage_with_a_valid_digest_is_not_unpickled(trap: MakesFolder, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"step": 1, "model": trap}, buffer)
    content = buffer.getvalue()
    (tmp_path / NEWEST).write_bytes(content + hashlib.sha256(content).digest())
    assert load_checkpoint(tmp_path) is None
    assert not (tmp_path / NEWEST).exists()


@pytest.mark.parametrize("kind", ["command", "url", "memory", "shar"])
@pytest.mark.parametrize("write", [layouts.lhotse_recordings, layouts.lhotse_cuts])
def test_a_lhotse_manifest_runs_no_command_and_fetches_nothing(kind: str, write: Any, tmp_path: Path) -> None:
    root = write(tmp_path / "corpus") if (tmp_path / "corpus").mkdir() is None else tmp_path
    for manifest in root.glob("*.jsonl*"):
        item = lhotse_text(manifest).replace('"type": "file"', f'"type": "{kind}"')
        item = item.replace('"source": "audio/', f'"source": "mkdir {tmp_path}/made; cat audio/')
        manifest.with_suffix("").with_suffix(".jsonl").write_text(item)
        if manifest.suffix == ".gz":
            manifest.unlink()
    with pytest.raises(LayoutError, match=f"a source must be a local audio file, got type '{kind}'"):
        list(lhotse_manifests.read(root, None))
    assert not (tmp_path / "made").exists()


def lhotse_text(manifest: Path) -> str:
    from lhotse.serialization import open_best

    with open_best(manifest) as stream:
        return "".join(json.dumps(json.loads(line)) + "\n" for line in stream)


@pytest.mark.parametrize(
    "text",
    [
        "study: !!python/object/apply:os.mkdir [made]",
        "study: !!python/name:os.mkdir",
        "? !!python/object/new:os.mkdir [made]\n: 1",
        "trial: &a {b: *a}",
        "a: &a [x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]",
    ],
)
def test_yaml_makes_no_objects_and_repeats_nothing(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"sweep\.yaml:\d+:\d+: "):
        read_settings_file(tmp_path / "sweep.yaml")
    assert not (tmp_path / "made").exists()
