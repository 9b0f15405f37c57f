"""The pictures of a run: whole PNG files, and drawn from the numbers that were given."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from plots import plot_accuracy_matrix, plot_against_size, plot_over_tasks, plot_prompt_selection

nan = float("nan")


def upper_triangle(num_tasks: int) -> np.ndarray:
    return np.triu(np.random.default_rng(num_tasks).uniform(0, 100, (num_tasks, num_tasks)))


def check_picture(path: Path) -> None:
    """A readable PNG of a size that fits a page, with nothing cut off at its edges."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels_HWC = np.asarray(picture.convert("RGB"))
    assert min(pixels_HWC.shape[:2]) >= 400
    assert max(pixels_HWC.shape[:2]) <= 2000
    assert pixels_HWC.min() < 50  # something is drawn
    for edge in (pixels_HWC[0], pixels_HWC[-1], pixels_HWC[:, 0], pixels_HWC[:, -1]):
        assert (edge == 255).all()


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_majorticklabels()]


@pytest.mark.parametrize("num_tasks", [1, 5, pytest.param(20, marks=pytest.mark.long),
                                       pytest.param(50, marks=pytest.mark.long)])
def test_every_picture_is_whole_at_any_number_of_tasks(tmp_path, num_tasks):
    accuracies_T = np.full(num_tasks, 100.0)  # the longest numbers
    plot_accuracy_matrix(np.full((num_tasks, num_tasks), 100.0), tmp_path / "matrix.png")
    plot_over_tasks(accuracies_T, accuracies_T, tmp_path / "lines.png", per_image_acc1=accuracies_T)
    plot_prompt_selection(np.ones((num_tasks, 10)), tmp_path / "prompts.png", top_k=5)
    for name in ("matrix.png", "lines.png", "prompts.png"):
        check_picture(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.png", "matrix.png", "prompts.png"]


@pytest.mark.parametrize(("num_tasks", "num_prompts"), [(1, 1), (5, 1), (50, 1), (1, 100), (10, 20)])
def test_prompt_picture_is_whole_at_any_pool_size(tmp_path, num_tasks, num_prompts):
    plot_prompt_selection(np.ones((num_tasks, num_prompts)), tmp_path / "prompts.png", top_k=1)
    check_picture(tmp_path / "prompts.png")


@pytest.mark.parametrize("num_tasks", [1, 5, 20])
def test_accuracy_matrix_draws_the_upper_triangle(tmp_path, num_tasks):
    matrix_TT = upper_triangle(num_tasks)
    axes, colour_bar = plot_accuracy_matrix(matrix_TT, tmp_path / "matrix.png").axes
    (image,) = axes.images
    drawn_TT = image.get_array()
    below = np.tril(np.ones((num_tasks, num_tasks), dtype=bool), k=-1)
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn_TT), below)
    np.testing.assert_array_equal(drawn_TT.filled(0.0), matrix_TT)
    assert image.get_clim() == (0, 100)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("after training task", "test set of task")
    assert colour_bar.get_ylabel() == "accuracy (%)"
    # Row 1 is at the top, and ticks stand on the cells' centres and count from 1.
    assert axes.yaxis.get_inverted()
    assert axes.get_xticks().tolist() == axes.get_yticks().tolist() == list(range(num_tasks))
    assert labels(axes.xaxis) == labels(axes.yaxis) == [str(task + 1) for task in range(num_tasks)]


def test_accuracy_matrix_prints_its_numbers_where_they_fit(tmp_path):
    figure = plot_accuracy_matrix([[90.04, 12.5], [0.0, 0.0]], tmp_path / "matrix.png")
    axes = figure.axes[0]
    assert [(text.get_position(), text.get_text(), text.get_color()) for text in axes.texts] == [
        ((0, 0), "90.0", "black"),
        ((1, 0), "12.5", "white"),
        ((1, 1), "0.0", "white"),
    ]
    assert len(texts(plot_accuracy_matrix(upper_triangle(12), tmp_path / "matrix.png").axes[0])) == 12 * 13 / 2
    assert texts(plot_accuracy_matrix(upper_triangle(13), tmp_path / "matrix.png").axes[0]) == []


def test_accuracies_that_were_not_measured_stay_blank(tmp_path):
    axes = plot_accuracy_matrix([[70.0, nan], [0.0, nan]], tmp_path / "matrix.png").axes[0]
    assert np.ma.getmaskarray(axes.images[0].get_array()).tolist() == [[False, True], [True, True]]
    assert texts(axes) == ["70.0"]


def test_the_callers_matrix_is_left_alone(tmp_path):
    matrix_TT = upper_triangle(3)
    plot_accuracy_matrix(matrix_TT, tmp_path / "matrix.png")
    np.testing.assert_array_equal(matrix_TT, upper_triangle(3))


@pytest.mark.parametrize("num_tasks", [1, 5, 20])
def test_lines_are_the_numbers_given(tmp_path, num_tasks):
    acc1_T, forgetting_T, per_image_T = np.random.default_rng(0).uniform(0, 100, (3, num_tasks))
    figure = plot_over_tasks(acc1_T, forgetting_T, tmp_path / "lines.png", per_image_acc1=per_image_T)
    (axes,) = figure.axes
    for line, values_T in zip(axes.lines, (acc1_T, per_image_T, forgetting_T), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, num_tasks + 1))
        np.testing.assert_array_equal(line.get_ydata(), values_T)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"Acc@1 (last {acc1_T[-1]:.1f})",
        f"Acc@1 per image (last {per_image_T[-1]:.1f})",
        f"forgetting (last {forgetting_T[-1]:.1f})",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("after training task", "accuracy, forgetting (%)")
    assert axes.get_ylim() == (0, 100)
    # Apart without colour, too.
    assert len({(line.get_marker(), line.get_linestyle()) for line in axes.lines}) == 3


def test_without_per_image_accuracies_there_are_two_lines(tmp_path):
    axes = plot_over_tasks([80.0, 70.0], [0.0, 9.0], tmp_path / "lines.png").axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[80.0, 70.0], [0.0, 9.0]]


def test_a_protocol_measured_only_at_the_end_is_a_lone_marker(tmp_path):
    figure = plot_over_tasks([80.0, 70.0], [0.0, 9.0], tmp_path / "lines.png", per_image_acc1=[nan, 65.0])
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), [nan, 65.0])
    assert figure.legends[0].get_texts()[1].get_text() == "Acc@1 per image (last 65.0)"
    figure = plot_over_tasks([80.0, 70.0], [0.0, 9.0], tmp_path / "lines.png", per_image_acc1=[nan, nan])
    assert figure.legends[0].get_texts()[1].get_text() == "Acc@1 per image"


def test_prompt_shares_are_of_images_not_of_picks(tmp_path):
    # 4 images of task 1 and 10 of task 2, two prompts each; nothing was counted for task 3.
    counts_TM = [[4, 1, 3], [10, 10, 0], [0, 0, 0]]
    axes, colour_bar = plot_prompt_selection(counts_TM, tmp_path / "prompts.png", top_k=2).axes
    drawn_TM = axes.images[0].get_array()
    np.testing.assert_allclose(drawn_TM.filled(-1.0), [[100, 25, 75], [100, 100, 0], [-1, -1, -1]])
    assert texts(axes) == ["100", "25", "75", "100", "100", "0"]
    assert axes.images[0].get_clim() == (0, 100)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prompt (index in the pool)", "test set of task")
    assert colour_bar.get_ylabel() == "share of images (%)"
    assert labels(axes.xaxis) == ["0", "1", "2"]
    assert labels(axes.yaxis) == ["1", "2", "3"]


def test_small_prompt_shares_get_a_scale_of_their_own(tmp_path):
    axes = plot_prompt_selection(np.ones((2, 40)), tmp_path / "prompts.png", top_k=5).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), np.full((2, 40), 12.5))
    assert axes.images[0].get_clim() == (0, 20)


def test_ticks_are_round_numbers_when_there_are_many(tmp_path):
    axes = plot_prompt_selection(np.ones((50, 100)), tmp_path / "prompts.png", top_k=1).axes[0]
    assert labels(axes.yaxis) == [str(task) for task in range(5, 51, 5)]
    assert axes.get_yticks().tolist() == list(range(4, 50, 5))
    assert labels(axes.xaxis) == [str(prompt) for prompt in range(0, 100, 5)]
    assert axes.get_xticks().tolist() == list(range(0, 100, 5))


@pytest.mark.parametrize("matrix", [[[1.0, 2.0]], [1.0, 2.0], np.zeros((0, 0))])
def test_a_matrix_that_is_not_square_is_refused(tmp_path, matrix):
    with pytest.raises(ValueError, match="square"):
        plot_accuracy_matrix(matrix, tmp_path / "matrix.png")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("acc1", "forgetting", "per_image"),
    [([], [], None), ([1.0, 2.0], [1.0], None), ([1.0, 2.0], [1.0, 2.0], [1.0])],
)
def test_lines_of_different_length_are_refused(tmp_path, acc1, forgetting, per_image):
    with pytest.raises(ValueError, match="one value per task"):
        plot_over_tasks(acc1, forgetting, tmp_path / "lines.png", per_image_acc1=per_image)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("counts", "top_k", "named"),
    [
        ([1, 2], 1, "T×M"),
        (np.zeros((0, 3)), 1, "T×M"),
        ([[1, -1]], 1, ">= 0"),
        ([[1, nan]], 1, ">= 0"),
        ([[1, 1]], 0, "top_k >= 1"),
        ([[4, 2]], 2, "top_k=2 does not fit"),  # 6 picks, so 3 images, of which prompt 0 would have 4
    ],
)
def test_impossible_prompt_counts_are_refused(tmp_path, counts, top_k, named):
    with pytest.raises(ValueError, match=named):
        plot_prompt_selection(counts, tmp_path / "prompts.png", top_k)
    assert not any(tmp_path.iterdir())


def test_a_picture_replaces_the_old_one_and_folders_are_made(tmp_path):
    path = tmp_path / "run" / "plots" / "matrix.png"
    plot_accuracy_matrix([[1.0]], path)
    first = path.read_bytes()
    plot_accuracy_matrix([[99.0]], str(path))
    assert path.read_bytes() != first
    check_picture(path)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_picture(tmp_path):
    path = tmp_path / "matrix.png"
    plot_accuracy_matrix([[1.0]], path)
    first = path.read_bytes()
    (tmp_path / "matrix.png.tmp").mkdir()  # where the unfinished picture would go
    with pytest.raises(OSError):
        plot_accuracy_matrix([[99.0]], path)
    assert path.read_bytes() == first


def test_matplotlib_loads_only_when_something_is_drawn_and_never_pyplot(tmp_path):
    code = (
        "import sys, plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.plot_accuracy_matrix([[50.0]], sys.argv[1])\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "matrix.png")], check=True, cwd=root)
    check_picture(tmp_path / "matrix.png")


def test_labels_of_points_keep_apart(tmp_path):
    groups = {"a": [("one", 0, 90.0, 1.0), ("two", 0, 90.1, 0.0), ("three", 0, 89.9, 0.0)],
              "b": [("four", 10_000, 20.0, 0.5), ("five", 10_500, 20.2, 0.0)], "c": [("six", 800_000, 99.0, 0.0)]}
    figure = plot_against_size(groups, tmp_path / "compare.png")
    check_picture(tmp_path / "compare.png")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
