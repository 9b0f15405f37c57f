"""Ridge regression: its formula, its choice of λ, and what float64 can tell."""

import pytest
import torch
from test_heads import CLASSES, DIM, features, learn

from models.ridge import RIDGES, RidgeHead, solve, squared_errors


def best_ridge(hidden_NM: torch.Tensor, targets_NK: torch.Tensor) -> float:
    """λ by trying each one, on the last fifth."""
    cut = len(hidden_NM) - len(hidden_NM) // 5
    fit, held, errors = hidden_NM[:cut], hidden_NM[cut:], []
    for ridge in RIDGES:
        gram = fit.T @ fit + ridge * torch.eye(fit.shape[1], dtype=fit.dtype)
        weights = torch.linalg.lstsq(gram, fit.T @ targets_NK[:cut], driver="gelsd").solution
        errors.append(((held @ weights - targets_NK[cut:]) ** 2).mean().item())
    return RIDGES[errors.index(min(errors))]


@pytest.mark.parametrize("random_features", [0, 8, 50])  # fewer and more than a task's images
def test_ridge_equals_its_formula(random_features):
    head = RidgeHead(DIM, CLASSES, random_features, seed=3)
    shown = learn(head, [0, 1], [2, 3])
    hidden = []
    for features_ND, _ in shown:
        wide = features_ND if head.projection_DM is None else torch.relu(features_ND @ head.projection_DM)
        hidden.append(wide.double())
    targets = [torch.eye(CLASSES, dtype=torch.float64)[labels_N] for _, labels_N in shown]
    ridge = best_ridge(hidden[-1], targets[-1])
    assert float(head.ridge) == pytest.approx(ridge)
    gram = sum(h.T @ h for h in hidden) + ridge * torch.eye(hidden[0].shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(gram, sum(h.T @ y for h, y in zip(hidden, targets, strict=True)))
    logits = head.eval()(shown[0][0])
    torch.testing.assert_close(logits[:, :4], (hidden[0] @ expected)[:, :4].float(), atol=1e-5, rtol=1e-4)
    assert logits.isfinite().all()
    assert (logits.softmax(1)[:, 4:] < 1e-40).all(), "classes never seen do not compete"
    assert (logits.argmax(1) == shown[0][1]).float().mean() > 0.9


@pytest.mark.parametrize("width", [5, 60])
def test_one_decomposition_serves_all_ridges(width):
    draw = torch.Generator().manual_seed(1)
    hidden, held = (torch.randn(n, width, generator=draw, dtype=torch.float64) for n in (20, 6))
    targets, expected = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (20, 6))
    found = squared_errors(hidden, targets, held, expected)
    for ridge, error in zip(RIDGES, found, strict=True):
        if ridge < 1e-4 and width > 20:
            continue  # 10^-8 of an ill-posed problem is below the rounding of the way it is checked by
        gram = hidden.T @ hidden + ridge * torch.eye(width, dtype=torch.float64)
        weights = torch.linalg.solve(gram, hidden.T @ targets)
        assert error.item() == pytest.approx(((held @ weights - expected) ** 2).mean().item(), rel=1e-5)


@pytest.mark.parametrize("per_class", [5, 10, 20])
def test_few_images_with_large_features_do_not_drown_in_rounding(per_class):
    """λ = 1e-8 is the choice of tasks whose images come thrice, and far below what float64 keeps of G. The dual form, a
    system with a row for each image, is better posed."""
    draw = torch.Generator().manual_seed(per_class)
    width, tasks, seen = 64, 5, []
    shared_D, means_KD = torch.randn(width, generator=draw), torch.randn(2 * tasks, width, generator=draw)

    def draw_features(labels_N: torch.Tensor) -> torch.Tensor:
        noise_ND = torch.randn(len(labels_N), width, generator=draw)
        return 60 * torch.nn.functional.normalize(shared_D + 0.3 * means_KD[labels_N] + 0.1 * noise_ND, dim=1)

    head = RidgeHead(width, 2 * tasks, 600, seed=0).eval()
    for task in range(tasks):
        labels_N = torch.tensor([2 * task, 2 * task + 1]).repeat(per_class)
        seen.append((draw_features(labels_N).repeat(3, 1), labels_N.repeat(3)))
        head.observe(*seen[-1])
        head.settle(task)
    features_ND, labels_N = (torch.cat(parts) for parts in zip(*seen, strict=True))
    hidden_NM, ridge = head.expand(features_ND).double(), float(head.ridge)
    assert ridge == pytest.approx(1e-12 * float(hidden_NM.square().sum()), rel=1e-5)
    kernel_NN = hidden_NM @ hidden_NM.T + ridge * torch.eye(len(hidden_NM), dtype=torch.float64)
    dual_NK = torch.linalg.solve(kernel_NN, torch.eye(2 * tasks, dtype=torch.float64)[labels_N])
    tested_N = torch.arange(2 * tasks).repeat(20)
    tested_ND = draw_features(tested_N)
    expected_NK = head.expand(tested_ND).double() @ hidden_NM.T @ dual_NK
    torch.testing.assert_close(head(tested_ND).double(), expected_NK, atol=0.02, rtol=0)
    assert (head(tested_ND).argmax(1) == tested_N).double().mean() > 0.95


def test_a_gram_matrix_that_rounding_made_negative_is_solved_with_a_larger_ridge():
    values_M = torch.tensor([1.0, 0.5, -1e-7], dtype=torch.float64)
    solution_MK, ridge = solve(torch.diag(values_M), 1e-8, torch.ones(3, 1, dtype=torch.float64))
    assert 1e-7 < ridge <= 1e-6
    torch.testing.assert_close(solution_MK[:, 0], 1 / (values_M + ridge))


def test_the_order_of_tasks_changes_no_logit_of_a_ridge_head():
    """Given λ, which each task chooses by its own images; what is summed is the same."""
    heads = [RidgeHead(DIM, CLASSES, 40, seed=3) for _ in range(2)]
    tasks = [(features([2 * t, 2 * t + 1] * 10, seed=t)) for t in range(3)]
    for head, order in zip(heads, ([0, 1, 2], [2, 0, 1]), strict=True):
        for place, task in enumerate(order):
            head.observe(*tasks[task])
            head.settle(place)
    for name, sums in heads[0].statistics().items():
        torch.testing.assert_close(sums, heads[1].statistics()[name], atol=1e-12, rtol=1e-12)
    weights = [solve(head.gram_MM, 0.1, head.class_sums_MK)[0] for head in heads]
    torch.testing.assert_close(*weights, atol=1e-9, rtol=1e-9)
