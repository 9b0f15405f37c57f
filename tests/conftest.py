"""The tests' models are tiny: one thread each is faster than two that wait for each other, also on a busy machine.

Tests say what the CPU computes; on a machine with a GPU they, and the programs that they start, do not see it. Those
marked `gpu` do (`pytest -m gpu`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import TINY, write_npz

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the programs that tests start


def pytest_configure(config: pytest.Config) -> None:
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # late, as below

        assert torch.cuda.is_available(), "torch finds no CUDA GPU here"


@pytest.fixture(scope="module", autouse=True)
def pictures_of_runs(request) -> Iterator[None]:
    """Where no test of a module looks at a run's pictures, none is drawn: they take longer than the smallest runs."""
    if request.node.get_closest_marker("pictures"):
        yield
        return
    from outputs import Reporter  # late, as below

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Reporter, "_plot", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> list[object]:
    """A run of three tasks, with 36 images and nine steps in each of two epochs."""
    data = write_npz(tmp_path_factory.mktemp("data") / "data.npz", classes=6, train_per_class=18)
    return ["cifar100_l2p", "--data-path", data, *TINY, "--batch-size", 4, "--num-tasks", 3, "--epochs", 2,
            "--print-freq", 1, "--eval-per-image", "always"]


@pytest.fixture(scope="module")
def undisturbed(short_run, tmp_path_factory) -> Path:
    from lab import call  # late, as below

    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, err = call(*short_run, "--output_dir", folder)
    assert code == 0, err
    return folder


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    from lab import Lab  # late: torch must not be imported before the line above

    return Lab(tmp_path_factory.mktemp("options"))
