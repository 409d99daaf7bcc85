"""The bidirectional GRU beside torch's, packed: same weights and inputs, side by side in one run.

    python -m tests.benchmarks.recurrent            # on one core

Rounds alternate between the two; the best round counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainables.models.recurrent import BidirectionalGru

SIZES = (  # model, width of the input, width of each direction, utterances, frames of the longest
    ("compact_cnn_gru", 144, 144, 14, 30),
    ("compact_cnn_gru", 144, 144, 3, 150),
    ("cnn_gru", 512, 512, 8, 400),
    ("cnn_gru", 1024, 512, 8, 400),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["compact_cnn_gru", "cnn_gru"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model, in_width, width, utterances, frames in SIZES:
        if model in options.models:
            compare(model, in_width, width, utterances, frames, options.rounds)


def compare(model: str, in_width: int, width: int, utterances: int, frames: int, rounds: int) -> None:
    """Print how long each takes for the results, and for them and all gradients."""
    torch.manual_seed(0)
    ours = BidirectionalGru(in_width, width)
    torchs = nn.GRU(in_width, width, batch_first=True, bidirectional=True)
    torchs.load_state_dict(ours.state_dict())
    x_BTE = torch.randn(utterances, frames, in_width, requires_grad=True)
    num_frames_B = torch.randint(frames * 9 // 10, frames + 1, (utterances,)).clamp(min=1)
    num_frames_B[0] = frames

    def packed() -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x_BTE, num_frames_B, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(torchs(packed)[0], batch_first=True)[0]

    passes = {"torch": packed, "ours": lambda: ours(x_BTE, num_frames_B)}
    for name, learns in (("results", False), ("with gradients", True)):
        best = dict.fromkeys(passes, float("inf"))
        for _ in range(rounds):
            for who, run in passes.items():
                best[who] = min(best[who], _seconds(run, learns))
        times = ", ".join(f"{who} {seconds * 1e3:.1f} ms" for who, seconds in best.items())
        size = f"{model} {in_width} -> 2 x {width}, {utterances} utterances of {frames} frames"
        print(f"{size}, {name}: {times}, {best['torch'] / best['ours']:.2f} times faster", flush=True)


def _seconds(run: Callable[[], Tensor], learns: bool) -> float:
    started = time.perf_counter()
    with torch.set_grad_enabled(learns):
        result_BTE = run()
    if learns:
        result_BTE.sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
