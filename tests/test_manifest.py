"""manifest.json.gz: a second program, made from its docstring alone, finds the same hashes."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from fixtures import TINY, write_npz
from PIL import Image

import main
from continual_datasets import GaussianSchedule, build_scenario, manifest_bytes
from continual_datasets.readers import CATALOGUE
from continual_datasets.scenario import Sessions

pytestmark = pytest.mark.pictures

COMMON = {"download": False, "shuffle": False, "seed": 0, "subsample": None, "subsample_test": None}


def sha256(*pieces: bytes) -> str:
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def whole_hash(tasks: list[dict], digests: dict[str, list[bytes]]) -> str:
    """Hashes 2 and 3 of the docstring. `digests`: of all images of a part, by position."""
    lines = []
    for task in tasks:
        found = []
        for part in ("train", "test"):
            images = task.get(part) or tasks[0][part]
            pieces = [digests[part][position] for position in images["images"]]
            found.append(sha256(*pieces, *(label.to_bytes(8, "little", signed=True) for label in images["labels"])))
        assert task["sha256"] == found
        lines.append(f"({', '.join(map(str, task['classes']))}{',' * (len(task['classes']) == 1)}) {' '.join(found)}")
    return sha256("\n".join(lines).encode())


@pytest.mark.parametrize("joint", [False, True])
def test_arrays(joint, tmp_path):
    path = write_npz(tmp_path / "data.npz", classes=5, size=8)
    scenario = build_scenario("Split-NPZ", str(path), num_tasks=None, classes_per_task=2, class_order="numpy:1",
                              all_at_once=joint, **COMMON)
    packed = manifest_bytes(scenario)
    assert packed == manifest_bytes(scenario)
    content, arrays = json.loads(gzip.decompress(packed)), np.load(path)
    assert content["setting"] == ("joint" if joint else "class-incremental")
    order = np.random.RandomState(1).permutation(5).tolist()
    assert [task["classes"] for task in content["tasks"]] == [order[:2], order[2:4], order[4:]]
    digests = {part: [hashlib.sha256(b"(8, 8, 3)" + pixels.tobytes()).digest() for pixels in arrays[f"x_{part}"]]
               for part in ("train", "test")}
    for task in content["tasks"]:
        for part in ("train", "test"):
            here = np.flatnonzero(np.isin(arrays[f"y_{part}"], task["classes"])).tolist()
            assert task[part]["images"] == here
            assert task[part]["labels"] == arrays[f"y_{part}"][here].tolist()
            assert task[part]["sha256"] == [digests[part][position].hex() for position in here]
    assert content["sha256"] == scenario.fingerprint == whole_hash(content["tasks"], digests)


def test_files(tmp_path):
    names = [f"{name}/{number}.png" for name in ("ant", "bée") for number in range(2)]
    for part in ("train", "test"):
        for name in names:
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name)
    scenario = build_scenario("Split-Folder", str(tmp_path), num_tasks=2, **COMMON)
    task = json.loads(gzip.decompress(manifest_bytes(scenario)))["tasks"][1]
    assert task["train"] == {"images": ["train/bée/0.png", "train/bée/1.png"], "labels": [1, 1],
                             "sha256": [sha256(f"train/bée/{number}.png".encode()) for number in range(2)]}
    assert sorted(task["test"]["images"]) == ["test/bée/0.png", "test/bée/1.png"]
    assert task["test"]["sha256"] == [sha256(name.encode()) for name in task["test"]["images"]]


def test_sessions_share_their_test_images(tmp_path, monkeypatch):
    data = CATALOGUE["Split-NPZ"](str(write_npz(tmp_path / "data.npz")))
    monkeypatch.setitem(CATALOGUE, "CORe50", lambda *_: Sessions((data.train, data.train.take(np.arange(8))), data.test,
                                                                 data.class_names))
    tasks = json.loads(gzip.decompress(manifest_bytes(build_scenario("CORe50", "", num_tasks=None, **COMMON))))["tasks"]
    assert [sorted(task) for task in tasks] == [["classes", "sha256", "test", "train"], ["classes", "sha256", "train"]]
    assert tasks[1]["train"]["images"] == list(range(8))
    assert tasks[0]["sha256"][1] == tasks[1]["sha256"][1]


def test_a_stream_has_none(tmp_path):
    path = write_npz(tmp_path / "data.npz")
    assert manifest_bytes(build_scenario("Split-NPZ", str(path), num_tasks=None,
                                         schedule=GaussianSchedule(4, 2, 2.0, 2), **COMMON)) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = write_npz(folder / "data.npz")
    assert main.main(["--data_path", str(data), "--output_dir", str(folder / "run"), "--num_tasks", "2", "--device",
                      "cpu", *TINY]) == 0
    return folder / "run"


def test_a_run_writes_it_and_removes_it_with_the_rest(run):
    path = run / "manifest.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    assert content["sha256"] == json.loads((run / "config.json").read_text())["data_sha256"]
    written, data = path.read_bytes(), run.parent / "data.npz"
    words = ["--data_path", str(data), "--output_dir", str(run), "--num_tasks", "4", "--device", "cpu", *TINY]
    stream = ["--schedule", "gaussian", "--num_tasks", "none", "--gaussian_episodes", "2", "--gaussian_width", "9"]
    assert main.main([*words, "--overwrite", *stream]) == 0
    assert not path.exists(), "a stream has none, and the one before was of another run"
    assert main.main([*words, "--overwrite"]) == 0
    assert path.read_bytes() != written
