"""A bidirectional GRU that learns faster on a CPU than torch's.

For each frame, the backward pass of torch's packed sequences fills and adds up a gradient of the whole sequence. Here
it takes four operations a frame, for both directions at once, and the gradients of the weights are one product. On
accelerators, torch's own is used. `python -m tests.benchmarks.recurrent` prints both side by side.

Legend: B utterances, T frames, E width of the input, H width of each direction, G = 3 x H gates (reset, update, new),
D = 2 directions; the backward one has the frames of each utterance in reverse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainables.models.frames import frame_mask
from trainables.models.linear import linear


class BidirectionalGru(nn.GRU):
    """One layer of `nn.GRU(batch_first=True, bidirectional=True)`: its weights, names and results, up to rounding."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__(in_width, width, batch_first=True, bidirectional=True)

    def forward(self, x_BTE: Tensor, num_frames_B: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B, T, E) and the (B,) valid frames, on the CPU -> (B, T, 2 x H), zero beyond them; None: all are valid."""
        if x_BTE.device.type != "cpu":
            return self._torchs(x_BTE, num_frames_B)
        with torch.autocast("cpu", enabled=False):
            return self._fast(x_BTE.to(self.all_weights[0][0].dtype), num_frames_B)

    def _torchs(self, x_BTE: Tensor, num_frames_B: Tensor | None) -> Tensor:
        if num_frames_B is None:
            y_BTE: Tensor = super().forward(x_BTE)[0]
            return y_BTE
        packed = nn.utils.rnn.pack_padded_sequence(x_BTE, num_frames_B, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(
            super().forward(packed)[0], batch_first=True, total_length=x_BTE.shape[1]
        )[0]

    def _fast(self, x_BTE: Tensor, num_frames_B: Tensor | None) -> Tensor:
        num_frames_B = torch.full((len(x_BTE),), x_BTE.shape[1]) if num_frames_B is None else num_frames_B
        reversed_BT = _reversed_frames(num_frames_B, x_BTE.shape[1])
        inputs_DTBG = torch.stack(
            [
                linear(directed_BTE, weight_ih, bias_ih).transpose(0, 1)
                for directed_BTE, (weight_ih, _, bias_ih, _) in zip(
                    (x_BTE, _pick(x_BTE, reversed_BT)), self.all_weights, strict=True
                )
            ]
        )
        weights_DGH = torch.stack([weight_hh for _, weight_hh, _, _ in self.all_weights])
        biases_DG = torch.stack([bias_hh for _, _, _, bias_hh in self.all_weights])
        forward_TBH, backward_TBH = _Recurrence.apply(inputs_DTBG, weights_DGH, biases_DG)
        y_BTE = torch.cat([forward_TBH.transpose(0, 1), _pick(backward_TBH.transpose(0, 1), reversed_BT)], dim=2)
        return y_BTE.masked_fill(~frame_mask(num_frames_B, x_BTE.shape[1], x_BTE.device)[..., None], 0.0)


def _reversed_frames(num_frames_B: Tensor, length: int) -> Tensor:
    """(B, T): which frame comes at each place when the valid ones of an utterance are reversed."""
    place_T = torch.arange(length)
    reversed_BT = num_frames_B[:, None] - 1 - place_T
    return torch.where(reversed_BT < 0, place_T, reversed_BT)


def _pick(x_BTE: Tensor, frames_BT: Tensor) -> Tensor:
    """The frames with these numbers, of each utterance."""
    B, T, E = x_BTE.shape
    rows_BT = frames_BT + T * torch.arange(B)[:, None]
    return x_BTE.reshape(B * T, E).index_select(0, rows_BT.flatten()).view(B, T, E)


class _Recurrence(torch.autograd.Function):
    """The states of two GRUs side by side: (D, T, B, G) parts of the gates that follow from the input -> (D, T, B, H).

    r, z = sigmoid(input + recurrent), n = tanh(input + r x recurrent), h = (1 - z) n + z h of the frame before, where
    `recurrent` is W h + b (Cho et al. 2014, as torch.nn.GRU has it).
    """

    @staticmethod
    def forward(ctx: Any, inputs_DTBG: Tensor, weights_DGH: Tensor, biases_DG: Tensor) -> Tensor:
        D, T, B, G = inputs_DTBG.shape
        H = G // 3
        kept = T if any(ctx.needs_input_grad) else 1  # without a backward pass, a frame overwrites that before it
        gates_TDBG = inputs_DTBG.new_empty(kept, D, B, G)  # r, z, and what the state before adds to the third
        new_TDBH = inputs_DTBG.new_empty(kept, D, B, H)
        states_TDBH = inputs_DTBG.new_zeros(T + 1, D, B, H)  # one more: before the first frame
        weights_DHG, biases_D1G = weights_DGH.mT.contiguous(), biases_DG[:, None]
        h_DBH = states_TDBH[0]
        for input_rz, input_n, gates, rz, r, z, recurrent_n, n, next_DBH in zip(
            inputs_DTBG[..., : 2 * H].unbind(1),
            inputs_DTBG[..., 2 * H :].unbind(1),
            *(
                part.unbind(0) * (T // kept)
                for part in (gates_TDBG, gates_TDBG[..., : 2 * H], *gates_TDBG.chunk(3, dim=3), new_TDBH)
            ),
            states_TDBH[1:].unbind(0),
            strict=True,
        ):
            torch.baddbmm(biases_D1G, h_DBH, weights_DHG, out=gates)
            rz.add_(input_rz).sigmoid_()
            torch.addcmul(input_n, r, recurrent_n, out=n).tanh_()
            h_DBH = torch.lerp(n, h_DBH, z, out=next_DBH)
        if kept == T:
            ctx.save_for_backward(gates_TDBG, new_TDBH, states_TDBH, weights_DGH)
        return states_TDBH[1:].transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wanted_DTBH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates_TDBG, n_TDBH, states_TDBH, weights_DGH = ctx.saved_tensors
        T, D, B, H = n_TDBH.shape
        r_TDBH, z_TDBH, recurrent_n_TDBH = gates_TDBG.chunk(3, dim=3)
        before_TDBH = states_TDBH[:-1]
        # What turns the gradient of a state into those of the gates does not depend on it.
        to_new_TDBH = (1 - z_TDBH) * (1 - n_TDBH**2)
        to_gates_TDB3H = torch.stack(
            [
                to_new_TDBH * recurrent_n_TDBH * r_TDBH * (1 - r_TDBH),
                (before_TDBH - n_TDBH) * z_TDBH * (1 - z_TDBH),
                to_new_TDBH * r_TDBH,
            ],
            dim=3,
        )
        state_TDBH = torch.empty_like(n_TDBH)  # the gradients of the states
        earlier_DBH, direct_DBH = n_TDBH.new_zeros(2, D, B, H)
        for wanted, z, state, state_DB1H, gates_DB3H, gates_DBG in zip(
            *(
                reversed(sequence.unbind(0))
                for sequence in (
                    wanted_DTBH.transpose(0, 1),
                    z_TDBH,
                    state_TDBH,
                    state_TDBH[:, :, :, None],
                    to_gates_TDB3H,
                    to_gates_TDB3H.flatten(3),
                )
            ),
            strict=True,
        ):
            torch.add(earlier_DBH, wanted, out=state)
            gates_DB3H.mul_(state_DB1H)
            torch.mul(state, z, out=direct_DBH)
            torch.baddbmm(direct_DBH, gates_DBG, weights_DGH, out=earlier_DBH)
        gates_DNG = to_gates_TDB3H.transpose(0, 1).reshape(D, T * B, 3 * H)
        before_DNH = before_TDBH.transpose(0, 1).reshape(D, T * B, H)
        inputs_DTBG = gates_DNG.view(D, T, B, 3 * H).clone()
        inputs_DTBG[..., 2 * H :] = (to_new_TDBH * state_TDBH).transpose(0, 1)
        return inputs_DTBG, gates_DNG.mT @ before_DNH, gates_DNG.sum(1)
