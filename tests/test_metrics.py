"""Every metric against matrices worked out by hand, and what must hold for any matrix."""

import json

import numpy as np
import pytest

from metrics import AccuracyMatrix

# Rows: task whose test set it is; columns: after training that task. Worked out in the tests below.
ACC1 = [
    [90.0, 70.0, 80.0, 60.0],
    [0.0, 84.0, 88.0, 86.0],
    [0.0, 0.0, 75.0, 51.0],
    [0.0, 0.0, 0.0, 95.0],
]
ACC5 = [
    [99.0, 92.0, 93.0, 81.0],
    [0.0, 96.0, 94.0, 97.0],
    [0.0, 0.0, 98.0, 90.0],
    [0.0, 0.0, 0.0, 100.0],
]
LOSS = [
    [0.25, 1.0, 0.75, 2.0],
    [0.0, 0.5, 0.25, 0.5],
    [0.0, 0.0, 1.25, 1.75],
    [0.0, 0.0, 0.0, 0.25],
]


def fill(acc1, acc5=None, loss=None) -> AccuracyMatrix:
    """The matrix of a whole run; where only Acc@1 matters, Acc@5 is 100 and the loss 1."""
    matrix = AccuracyMatrix(len(acc1))
    for t in range(len(acc1)):
        for i in range(t + 1):
            matrix.record(i, t, acc1[i][t], acc5[i][t] if acc5 else 100.0, loss[i][t] if loss else 1.0)
    return matrix


def random_matrix(seed: int, num_tasks: int) -> AccuracyMatrix:
    values = np.random.default_rng(seed).uniform(0, 100, (num_tasks, num_tasks))
    return fill(values.tolist())


def test_means_of_a_column():
    matrix = fill(ACC1, ACC5, LOSS)
    # After task 2: Acc@1 (80 + 88 + 75) / 3, Acc@5 (93 + 94 + 98) / 3, loss (0.75 + 0.25 + 1.25) / 3.
    assert matrix.acc_at_1(2) == pytest.approx(81.0)
    assert matrix.acc_at_5(2) == pytest.approx(95.0)
    assert matrix.loss(2) == pytest.approx(0.75)
    # After task 3: (60 + 86 + 51 + 95) / 4, (81 + 97 + 90 + 100) / 4, (2 + 0.5 + 1.75 + 0.25) / 4.
    assert matrix.acc_at_1(3) == pytest.approx(73.0)
    assert matrix.acc_at_5(3) == pytest.approx(92.0)
    assert matrix.loss(3) == pytest.approx(1.125)
    assert matrix.per_task(2) == [80.0, 88.0, 75.0]


def test_forgetting_counts_from_the_best_value_ever_seen():
    matrix = fill(ACC1)
    assert matrix.forgetting(1) == pytest.approx(20.0)  # 90 - 70
    assert matrix.forgetting(2) == pytest.approx(5.0)  # ((90 - 80) + (88 - 88)) / 2
    # Task 1 was best in the middle, after task 2: ((90 - 60) + (88 - 86) + (75 - 51)) / 3 = (30 + 2 + 24) / 3.
    assert matrix.forgetting(3) == pytest.approx(56 / 3)


def test_forgetting_reads_no_later_column():
    # Task 0 is best after task 2; after task 1 that is not known yet: 40 - 30, and then 70 - 70 and 50 - 20.
    matrix = fill([[40.0, 30.0, 70.0], [0.0, 50.0, 20.0], [0.0, 0.0, 60.0]])
    assert matrix.forgetting(1) == pytest.approx(10.0)
    assert matrix.forgetting(2) == pytest.approx(15.0)


def test_backward_transfer_counts_from_the_diagonal():
    matrix = fill(ACC1)
    assert matrix.backward(1) == pytest.approx(-20.0)  # 70 - 90
    assert matrix.backward(2) == pytest.approx(-3.0)  # ((80 - 90) + (88 - 84)) / 2
    # ((60 - 90) + (86 - 84) + (51 - 75)) / 3 = (-30 + 2 - 24) / 3: not the negative of forgetting, which is 56 / 3.
    assert matrix.backward(3) == pytest.approx(-52 / 3)


def test_backward_transfer_is_positive_when_old_tasks_improve():
    matrix = fill([[40.0, 55.0], [0.0, 10.0]])
    assert matrix.backward(1) == pytest.approx(15.0)
    assert matrix.forgetting(1) == 0.0


def test_learning_and_average_incremental_accuracy():
    matrix = fill(ACC1)
    assert matrix.learning_acc(1) == pytest.approx(87.0)  # (90 + 84) / 2
    assert matrix.learning_acc(3) == pytest.approx(86.0)  # (90 + 84 + 75 + 95) / 4
    # Acc@1 by column: 90, (70 + 84) / 2 = 77, 81, 73.
    assert matrix.average_incremental_acc(1) == pytest.approx(83.5)
    assert matrix.average_incremental_acc(3) == pytest.approx(80.25)


def test_after_the_first_task_nothing_is_forgotten_or_transferred():
    assert fill(ACC1, ACC5, LOSS).summary(0) == {
        "acc@1": 90.0,
        "acc@5": 99.0,
        "loss": 0.25,
        "forgetting": 0.0,
        "backward": 0.0,
        "learning_acc": 90.0,
        "average_incremental_acc": 90.0,
        "per_task": [90.0],
    }


def test_summary_holds_every_metric_as_json_values():
    summary = fill(ACC1, ACC5, LOSS).summary(3)
    assert json.loads(json.dumps(summary)) == summary
    assert summary.pop("per_task") == [60.0, 86.0, 51.0, 95.0]
    assert summary == pytest.approx(
        {
            "acc@1": 73.0,
            "acc@5": 92.0,
            "loss": 1.125,
            "forgetting": 56 / 3,
            "backward": -52 / 3,
            "learning_acc": 86.0,
            "average_incremental_acc": 80.25,
        }
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_holds_for_any_matrix(seed):
    matrix = random_matrix(seed, num_tasks=6)
    for t in range(6):
        summary = matrix.summary(t)
        # The best value is at least the value now and at least the one on the diagonal.
        assert summary["forgetting"] >= max(0.0, -summary["backward"])
        assert min(summary["per_task"]) <= summary["acc@1"] <= max(summary["per_task"])
        # Acc@1 is learning accuracy plus what backward transfer did to the t old tasks among t + 1.
        expected = summary["learning_acc"] + summary["backward"] * t / (t + 1)
        assert summary["acc@1"] == pytest.approx(expected)


def test_metrics_do_not_change_when_later_tasks_are_recorded():
    matrix, early = random_matrix(0, num_tasks=5), []
    growing = AccuracyMatrix(5)
    for t in range(5):
        for i in range(t + 1):
            growing.record(i, t, matrix.acc1_RT[i, t], matrix.acc5_RT[i, t], matrix.loss_RT[i, t])
        early.append(growing.summary(t))
    assert early == [matrix.summary(t) for t in range(5)]


def test_a_constant_run_forgets_nothing():
    summary = fill([[62.5] * 4] * 4).summary(3)
    assert (summary["acc@1"], summary["forgetting"], summary["backward"]) == (62.5, 0.0, 0.0)
    assert (summary["learning_acc"], summary["average_incremental_acc"]) == (62.5, 62.5)


def test_zero_is_an_accuracy_like_any_other():
    matrix = fill([[50.0, 0.0], [0.0, 0.0]])
    assert matrix.column_complete(1)
    assert matrix.forgetting(1) == 50.0


def test_cells_below_the_diagonal_stay_zero():
    matrix = fill(ACC1, ACC5, LOSS)
    below = np.tril_indices(4, k=-1)
    for values_TT, given in ((matrix.acc1_RT, ACC1), (matrix.acc5_RT, ACC5), (matrix.loss_RT, LOSS)):
        assert values_TT.tolist() == given
        assert not values_TT[below].any()


def test_recording_a_cell_again_replaces_it():
    matrix = fill(ACC1)
    matrix.record(1, 1, 20.0, 30.0, 4.0)
    assert matrix.acc_at_1(1) == pytest.approx(45.0)  # (70 + 20) / 2


def test_column_complete_needs_every_task_seen():
    matrix = AccuracyMatrix(3)
    assert not matrix.column_complete(0)
    matrix.record(0, 0, 10.0, 20.0, 1.0)
    assert matrix.column_complete(0)
    matrix.record(1, 1, 10.0, 20.0, 1.0)
    assert not matrix.column_complete(1)
    matrix.record(0, 1, 10.0, 20.0, 1.0)
    assert matrix.column_complete(1)
    assert not matrix.column_complete(2)


@pytest.mark.parametrize(("i", "t"), [(1, 0), (3, 2), (-1, 0), (0, -1), (0, 4), (4, 4)])
def test_a_cell_outside_the_upper_triangle_is_refused(i, t):
    with pytest.raises(ValueError, match="0 <= i <= t < 4"):
        AccuracyMatrix(4).record(i, t, 50.0, 60.0, 1.0)


@pytest.mark.parametrize(
    ("acc1", "acc5", "loss", "named"),
    [
        (float("nan"), 60.0, 1.0, "acc1"),
        (100.5, 60.0, 1.0, "acc1"),
        (-1.0, 60.0, 1.0, "acc1"),
        (50.0, float("inf"), 1.0, "acc5"),
        (50.0, 60.0, float("inf"), "loss"),
        (50.0, 60.0, float("nan"), "loss"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_leaves_the_cell_empty(acc1, acc5, loss, named):
    matrix = AccuracyMatrix(2)
    with pytest.raises(ValueError, match=f"{named} of task 0 after task 1"):
        matrix.record(0, 1, acc1, acc5, loss)
    assert not matrix.recorded_RT.any()
    assert not matrix.acc1_RT.any()


@pytest.mark.parametrize("num_tasks", [0, -3])
def test_a_matrix_needs_a_task(num_tasks):
    with pytest.raises(ValueError, match="at least one task"):
        AccuracyMatrix(num_tasks)


COLUMN_METRICS = ["per_task", "acc_at_1", "acc_at_5", "loss"]
HISTORY_METRICS = ["forgetting", "backward", "learning_acc", "average_incremental_acc", "summary"]


@pytest.mark.parametrize("name", COLUMN_METRICS + HISTORY_METRICS)
def test_a_metric_of_an_unfinished_column_is_refused(name):
    matrix = AccuracyMatrix(2)
    matrix.record(0, 0, 10.0, 20.0, 1.0)
    matrix.record(0, 1, 10.0, 20.0, 1.0)
    with pytest.raises(ValueError, match="nothing was recorded for task 1 after task 1"):
        getattr(matrix, name)(1)


@pytest.mark.parametrize("name", COLUMN_METRICS + HISTORY_METRICS)
@pytest.mark.parametrize("t", [-1, 4])
def test_a_metric_outside_the_matrix_is_refused(name, t):
    with pytest.raises(ValueError, match="no column"):
        getattr(fill(ACC1), name)(t)


def test_only_metrics_of_the_past_need_the_earlier_columns():
    matrix = AccuracyMatrix(2)
    matrix.record(0, 1, 30.0, 60.0, 1.0)
    matrix.record(1, 1, 50.0, 70.0, 3.0)
    assert matrix.acc_at_1(1) == 40.0
    assert matrix.acc_at_5(1) == 65.0
    assert matrix.loss(1) == 2.0
    for name in HISTORY_METRICS:
        with pytest.raises(ValueError, match="task 0 after task 0"):
            getattr(matrix, name)(1)


def test_state_survives_json_bit_for_bit():
    matrix = AccuracyMatrix(3)  # a run stopped after its second task, with values that have no short decimal form
    matrix.record(0, 0, 100 / 3, 200 / 3, 0.1 + 0.2)
    matrix.record(0, 1, 0.0, 100.0, 1e-17)
    matrix.record(1, 1, 100 * 2 / 7, 100 * 3 / 7, 1 / 9)
    again = AccuracyMatrix.from_state(json.loads(json.dumps(matrix.state())))
    assert again.num_tasks == 3
    for name in ("acc1_RT", "acc5_RT", "loss_RT", "recorded_RT"):
        np.testing.assert_array_equal(getattr(again, name), getattr(matrix, name), strict=True)
    assert again.summary(1) == matrix.summary(1)
    assert not again.column_complete(2)


def test_a_restored_matrix_shares_nothing_with_its_source():
    matrix = fill(ACC1)
    state = matrix.state()
    again = AccuracyMatrix.from_state(state)
    again.record(0, 3, 1.0, 2.0, 3.0)
    state["acc1"][0][0] = 5.0
    assert matrix.acc1_RT.tolist() == ACC1
    assert again.acc1_RT[0, 0] == 90.0


def test_a_broken_state_is_refused():
    state = fill(ACC1).state()
    with pytest.raises(ValueError, match="entries"):
        AccuracyMatrix.from_state({name: state[name] for name in ("acc1", "acc5", "loss")})
    with pytest.raises(ValueError, match="acc5 in the state has shape"):
        AccuracyMatrix.from_state({**state, "acc5": state["acc5"][:3]})
    with pytest.raises(ValueError, match="no cell for task 1 after task 0"):
        AccuracyMatrix.from_state({**state, "recorded": (np.eye(4, k=-1) > 0).tolist()})
    with pytest.raises(ValueError, match="acc1 of task 0 after task 0"):
        AccuracyMatrix.from_state({**state, "acc1": [[float("nan")] * 4] * 4})


def test_rows_of_the_csv_file():
    matrix = AccuracyMatrix(3)
    matrix.record(0, 0, 100 / 3, 50.0, 1.0)
    matrix.record(0, 1, 12.5, 50.0, 1.0)
    matrix.record(1, 1, 0.0, 50.0, 1.0)
    assert matrix.to_rows() == [
        ["task", "after_task_1", "after_task_2", "after_task_3"],
        [1, 100 / 3, 12.5, ""],
        [2, "", 0.0, ""],
        [3, "", "", ""],
    ]


def test_table_of_a_whole_run():
    assert fill(ACC1).format_table().splitlines() == [
        "after task     1     2     3     4",
        "task 1      90.0  70.0  80.0  60.0",
        "task 2            84.0  88.0  86.0",
        "task 3                  75.0  51.0",
        "task 4                        95.0",
        "Acc@1       90.0  77.0  81.0  73.0",
        "forgetting   0.0  20.0   5.0  18.7",
    ]


def test_table_of_an_unfinished_run():
    matrix = AccuracyMatrix(3)
    matrix.record(0, 0, 100.0, 100.0, 1.0)
    matrix.record(0, 1, 50.0, 100.0, 1.0)
    assert matrix.format_table().splitlines() == [
        "after task     1     2     3",
        "task 1     100.0  50.0",
        "task 2",
        "task 3",
        "Acc@1      100.0",
        "forgetting   0.0",
    ]
