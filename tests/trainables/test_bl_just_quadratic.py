"""BL-JUST on a bilevel problem whose solution is known, with the regime, the phases, the losses and the optimiser of
real training: only the two losses themselves and the model are replaced.

    upper level  F(phi, theta) = |theta - t|^2 / 2 + (phi - theta_1)^2 / 2
    lower level  G(theta, eta) = |A theta - b|^2 / 2 + |eta - C theta|^2 / 2

A has a null space, so that a whole plane of theta minimises G, and the bilevel solution is its point nearest to t:
theta* = t - A^+ (A t - b), phi* = theta*_1, eta* = C theta*. Without the lower level it is t.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.config import Progress
from trainables.loop import _Update
from trainables.losses import bilevel, build
from trainables.losses.bilevel import gamma
from trainables.losses.build import TrainingLoss
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CtcConfig
from trainables.losses.features import scale_gradient
from trainables.losses.terms import Term, Terms
from trainables.stage import ConstantConfig, OptimiserConfig, Stage
from trainables.trial import TrialConfig, stages_of

A = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.5, -1.0, 1.0, 2.0], [1.5, 1.0, 0.0, 2.5]], dtype=torch.float64)  # rank 2
B = A @ torch.tensor([0.3, -0.8, 1.1, 0.6], dtype=torch.float64)  # within reach
C = torch.tensor([[0.5, -0.2, 0.1, 0.4], [-0.3, 0.6, 0.2, 0.1]], dtype=torch.float64)
T = torch.tensor([2.0, 1.0, -1.5, 1.0], dtype=torch.float64)
SOLUTION = T - torch.linalg.pinv(A) @ (A @ T - B)
NO_BATCHES: Any = {"labelled": None, "unlabelled": None}
AUTOCAST_OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


class Point(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Model(nn.Module):
    """The three parts of an acoustic model, far from all solutions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Point(-1.0, 3.0, 2.0, -2.0)  # theta
        self.ctc_head = Point(4.0)  # phi
        self.self_supervised_head = Point(-3.0, 1.5)  # eta

    @property
    def theta(self) -> Tensor:
        return self.backbone.x.detach()


def upper(model: Model, *_: Any) -> Terms:
    theta, phi = model.backbone.x, model.ctc_head.x
    value = ((theta - T).square().sum() + (phi - theta[0]).square().sum()) / 2
    return {"ctc": Term(value, torch.ones(()))}


def lower(model: Model, batch: None, config: ContrastiveConfig, progress: Progress, backbone_gradient: float) -> Terms:
    """As `contrastive_terms`: what reaches the backbone is scaled."""
    theta, eta = scale_gradient(model.backbone.x, backbone_gradient), model.self_supervised_head.x
    value = ((A @ theta - B).square().sum() + (eta - C @ theta).square().sum()) / 2
    return {"contrastive": Term(value, torch.ones(()))}


@pytest.fixture(autouse=True)
def _quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the places from which the registry of losses calls them."""
    monkeypatch.setattr(bilevel, "ctc_terms", upper)
    monkeypatch.setattr(build, "ctc_terms", upper)
    monkeypatch.setattr(bilevel, "contrastive_terms", lower)


def stage_of(kind: str = "bl_just", **changes: Any) -> Stage:
    """The joint stage of the regime: AdamW without decay of the weights, its rate falling to 0."""
    settings: dict[str, Any] = {
        "steps": 800,
        "schedule": {"kind": "polynomial"},
        "optimiser": {"weight_decay": 0.0, "max_gradient_norm": None},
        **changes,
    }
    section = {"joint": settings, "finetune": None} if kind == "bl_just" else {"train": settings}
    return stages_of(TrialConfig.model_validate({"regime": {"kind": kind, **section}}))[0]


def bl_just(gamma_start: float, gamma_end: float, **changes: Any) -> Stage:
    settings = {"lower_learning_rate": 0.2, "upper_learning_rate": 0.2, "exploration_steps": 0, "joint_steps": 1}
    return stage_of(**{**settings, "loss": {"gamma_start": gamma_start, "gamma_end": gamma_end}, **changes})


def gradient_descent(stage: Stage) -> Stage:
    """The stage without AdamW: with an epsilon beside which a gradient is nothing, it is descent by rate / epsilon."""
    epsilon = 1e9
    optimiser = OptimiserConfig(betas=(0.0, 0.0), epsilon=epsilon, weight_decay=0.0, max_gradient_norm=None)
    phases = tuple(
        phase.with_(optimiser=optimiser, learning_rates={part: r * epsilon for part, r in phase.learning_rates.items()})
        for phase in stage.phases
    )
    return stage.with_(phases=phases, schedule=ConstantConfig())


def train(stage: Stage, model: Any = None, path: list[Tensor] | None = None) -> Model:
    """As the loop does it: one update of the phase whose turn it is, at the stage's progress.

    `path` receives all weights after each update.
    """
    model = model or Model()
    updates = [_Update(model, phase, scale_loss=False, device=torch.device("cpu")) for phase in stage.phases]
    for step in range(stage.steps):
        progress = Progress(step, stage.steps)
        update = updates[stage.phase_at(step)]
        _, made = update([NO_BATCHES], progress, stage.schedule.scale(progress), AUTOCAST_OFF)
        assert made
        if path is not None:
            path.append(torch.cat([p.detach().clone() for p in model.parameters()]))
    trained: Model = model
    return trained


def penalised(weight: float) -> Tensor:
    """The theta that minimises F + weight x G over all: a linear system, phi and eta being theirs."""
    return torch.linalg.solve(torch.eye(4, dtype=torch.float64) + weight * A.T @ A, T + weight * A.T @ B)


def distance(theta: Tensor, other: Tensor) -> float:
    return float((theta - other).norm())


def test_the_problem_is_what_it_is_said_to_be() -> None:
    """A plane of minimisers; the solution is on it, t is not, and no point of it is nearer to t."""
    assert int(torch.linalg.matrix_rank(A)) == 2
    assert (A @ SOLUTION - B).abs().max() < 1e-12
    assert (A @ T - B).norm() > 1
    null_space = torch.linalg.svd(A).Vh[2:]
    assert (A @ null_space.T).abs().max() < 1e-12
    assert (null_space @ (T - SOLUTION)).abs().max() < 1e-12
    assert distance(T, SOLUTION) > 1


def test_a_growing_penalty_reaches_the_bilevel_solution() -> None:
    """As near as the penalty of 200 with which it ends can bring it; theta starts 6 from it, and t is 3.3 from it."""
    model = train(bl_just(0.0, 200.0))
    assert distance(penalised(200.0), SOLUTION) < 0.002
    assert distance(model.theta, SOLUTION) < 0.003
    assert model.ctc_head.x.item() == pytest.approx(SOLUTION[0].item(), abs=0.003)
    assert distance(model.self_supervised_head.x.detach(), C @ SOLUTION) < 0.003


def test_without_the_penalty_it_ends_at_the_upper_level_s_own_minimum() -> None:
    """Where the lower level is far from its own. Its head has followed the backbone all the same."""
    model = train(bl_just(0.0, 0.0))
    assert distance(model.theta, T) < 1e-5
    assert distance(model.theta, SOLUTION) > 3
    assert distance(model.self_supervised_head.x.detach(), C @ T) < 1e-5


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0, 20.0])
def test_a_fixed_penalty_ends_at_the_minimum_of_the_weighted_sum(weight: float) -> None:
    """Which is nearer to the bilevel solution by the factor of the weight, once that is large."""
    model = train(bl_just(weight, weight))
    assert distance(model.theta, penalised(weight)) < 1e-5
    if weight >= 10:
        assert distance(model.theta, SOLUTION) == pytest.approx(
            10 * distance(penalised(10 * weight), SOLUTION), rel=0.05
        )


def test_exploration_pulls_towards_the_lower_level_and_does_not_replace_the_penalty() -> None:
    """By gradient descent: AdamW, which scales each coordinate, drifts along the plane as it explores."""
    rates = {"lower_learning_rate": 0.1, "upper_learning_rate": 0.02}
    settings = {"exploration_steps": 1, "joint_steps": 4, "steps": 600}
    model = train(gradient_descent(bl_just(0.0, 7.0, **settings, **rates)))
    assert distance(model.theta, SOLUTION) < 0.06
    assert distance(model.self_supervised_head.x.detach(), C @ SOLUTION) < 0.02
    assert 0.25 < distance(train(gradient_descent(bl_just(0.0, 0.0, **settings, **rates))).theta, SOLUTION) < 1


# The path, and not only where it ends


def descent(
    model: Model, steps: int, *, alpha: float, beta: float, head: float, exploration: int, joint: int, gamma_end: float
) -> list[Tensor]:
    """Penalty-based gradient descent on the problem, by its formulas: (theta, phi, eta) after each update."""
    theta, phi, eta = (p.detach().clone() for p in model.parameters())
    path = []
    for step in range(steps):
        residual, excess, gap = A @ theta - B, eta - C @ theta, phi - theta[0]
        of_lower = A.T @ residual - C.T @ excess
        of_upper = theta - T - gap * torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        if step % (exploration + joint) < exploration:
            theta = theta - alpha * of_lower
        else:
            theta = theta - beta * (of_upper + gamma_end * step / steps * of_lower)
            phi = phi - head * gap
        eta = eta - alpha * excess
        path.append(torch.cat([theta, phi, eta]))
    return path


@pytest.mark.parametrize(("exploration", "joint"), [(0, 1), (2, 3), (4, 1)])
def test_its_path_is_that_of_penalty_based_gradient_descent(exploration: int, joint: int) -> None:
    alpha, beta, head, steps = 0.02, 0.005, 0.3, 60
    rates = {"lower_learning_rate": alpha, "upper_learning_rate": beta, "head_learning_rate": head}
    settings = {"steps": steps, "exploration_steps": exploration, "joint_steps": joint}
    stage = gradient_descent(bl_just(0.0, 5.0, **settings, **rates))
    model: Any = Model()
    expected = descent(
        model, steps, alpha=alpha, beta=beta, head=head, exploration=exploration, joint=joint, gamma_end=5.0
    )
    found: list[Tensor] = []
    train(stage, model, found)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert (found[-1] - found[0]).norm() > 1


def test_plain_joint_training_is_a_penalty_that_does_not_grow_without_exploration() -> None:
    weighted = stage_of("joint", steps=50, learning_rate=0.2, self_supervised_weight=0.7)
    paths: list[list[Tensor]] = [[], []]
    for stage, path in zip((weighted, bl_just(0.7, 0.7, steps=50)), paths, strict=True):
        train(stage, Model(), path)
    assert torch.equal(*(torch.stack(path) for path in paths))


# One joint step


def gradients(
    model: Model, config: BilevelConfig | CtcConfig | ContrastiveConfig, progress: Progress
) -> list[Tensor | None]:
    """Of theta, phi and eta."""
    loss_of: Any = TrainingLoss(model, config)  # type: ignore[arg-type]
    return list(torch.autograd.grad(loss_of(NO_BATCHES, progress)[0], list(model.parameters()), allow_unused=True))


def test_with_gamma_0_the_joint_step_is_the_supervised_step_of_the_backbone() -> None:
    model = Model()
    joint = gradients(model, BilevelConfig(gamma_start=0.0, gamma_end=1.0), Progress(0, 10))
    supervised = gradients(model, CtcConfig(), Progress(0, 10))
    assert joint[0] is not None
    assert supervised[0] is not None
    assert joint[1] is not None
    assert supervised[1] is not None
    assert torch.equal(joint[0], supervised[0])
    assert torch.equal(joint[1], supervised[1])
    assert joint[0].norm() > 1


@pytest.mark.parametrize("weight", [0.25, 1.0, 64.0])
def test_with_a_fixed_gamma_the_joint_step_is_that_of_the_weighted_sum(weight: float) -> None:
    model = Model()
    config = BilevelConfig(gamma_start=weight, gamma_end=weight)
    theta, phi, eta = gradients(model, config, Progress(3, 10))
    of_upper, of_lower = (gradients(model, c, Progress(3, 10)) for c in (CtcConfig(), ContrastiveConfig()))
    assert of_upper[0] is not None
    assert of_lower[0] is not None
    assert theta is not None
    torch.testing.assert_close(theta, of_upper[0] + weight * of_lower[0], rtol=1e-14, atol=0)
    assert phi == of_upper[1]
    assert eta is not None
    assert torch.equal(eta, of_lower[2])


@pytest.mark.parametrize("steps", [1, 3, 500])
def test_gamma_grows_by_the_same_amount_every_update(steps: int) -> None:
    """From gamma_start at the first; gamma_end is reached when all are done."""
    config = BilevelConfig(gamma_start=0.1, gamma_end=0.9)
    values = [gamma(config, Progress(step, steps)) for step in range(steps + 1)]
    assert values[0] == pytest.approx(0.1)
    assert values[-1] == pytest.approx(0.9)
    assert [b - a for a, b in pairwise(values)] == pytest.approx([0.8 / steps] * steps)
