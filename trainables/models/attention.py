"""Self-attention of the context network.

Legend: B utterances, T frames of the context network, E width, H heads, d head size, R relative distances.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.models.config import DisentangledAttentionConfig, bucket
from trainables.models.linear import Linear, linear


@dataclass(frozen=True)
class RelativePositions:
    """What disentangled attention needs beside its input; the same for every layer."""

    embeddings_RE: Tensor  # of the distances that occur, dropout not yet applied
    rows: slice  # which rows of the whole table these are
    index_TT: Tensor  # int64, row of `embeddings_RE` for the distance between frame i (query) and frame j (key)


class StandardAttention(nn.Module):
    """Scaled dot-product attention; the three input projections are one matrix product."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x_BTE: Tensor, valid_BT: Tensor | None, positions: RelativePositions | None = None) -> Tensor:
        """`valid_BT` is True for the frames that may be attended to; None: all."""
        q_BHTd, k_BHTd, v_BHTd = self._split(self.qkv(x_BTE))
        mask_B11T = None if valid_BT is None else valid_BT[:, None, None]
        dropout = self.dropout if self.training else 0.0
        out_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, mask_B11T, dropout)
        out: Tensor = self.out(out_BHTd.transpose(1, 2).flatten(2))
        return out

    def _split(self, qkv_BTE3: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in qkv_BTE3.chunk(3, dim=2))


class DisentangledAttention(StandardAttention):
    """Disentangled attention (He et al., arXiv:2006.03654, equation 4) in the form that SEW-D uses.

    score(i, j) = (q_i . k_j + q_i . Kr[i - j] + k_j . Qr[i - j]) / sqrt(3 d), where Kr and Qr are the key and query
    projections of the relative-position embeddings. The two relative terms enter fused attention as an additive bias;
    they are computed from each position's score with every distance, never repeated over the batch.
    """

    projected_positions: Tensor | None  # (2, H, d, R) of `cache_positions`

    def __init__(self, width: int, heads: int, dropout: float, position_dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.position_dropout = nn.Dropout(position_dropout)
        self.register_buffer("projected_positions", None, persistent=False)

    def forward(self, x_BTE: Tensor, valid_BT: Tensor | None, positions: RelativePositions | None = None) -> Tensor:
        assert positions is not None
        q_BHTd, k_BHTd, v_BHTd = self._split(self.qkv(x_BTE))
        scale = 1 / math.sqrt(3 * q_BHTd.shape[3])
        bias_BHTT = self._bias(q_BHTd, k_BHTd, positions, scale)
        if valid_BT is not None:
            bias_BHTT.masked_fill_(~valid_BT[:, None, None], -torch.inf)
        dropout = self.dropout if self.training else 0.0
        out_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, bias_BHTT, dropout, scale=scale)
        out: Tensor = self.out(out_BHTd.transpose(1, 2).flatten(2))
        return out

    def cache_positions(self, embeddings_RE: Tensor) -> None:
        """Project the whole table once, for weights that no longer change."""
        self.projected_positions = torch.stack(self._project(embeddings_RE)).detach()

    def _bias(self, q_BHTd: Tensor, k_BHTd: Tensor, positions: RelativePositions, scale: float) -> Tensor:
        """(B, H, T, T) content-to-position plus position-to-content scores, scaled."""
        if self.projected_positions is None:
            query_HdR, key_HdR = self._project(positions.embeddings_RE)
        else:
            query_HdR, key_HdR = self.projected_positions[..., positions.rows]
        index_BHTT = positions.index_TT.expand(*q_BHTd.shape[:3], -1)
        to_position = torch.gather(q_BHTd @ (key_HdR * scale), 3, index_BHTT)
        # Row j of this one is a key: its score with the distance of each query i to it.
        from_position = torch.gather(k_BHTd @ (query_HdR * scale), 3, index_BHTT.transpose(2, 3))
        return to_position.add_(from_position.transpose(2, 3))

    def _project(self, embeddings_RE: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key projections of the embeddings, (H, d, R) each."""
        width = embeddings_RE.shape[1]
        weight, bias = self.qkv.weight[: 2 * width], self.qkv.bias[: 2 * width]
        query_RE, key_RE = linear(self.position_dropout(embeddings_RE), weight, bias).chunk(2, dim=1)
        query_HdR, key_HdR = (x.reshape(len(x), self.heads, -1).permute(1, 2, 0) for x in (query_RE, key_RE))
        return query_HdR, key_HdR


class RelativeEmbeddings(nn.Module):
    """Embeddings of log-bucketed relative distances, normalised, shared by all layers of SEW-D."""

    def __init__(self, config: DisentangledAttentionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.randn(2 * config.buckets, width))
        self.norm = nn.LayerNorm(width, eps=1e-7)

    def table(self) -> Tensor:
        """(R, E) the whole table, normalised."""
        table_RE: Tensor = self.norm(self.weight)
        return table_RE

    def forward(self, num_frames: int) -> RelativePositions:
        rows_R, used = bucket_rows(self.config, num_frames, self.weight.device)
        frames_T = torch.arange(num_frames, device=self.weight.device)
        index_TT = rows_R[frames_T[:, None] - frames_T + num_frames - 1]
        return RelativePositions(self.norm(self.weight[used]), used, index_TT)


@functools.lru_cache(maxsize=1024)
def bucket_rows(config: DisentangledAttentionConfig, num_frames: int, device: torch.device) -> tuple[Tensor, slice]:
    """The row of each distance from -(T - 1) to T - 1, counted from the first row that occurs, and which rows occur."""
    distances = range(1 - num_frames, num_frames)
    rows = [min(max(config.buckets + bucket(config, d), 0), 2 * config.buckets - 1) for d in distances]
    rows_R = torch.tensor(rows) - rows[0]
    return rows_R.to(device, non_blocking=True), slice(rows[0], rows[-1] + 1)
