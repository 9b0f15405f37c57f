"""The commands that people already use and those of the README, run as they are typed, in processes of their own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from fixtures import ROOT, TINY, run_program, write_cifar100
from published import class_folders, write_files
from run_folders import write_run
from safetensors.torch import save_file

from utils import load_checkpoint

LAUNCH = ("-m", "torch.distributed.launch", "--nproc_per_node=1", "--use_env")
QUICK = [*TINY, "--device", "cpu", "--eval_per_image", "never"]


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory) -> Path:
    """A folder with CIFAR-100's own files, one training and one test image of each class."""
    root = tmp_path_factory.mktemp("local_datasets")
    write_cifar100(root, train_per_class=1, test_per_class=1)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of 20 folders with photos of one class each."""
    root = tmp_path_factory.mktemp("photos")
    write_files(root, class_folders([f"thing {number:02d}" for number in range(20)], 5, (48, 64), "JPEG"))
    return root


def environment(cifar100: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT / 'tests' / 'site'}:{ROOT}", "HF_HUB_OFFLINE": "1",
                         "TEST_CIFAR100_FOLDER": str(cifar100 / "cifar-100-python")} | more


def readme_commands() -> list[list[str]]:
    """The blocks of the README that run the program, each a list of command lines."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    blocks = [[line for line in block.splitlines() if re.search(r"\b(main|predict)\.py\b", line)] for block in fenced]
    return [lines for lines in blocks if lines]


def test_the_readme_has_commands():
    assert [len(block) for block in readme_commands()] == [2, 3, 3]


def folder_of(line: str, before: str) -> str:
    """Where a line's run lies: in its --output_dir, in ./output/EXPERIMENT, or, for --eval, where it was before."""
    if given := re.search(r"--output_dir (\S+)", line):
        return given[1]
    return before if "--eval" in line else "./output/" + re.search(r"main.py (\w+)", line)[1]


@pytest.mark.parametrize("block", [pytest.param(block, marks=[pytest.mark.long] if number else [], id=block[0][:60])
                                   for number, block in enumerate(readme_commands())])
def test_readme_commands(block, cifar100, photos, tmp_path):
    """Each line as it stands, but for the folder of the data, the place of main.py, and a model that is quick."""
    folder = ""
    for line in block:
        words = [str(cifar100) if re.fullmatch(r"\.?/local_datasets/?", word) else word for word in shlex.split(line)]
        words = [str(photos) if word == "./photos" else word for word in words]
        words = [str(photos / "thing 03") if word == "./new_photos" else word for word in words]
        words = [str(ROOT / word) if word in ("main.py", "predict.py") else word for word in words]
        if words[0] == "torchrun":
            words[0:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        else:
            assert words[0] == "python"
            words[0] = sys.executable
        predicts = str(ROOT / "predict.py") in words
        extra = [] if "--eval" in words or predicts else [*map(str, QUICK)]
        done = subprocess.run([*words, *extra], cwd=tmp_path, env=environment(cifar100), capture_output=True, text=True,
                              timeout=250)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        if predicts:
            assert done.stdout.count("thing") >= 5, "an answer for each of the five photos"
            continue
        assert "after task 10/10" in done.stdout
        folder = folder_of(line, folder)
        for name in ("config.json", "summary.json", *(["eval_summary.json"] if "--eval" in words else [])):
            assert (tmp_path / folder / name).is_file(), f"{line}: no {name} in {folder}"


@pytest.mark.long
def test_the_first_command_with_its_own_vit_b16(cifar100, tmp_path):
    """ViT-B/16 from the hub's cache (random weights of the pinned tag), CIFAR-100 from torchvision's files, 5 epochs:
    through the first task and its evaluation, which is as much of a ViT-B/16 as two cores should do in a test."""
    snapshot = tmp_path / "hf" / "hub" / "models--timm--vit_base_patch16_224.orig_in21k" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
    save_file(vit.state_dict(), snapshot / "model.safetensors")
    command = [sys.executable, *LAUNCH, str(ROOT / "main.py"), "--model", "vit_base_patch16_224", "--batch-size", "16",
               "--data-path", str(cifar100), "--output_dir", "./output", "--epochs", "5"]
    env = environment(cifar100, HF_HOME=str(tmp_path / "hf"), OMP_NUM_THREADS="2")
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)
    printed = []
    try:
        for line in process.stdout:
            printed.append(line)
            if line.startswith("task 2/10"):  # the first task is evaluated and saved
                break
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    text = "".join(printed)
    assert "vit_base_patch16_224.orig_in21k, 122,980 of 85,921,636 values train; 10 tasks, 100 classes" in text, text
    assert "after task 1/10" in text
    learned = load_checkpoint(tmp_path / "output" / "checkpoint" / "task01.pth")
    assert sum(tensor.numel() for tensor in learned["model"].values()) == 122_980
    assert (tmp_path / "output" / "checkpoint" / "task01.pth").stat().st_size < 1_000_000
    done = run_program("--eval", "--data-path", cifar100, cwd=tmp_path, **environment(
        cifar100, HF_HOME=str(tmp_path / "hf")))
    assert done.returncode == 2
    assert "lacks task02.pth, task03.pth" in done.stderr


def headings(page: Path) -> set[str]:
    """The names by which links reach the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readmes_words_are_few_and_its_links_lead_somewhere():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md"), *ROOT.glob("docs/*.md")):
        for link, place in re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]*))?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
            assert not place or place in headings(page.parent / link), f"{page.name}: {link}#{place}"
    assert len((ROOT / "README.md").read_text().split()) <= 1300


def test_the_readmes_report(tmp_path):
    """`python report.py ./output`, as the README has it, over two runs that differ in their seed."""
    for seed in (1, 2):
        write_run(tmp_path / "output" / f"run{seed}", seed)
    done = subprocess.run([sys.executable, str(ROOT / "report.py"), "./output"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "±" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 10_000
