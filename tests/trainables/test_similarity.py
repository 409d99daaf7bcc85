"""Linear CKA and SVCCA against independent derivations, and hidden states of real speech without padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.cross_decomposition import CCA
from torch import Tensor

from tests.conftest import SMALL_MODEL, SMALL_TRANSFORMER, pretrain_finetune
from tests.trainables.builders import corpus_of
from tests.trainables.test_loop import run, stages
from trainables.data.batches import make_batch
from trainables.data.corpus import Utterance
from trainables.models.acoustic import AcousticModel, Backbone
from trainables.models.presets import ModelConfig
from trainables.models.transformer import Transformer
from trainables.similarity import hidden_states, initial_backbone, layers_of, linear_cka, svcca, trained_backbone
from trainables.store import StageStore

CPU = torch.device("cpu")
CNN_GRU = {"kind": "cnn_gru", "cnn_layers": 1, "gru_layers": 2, "mel_bins": 16, "channels": 8, "gru_width": 8}
MODELS = {
    "compact": {**SMALL_MODEL, "gru_layers": 2},
    "cnn_gru": CNN_GRU,
    "transformer": {
        **SMALL_TRANSFORMER,
        "extractor": {"kind": "wave", "channels": 8, "compact": True, "masked_statistics": True},
    },
    "sew_d": {
        **SMALL_TRANSFORMER,
        "extractor": {"kind": "filter_bank", "channels": 8},
        "attention": {"kind": "disentangled"},
    },
}
seeds = st.integers(0, 10_000)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(seed: int, frames: int, width: int) -> Tensor:
    """Correlated columns that are not centred."""
    return random(seed, frames, width) @ random(seed + 1, width, width) + random(seed + 2, width)


def orthogonal(seed: int, width: int) -> Tensor:
    return torch.linalg.qr(random(seed, width, width))[0]


def with_correlations(correlations: Sequence[float], frames: int = 400) -> tuple[Tensor, Tensor]:
    """Two sides whose canonical correlations are exactly these, behind invertible transforms."""
    width = len(correlations)
    noise = random(0, frames, 2 * width)
    basis = torch.linalg.qr(noise - noise.mean(0))[0]
    rho = torch.tensor(correlations, dtype=torch.float64)
    x, y = basis[:, :width], basis[:, :width] * rho + basis[:, width:] * (1 - rho**2).sqrt()
    return x @ random(3, width, width), y @ random(4, width, width) + 5.0


class TestCka:
    @given(seed=seeds, scale=st.floats(0.01, 100.0))
    def test_does_not_change_with_orthogonal_transforms_shifts_and_isotropic_scaling(
        self, seed: int, scale: float
    ) -> None:
        x, y = mixed(seed, 60, 5), mixed(seed + 7, 60, 4)
        moved = scale * x @ orthogonal(seed, 5) + random(seed + 9, 5)
        assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), rel=1e-9)

    def test_changes_with_other_linear_transforms(self) -> None:
        x, y = mixed(0, 60, 5), mixed(7, 60, 4)
        stretched = x * torch.tensor([100.0, 1, 1, 1, 1])
        assert linear_cka(stretched, y) != pytest.approx(linear_cka(x, y), rel=0.01)

    @given(seed=seeds)
    def test_is_symmetric_one_with_itself_and_between_zero_and_one(self, seed: int) -> None:
        x, y = mixed(seed, 60, 5), mixed(seed + 7, 60, 4)
        assert linear_cka(x, x) == pytest.approx(1.0)
        assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
        assert 0 <= linear_cka(x, y) <= 1

    @given(seed=seeds)
    def test_equals_the_alignment_of_centred_gram_matrices(self, seed: int) -> None:
        """Kornblith et al. 2019, equations 3 and 4: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), over frames."""
        x, y = mixed(seed, 30, 5).numpy(), mixed(seed + 7, 30, 8).numpy()
        centring = np.eye(30) - 1 / 30

        def hsic(k: np.ndarray, m: np.ndarray) -> float:
            return float(np.trace(k @ centring @ m @ centring))

        k, m = x @ x.T, y @ y.T
        expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5
        assert linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)

    def test_of_a_subset_of_equal_orthogonal_directions_is_the_root_of_their_share(self) -> None:
        """By hand: with orthonormal columns, ||X'Y||^2 = 2, ||X'X|| = sqrt 8 and ||Y'Y|| = sqrt 2."""
        noise = random(0, 50, 8)
        x = torch.linalg.qr(noise - noise.mean(0))[0]
        assert linear_cka(x, x[:, :2]) == pytest.approx(0.5)

    def test_of_unrelated_directions_and_of_a_constant_is_zero(self) -> None:
        noise = random(0, 50, 8)
        x = torch.linalg.qr(noise - noise.mean(0))[0]
        assert linear_cka(x[:, :4], x[:, 4:]) == pytest.approx(0.0, abs=1e-12)
        assert linear_cka(x, torch.full((50, 3), 0.1, dtype=torch.float32)) == 0.0


class TestSvcca:
    @pytest.mark.parametrize("correlations", [(0.9, 0.5, 0.1), (1.0, 0.3), (0.7,), (0.0, 0.0, 1.0)])
    def test_is_the_mean_of_known_canonical_correlations(self, correlations: tuple[float, ...]) -> None:
        x, y = with_correlations(correlations)
        assert svcca(x, y, kept_variance=1.0) == pytest.approx(sum(correlations) / len(correlations), abs=1e-6)

    @given(seed=seeds)
    def test_with_all_components_does_not_change_with_invertible_transforms(self, seed: int) -> None:
        x, y = mixed(seed, 80, 4), mixed(seed + 7, 80, 3)
        moved = x @ (random(seed + 5, 4, 4) + 4 * torch.eye(4)) + random(seed + 6, 4)
        assert svcca(moved, y, kept_variance=1.0) == pytest.approx(svcca(x, y, kept_variance=1.0), abs=1e-6)

    @given(seed=seeds, scale=st.floats(0.01, 100.0))
    def test_does_not_change_with_orthogonal_transforms_and_isotropic_scaling(self, seed: int, scale: float) -> None:
        x, y = mixed(seed, 80, 5), mixed(seed + 7, 80, 4)
        assert svcca(scale * x @ orthogonal(seed, 5), y) == pytest.approx(svcca(x, y), abs=1e-6)

    @given(seed=seeds)
    def test_is_symmetric_one_with_itself_and_between_zero_and_one(self, seed: int) -> None:
        x, y = mixed(seed, 80, 5), mixed(seed + 7, 80, 4)
        assert svcca(x, x) == pytest.approx(1.0)
        assert svcca(x, y) == pytest.approx(svcca(y, x))
        assert 0 <= svcca(x, y) <= 1

    def test_equals_the_canonical_correlations_of_scikit_learn(self) -> None:
        x, y = mixed(0, 300, 4), mixed(3, 300, 4) + mixed(0, 300, 4)
        ours, theirs = CCA(n_components=4, max_iter=10_000, tol=1e-12).fit_transform(x.numpy(), y.numpy())
        expected = [abs(np.corrcoef(ours[:, i], theirs[:, i])[0, 1]) for i in range(4)]
        assert svcca(x, y, kept_variance=1.0) == pytest.approx(np.mean(expected), abs=1e-4)

    @given(seed=seeds, kept=st.sampled_from([0.5, 0.9, 0.99]))
    def test_equals_singular_vectors_then_the_angles_between_subspaces(self, seed: int, kept: float) -> None:
        """Björck and Golub 1973: canonical correlations are the singular values of Q_x' Q_y, of two QR factors."""
        x, y = mixed(seed, 80, 6).numpy(), mixed(seed + 7, 80, 5).numpy()

        def leading(side: np.ndarray) -> np.ndarray:
            left, values, _ = np.linalg.svd(side - side.mean(0), full_matrices=False)
            shares = np.cumsum(values**2) / np.sum(values**2)
            count = next(n for n, share in enumerate(shares, start=1) if share >= kept)
            return np.asarray((left * values)[:, :count])

        q_x, q_y = np.linalg.qr(leading(x))[0], np.linalg.qr(leading(y))[0]
        expected = float(np.linalg.svd(q_x.T @ q_y, compute_uv=False).mean())
        assert svcca(torch.from_numpy(x), torch.from_numpy(y), kept) == pytest.approx(expected, abs=1e-7)

    def test_leaves_out_components_of_little_variance(self) -> None:
        """The second direction, unrelated, has one part in a million of the variance."""
        noise = random(0, 100, 3)
        basis = torch.linalg.qr(noise - noise.mean(0))[0]
        x = basis[:, :2] * torch.tensor([1.0, 1e-3])
        y = basis[:, [0, 2]] * torch.tensor([1.0, 1e-3])
        assert svcca(x, y) == pytest.approx(1.0)
        assert svcca(x, y, kept_variance=1.0) == pytest.approx(0.5)

    def test_of_a_constant_is_zero(self) -> None:
        assert svcca(random(0, 50, 3), torch.full((50, 3), 0.1, dtype=torch.float32)) == 0.0


def backbone_of(name: str) -> Backbone:
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(MODELS[name])
    return AcousticModel(config, num_symbols=2, seed=0).backbone.eval()


@torch.inference_mode()
def padded_states(backbone: Backbone, utterances: Sequence[Utterance]) -> list[Tensor]:
    """The valid frames of one padded batch of all utterances, by the number of frames that each layer must have."""
    batch = make_batch(utterances, None, [0] * len(utterances))
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[2])) for layer in layers_of(backbone)]
    features, num_frames = backbone.features(batch.waveform_BS, batch.num_samples_B)
    backbone.context(backbone.feature_norm(features), num_frames)
    for hook in hooks:
        hook.remove()
    squeeze = backbone.config.squeeze if isinstance(backbone, Transformer) else 1
    lengths = [int(length) // squeeze for length in num_frames]
    return [torch.cat([rows[:length] for rows, length in zip(out, lengths, strict=True)]) for out in outputs]


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_the_valid_frames_of_a_padded_batch(small_corpus: Path, name: str) -> None:
    """Measured: they differ by 5e-5 at most, by the order of float32 sums."""
    backbone, utterances = backbone_of(name), corpus_of(small_corpus).dev
    assert len({utterance.duration_seconds for utterance in utterances}) > 1
    alone, together = hidden_states(backbone, utterances, CPU), padded_states(backbone, utterances)
    assert len(alone) == len(together) == 2
    for ours, theirs in zip(alone, together, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_leave_the_model_without_hooks(small_corpus: Path, name: str) -> None:
    backbone = backbone_of(name)
    hidden_states(backbone, corpus_of(small_corpus).dev[:1], CPU)
    assert not any(layer._forward_hooks for layer in backbone.modules())


def test_the_last_block_of_a_transformer_is_its_context(small_corpus: Path) -> None:
    """Without a squeeze, and with the norm inside the blocks, nothing comes after it."""
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python({**MODELS["transformer"], "squeeze": 1})
    backbone = AcousticModel(config, num_symbols=2, seed=0).backbone.eval()
    utterance = corpus_of(small_corpus).dev[0]
    batch = make_batch([utterance], None, [0])
    with torch.inference_mode():
        features, num_frames = backbone.features(batch.waveform_BS, batch.num_samples_B)
        context = backbone.context(backbone.feature_norm(features), num_frames)
    torch.testing.assert_close(hidden_states(backbone, [utterance], CPU)[-1], context[0])


def test_backbones_are_those_before_and_after_training(small_corpus: Path, tmp_path: Path) -> None:
    """The first stage starts from the initial weights; the second from what the first has left."""
    pretraining, finetuning = stages(small_corpus, pretrain_finetune(2))
    store = StageStore(tmp_path)
    for stage in (pretraining, finetuning):
        run(stage, store)
    initial = initial_backbone(finetuning, store).state_dict()
    drawn = AcousticModel(pretraining.model, 9, pretraining.seed).backbone.state_dict()
    after = [trained_backbone(store.folder(stage)).state_dict() for stage in (pretraining, finetuning)]
    assert all(torch.equal(initial[name], drawn[name]) for name in drawn)
    assert any(not torch.equal(initial[name], after[0][name]) for name in drawn)
    assert any(not torch.equal(after[0][name], after[1][name]) for name in drawn)
