"""Heads that learn from what they observe: ridge regression, aligned heads, and the runs that have them; the bound."""

import json
from pathlib import Path

import pytest
import torch
from fixtures import write_npz
from PIL import Image
from test_bad_input import run, tiny

from build import read_scenario
from continual_datasets.transforms import EvalTransform
from loading import load_run
from models import PromptedViT, query_cache
from models.alignment import AlignedHead, factor, normalised
from models.heads import LinearHead, NearestMeanHead
from models.ridge import RidgeHead
from utils import load_checkpoint

DIM, CLASSES = 12, 6


def features(labels: list[int], seed: int = 0, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian classes, each around a mean of its own."""
    draw = torch.Generator().manual_seed(seed)
    means_KD = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    labels_N = torch.tensor(labels)
    return means_KD[labels_N] + spread * torch.randn(len(labels), DIM, generator=draw), labels_N


def learn(head, *tasks: list[int], batch: int = 7) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Show a head the tasks' images, a task's classes in turn; returns them."""
    shown = []
    for task, classes in enumerate(tasks):
        features_ND, labels_N = features(classes * 10, seed=task)
        shown.append((features_ND, labels_N))
        for part in zip(features_ND.split(batch), labels_N.split(batch), strict=True):
            head.observe(*part)
        head.settle(task)
    return shown


# ---- what holds for all of them ----
HEADS = {
    "ncm": lambda: NearestMeanHead(DIM, CLASSES),
    "ridge": lambda: RidgeHead(DIM, CLASSES, 20, seed=1),
    "aligned": lambda: AlignedHead(DIM, CLASSES, samples=20, epochs=2, lr=0.1, full=True, seed=1),
    "aligned, diagonal": lambda: AlignedHead(DIM, CLASSES, samples=20, epochs=2, lr=0.1, full=False, seed=1),
}


FOLLOWERS = {
    "ridge": lambda: RidgeHead(DIM, CLASSES, 20, seed=1, follows=True),
    "ridge, plain": lambda: RidgeHead(DIM, CLASSES, 0, seed=1, follows=True),
}


def everything(head) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in (head.state_dict() | head.statistics()).items()}


@pytest.mark.parametrize("name", HEADS)
def test_what_is_observed_is_forgotten_unless_the_head_settles(name):
    torch.manual_seed(0)
    head = HEADS[name]()
    learn(head, [0, 1])
    before = everything(head)
    head.observe(*features([2, 3] * 5))
    assert all(torch.equal(tensor, before[key]) for key, tensor in everything(head).items())


@pytest.mark.parametrize("name", HEADS)
def test_state_and_statistics_are_all_that_a_head_goes_on_from(name):
    """A head that takes over both learns the next task to the same bits."""
    torch.manual_seed(0)
    first, second = HEADS[name](), HEADS[name]()
    learn(first, [0, 1])
    second.load_state_dict(first.state_dict())
    for key, tensor in second.statistics().items():
        tensor.copy_(first.statistics()[key])
    for head in (first, second):
        head.observe(*features([2, 3] * 10, seed=5))
        head.settle(1)
    others = everything(second)
    assert all(torch.equal(tensor, others[key]) for key, tensor in everything(first).items())


def learn_while_features_move(head, shifts: list[torch.Tensor], told: bool) -> None:
    """Three tasks; each finds the features of all images moved by its shift from where the first one finds them."""
    for task, classes in enumerate(([0, 1], [2, 3], [4, 5])):
        features_ND, labels_N = features(classes * 10, seed=task)
        head.observe(features_ND + shifts[task], labels_N)
        if told and task:
            head.move(shifts[task] - shifts[task - 1])
        head.settle(task)


SHIFT = torch.linspace(-1, 2, DIM)
MOVING, WHERE_THEY_END = [task * SHIFT for task in range(3)], [2 * SHIFT] * 3


@pytest.mark.parametrize("name", ["ncm", "ridge", "ridge, plain"])
def test_a_head_follows_features_that_all_move_alike(name):
    """Told by how much, it answers as if the features had always been where they are now."""
    told, untold, stayed = ((HEADS | FOLLOWERS)[name]() for _ in range(3))
    learn_while_features_move(told, MOVING, told=True)
    learn_while_features_move(untold, MOVING, told=False)
    if name != "ncm":
        stayed.move(2 * SHIFT)  # it takes from features what they have moved by: here all of it before the first task
    learn_while_features_move(stayed, WHERE_THEY_END, told=False)
    tested_BD = features([0, 1, 2, 3, 4, 5] * 3, seed=9)[0] + 2 * SHIFT
    answers = [head.eval()(tested_BD) for head in (told, untold, stayed)]
    torch.testing.assert_close(answers[0], answers[2], atol=1e-4, rtol=1e-4)
    assert (answers[1] - answers[2]).abs().max() > 0.1


@pytest.mark.parametrize("name", HEADS)
def test_a_test_image_of_a_class_without_training_images_has_a_finite_loss(name):
    head = HEADS[name]().eval()
    learn(head, [0, 1], [2, 3])
    features_ND, labels_N = features([4, 5, 0, 3])
    losses_N = torch.nn.functional.cross_entropy(head(features_ND), labels_N, reduction="none")
    assert losses_N.isfinite().all()
    if name != "aligned" and name != "aligned, diagonal":  # whose other classes have weights of their own
        assert losses_N[:2].min() > losses_N[2:].max()


@pytest.mark.parametrize("images", [1, 2, 3])
def test_a_class_of_few_images_has_a_gaussian_in_a_wide_vit(images):
    """In all but images - 1 of 768 directions there is nothing but jitter."""
    draw = torch.Generator().manual_seed(1)
    head = AlignedHead(768, 40, samples=2, epochs=1, lr=0.1, full=True, seed=1)
    features_ND = torch.randn(40 * images, 768, generator=draw)
    head.observe(features_ND, torch.arange(40).repeat(images))
    head.settle(0)
    assert head.weight.isfinite().all()
    factor_DD = factor(head.covariances[0])
    wanted_DD = head.covariances[0] + torch.eye(768) * 1e-4 * head.covariances[0].diagonal().mean()
    torch.testing.assert_close(factor_DD @ factor_DD.T, wanted_DD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["aligned", "aligned, diagonal"])
def test_gaussians_follow_features_that_all_move_alike(name):
    told, stayed = HEADS[name](), HEADS[name]()
    learn_while_features_move(told, MOVING, told=True)
    learn_while_features_move(stayed, WHERE_THEY_END, told=False)
    for key, tensor in told.statistics().items():
        torch.testing.assert_close(tensor, stayed.statistics()[key], atol=1e-5, rtol=1e-5)


# ---- alignment ----
@pytest.mark.parametrize("full", [True, False])
def test_alignment_keeps_mean_and_covariance_of_all_sessions_of_a_class(full):
    head = AlignedHead(DIM, CLASSES, samples=5, epochs=1, lr=0.01, full=full, seed=1)
    shown = learn(head, [0, 1], [1, 2], [1, 0])
    features_ND, labels_N = (torch.cat(parts) for parts in zip(*shown, strict=True))
    for label in range(3):
        mine_ND = features_ND[labels_N == label]
        covariance = torch.cov(mine_ND.T, correction=0)
        torch.testing.assert_close(head.means_KD[label], mine_ND.mean(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(head.covariances[label], covariance if full else covariance.diagonal(),
                                   atol=1e-5, rtol=0)
    assert head.counts_K.tolist() == [20, 30, 10, 0, 0, 0]
    assert head.task_of_K.tolist()[:3] == [0, 0, 1], "a class belongs to the task that had it first"


@pytest.mark.parametrize("full", [True, False])
def test_alignment_weighs_tasks_that_were_never_weighed_against_each_other(full):
    """A head whose second task shouts: right within each task, wrong between them, until it is aligned."""
    torch.manual_seed(0)
    head = AlignedHead(DIM, CLASSES, samples=500, epochs=20, lr=0.05, full=full, seed=1)
    tests = [features(classes * 50, seed=7) for classes in ([0, 1], [2, 3])]
    with torch.no_grad():
        head.weight.copy_(torch.cat([features([label] * 20, seed=3)[0].mean(0, keepdim=True)
                                     for label in range(CLASSES)]))
        head.bias[2:4] += 12
        head.bias[4:] = -1000  # not seen: no image should go there, and no alignment touch them

    def accuracy() -> list[float]:
        return [(head(x).argmax(1) == y).float().mean().item() for x, y in tests]

    assert accuracy()[0] < 0.6
    learn(head, [0, 1], [2, 3])
    assert min(accuracy()) > 0.9
    assert (head.bias[4:] == -1000).all()


def test_logits_are_normalised_by_the_mean_length_of_the_tasks_parts():
    logits = torch.tensor([[3.0, 4.0, 0.0, 1.0], [1.0, 0.0, 6.0, 8.0]])
    groups = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    torch.testing.assert_close(normalised(logits, groups), logits / torch.tensor([[3.0], [5.5]]))


def test_the_memory_that_a_head_takes_is_told(capsys, tmp_path):
    assert AlignedHead(768, 100, samples=1, epochs=1, lr=1, full=True, seed=0).note.startswith(
        "alignment keeps covariances of 100 classes, 2.36 MB each, 236")
    assert "808 MB" in RidgeHead(768, 100, 10_000, seed=0).note
    data = write_npz(tmp_path / "data.npz")
    assert run("cifar100_ranpac", *tiny(data, "")[1:], "--random_features", 100) == 0
    assert "ridge regression on 100 random features keeps" in capsys.readouterr().out


# ---- runs ----
@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "data.npz", classes=6, train_per_class=9, test_per_class=5)


def read(folder: Path, name: str = "summary.json") -> dict:
    return json.loads((folder / name).read_text())


def state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoint" / f"{name}.pth")["model"]


@pytest.mark.parametrize("head", [("ncm",), ("ridge", "--random_features", 30)])
def test_what_was_adapted_on_the_first_task_stays(head, data, tmp_path):
    words = tiny(data, tmp_path, "--num-tasks", 3, "--adapt", "first", "--head", *head)
    assert run(*words) == 0
    states = [state(tmp_path, f"task0{task}") for task in (1, 2, 3)]
    for name in ("prompt.prompts_MLD", "prompt.keys_MD", "head.classifier.weight"):
        assert torch.equal(states[0][name], states[2][name]), name
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    after = ["settled", "keys", "evaluation"]
    assert [row["kind"] for row in log] == ["epoch", *after * 3]
    assert run("--eval", "--output_dir", tmp_path) == 0
    assert read(tmp_path)["per_task"] == read(tmp_path, "eval_summary.json")["per_task"]


def test_once_prompts_have_trained_each_image_is_tested_once(data, tmp_path, monkeypatch):
    """The same accuracies as when nothing is kept, from one pass over each test set instead of one after each task; the
    choice per image, looked at in the end, is another reading."""
    passes = cut = 0
    read_, cut_ = PromptedViT.read, EvalTransform.__call__

    def counted_cut(transform, pixels_BHWC):
        nonlocal cut
        cut += 1
        return cut_(transform, pixels_BHWC)

    monkeypatch.setattr(EvalTransform, "__call__", counted_cut)

    def counted(model, images_BCHW, *, query_BD=None, **more):
        nonlocal passes
        passes += query_BD is not None  # else it trains, or observes
        return read_(model, images_BCHW, query_BD=query_BD, **more)

    monkeypatch.setattr(PromptedViT, "read", counted)
    found = {}
    for name, keeps in (("kept", 2**20), ("not kept", 0), ("kept in part", 9000)):
        monkeypatch.setattr(query_cache, "MAX_BYTES", keeps)
        passes = cut = 0
        assert run(*tiny(data, tmp_path / name, "--num-tasks", 3, "--adapt", "first", "--head", "ridge",
                         "--random_features", 30, "--batch-size", 5, "--lr", 0.5)) == 0
        found[name] = passes, cut, (tmp_path / name / "accuracy_matrix.csv").read_text(), read(
            tmp_path / name)["acc@1_per_image"]
    batches = 2  # of each test set
    assert found["kept"][0] == (3 + 3) * batches
    assert found["not kept"][0] == (1 + 2 + 3 + 3) * batches
    assert found["not kept"][1] - found["kept"][1] == found["not kept"][0] - found["kept"][0], "no image is cut in vain"
    assert found["kept"][2:] == found["not kept"][2:] == found["kept in part"][2:]
    assert found["kept"][1] < found["kept in part"][1] < found["not kept"][1]
    passes = 0
    monkeypatch.setattr(query_cache, "MAX_BYTES", 2**20)
    assert run("--eval", "--output_dir", tmp_path / "kept") == 0
    assert passes == found["kept"][0], "all its checkpoints have the same prompts"


@pytest.mark.parametrize("words", [("--align", "--align_epochs", 2, "--align_samples", 9),
                                   ("--adapt", "first", "--head", "ridge", "--random_features", 30),
                                   ("--head", "ridge", "--random_features", 30, "--drift", "shift")])
def test_a_run_resumed_after_a_task_has_the_heads_statistics(words, data, tmp_path, capsys):
    """They lie in a file of their own, the newest two are kept, and no task's checkpoint has them."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = tiny(data, whole, "--num-tasks", 3, *words)
    assert run(*command) == 0
    names = {path.name for path in (whole / "checkpoint").glob("statistics*")}
    assert names == {"statistics02.pth", "statistics03.pth"}
    assert not {"head.gram_MM", "head.covariances", "head.means_KD"} & state(whole, "task03").keys()

    class Stop(Exception):
        pass

    import outputs

    evaluated = outputs.Reporter.evaluated

    def stop_in_the_third(self, column, run):
        if column == 2:
            raise Stop
        evaluated(self, column, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs.Reporter, "evaluated", stop_in_the_third)
        with pytest.raises(Stop):
            run(*tiny(data, cut, "--num-tasks", 3, *words))
    assert run(*tiny(data, cut, "--num-tasks", 3, *words, "--resume")) == 0
    ours, theirs = state(cut, "task03"), state(whole, "task03")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read(cut)["per_task"] == read(whole)["per_task"]


def test_a_head_is_told_how_far_features_moved_since_the_last_task(data, tmp_path, monkeypatch):
    """From the state that the last task left, of which its statistics are; what a task's beginning changes counts too:
    here its prompts begin as those of the task before."""
    told = []
    monkeypatch.setattr(NearestMeanHead, "move", lambda head, shift_D: told.append(shift_D))
    assert run(*tiny(data, tmp_path, "--num-tasks", 3, "--lr", 0.5, "--head", "ncm", "--drift", "shift", "--size", 9,
                     "--top_k", 3, "--use_prompt_mask", "--shared_prompt_pool", "--shared_prompt_key")) == 0
    options = read(tmp_path, "config.json")["options"]
    scenario = read_scenario(options)
    for task in (1, 2):
        pictures = [Image.fromarray(pixels) for pixels in scenario.tasks[task].train.pixels_NHWC]
        means = []
        for loaded in (load_run(tmp_path, task=task), load_run(tmp_path, task=task + 1)):
            images_BCHW = torch.stack([loaded.transform(picture) for picture in pictures])
            means.append(loaded.model.features(images_BCHW).mean(0))
        torch.testing.assert_close(told[task - 1], means[1] - means[0], atol=1e-4, rtol=1e-4)
        assert told[task - 1].norm() > 0.01
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    training = [row for row in log if row["kind"] in ("looked_before", "epoch", "settled")]
    task = ["looked_before", "epoch", "settled"]
    assert [row["kind"] for row in training] == [*task[1:], *task, *task]
    summary, images = read(tmp_path), sum(len(task.train) for task in scenario.tasks)
    assert summary["train_seconds"] == pytest.approx(sum(row["seconds"] for row in training), rel=0.01)
    assert summary["train_images_per_second"] * summary["train_seconds"] == pytest.approx(images), "of gradient steps"


def test_joint_training_is_the_bound_of_its_tasks(data, tmp_path):
    """The same images, steps and tests as task after task, in one stretch; one accuracy for each task."""
    one, all_at_once = tmp_path / "one", tmp_path / "joint"
    words = ("--num-tasks", 3, "--batch-size", 4, "--print-freq", 1, "--lr", 0.05)
    assert run("cifar100_linear", *tiny(data, one, *words)[1:]) == 0
    assert run("cifar100_joint_linear", *tiny(data, all_at_once, *words)[1:]) == 0
    sequential, joint = read(one), read(all_at_once)
    assert len(joint["per_task"]) == 3
    assert joint["acc@1"] == pytest.approx(sum(joint["per_task"]) / 3)
    assert "forgetting" not in joint
    assert joint["protocol"] == "nothing to choose, joint"
    assert joint["config"]["data_sha256"] == sequential["config"]["data_sha256"]
    steps = [load_checkpoint(folder / "checkpoint" / "last.pth")["optimizer"]["state"][0]["step"].item()
             for folder in (one, all_at_once)]
    assert steps[1] == 3 * steps[0] == 15, "18 images a task in batches of 4: five steps, and its optimizer begins anew"
    assert len((all_at_once / "accuracy_matrix.csv").read_text().splitlines()) == 4
    assert run("--eval", "--output_dir", all_at_once) == 0
    assert read(all_at_once, "eval_summary.json")["per_task"] == joint["per_task"]


def test_joint_training_needs_tasks_of_one_data_set(data, capsys):
    assert run(*tiny(data, "", "--joint", "--prompt_method", "dualprompt", "--head_type", "token", "--prompt_layers",
                     2)) == 2
    assert "--prompt_method dualprompt trains prompts of a task" in capsys.readouterr().err


def test_a_linear_head_is_a_linear_layer():
    head, plain = LinearHead(3, 2), torch.nn.Linear(3, 2)
    plain.load_state_dict(head.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(head(x), plain(x))
