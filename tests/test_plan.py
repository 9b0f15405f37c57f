"""What is forecast of a run is what then happens: the same passes over images, in the same order."""

import pytest
from lab import BASE, STREAM, Interrupting, call

import outputs
from progress import FIRST_TEST, RECALL, TEST

NO_QUERY = ("--prompt_method", "none", "--head_type", "token")
CASES = {
    "tasks": BASE,
    "both protocols at the end": (*BASE, "--eval_per_image", "final"),
    "both protocols always": (*BASE, "--eval_per_image", "always"),
    "no vote": (*BASE, "--eval_per_image", "always", "--batchwise_prompt", "false"),
    "two epochs": (*BASE, "--epochs", "2"),
    "everything trains": (*BASE, "--freeze", "--eval_per_image", "always"),
    "no queries": (*BASE, *NO_QUERY),
    "observing alone": (*BASE, *NO_QUERY, "--head", "ncm"),
    "observing after one task by gradient": (*BASE, "--head", "ridge", "--random_features", "20", "--adapt", "first"),
    "observing after one task, both protocols": (*BASE, "--head", "ncm", "--adapt", "first", "--eval_per_image",
                                                 "final"),
    "drift": (*BASE, "--head", "ncm", "--drift", "shift", "--num_tasks", "4"),
    "a stream": STREAM,
    "joint": (*BASE, "--joint"),
}


@pytest.fixture
def seen(monkeypatch) -> dict[str, list]:
    """The passes that runs expect and those that they begin; how many steps of each are done."""
    found = {"expected": [], "begun": [], "done": []}

    def expect(self, passes):
        found["expected"] += (passes := list(passes))
        original_expect(self, passes)

    def begins(self, work):
        found["begun"].append(work)
        found["done"].append(0)
        original_begins(self, work)

    def advance(self, done):
        assert done >= found["done"][-1]
        found["done"][-1] = done
        original_advance(self, done)

    original_expect, original_begins = outputs.Reporter.expect, outputs.Reporter.begins
    original_advance = outputs.Reporter.advance
    for method in (expect, begins, advance):
        monkeypatch.setattr(outputs.Reporter, method.__name__, method)
    return found


def check(seen: dict[str, list]) -> None:
    assert seen["begun"] == seen["expected"] != []
    assert seen["done"] == [work.steps for work in seen["begun"]]


@pytest.mark.parametrize("case", CASES)
def test_a_run_does_what_was_forecast(case, lab, seen):
    code, _, err = call(*lab.words(*CASES[case]), "--output_dir", "")
    assert code == 0, err
    check(seen)


def test_what_is_read_once_is_recalled_and_what_is_not_is_not(lab, seen):
    """The choice per image is another reading than the batch vote."""
    code, _, err = call(*lab.words(*CASES["observing after one task, both protocols"]), "--output_dir", "")
    assert code == 0, err
    tests = [work.kind for work in seen["begun"] if work.where.startswith("testing")]
    assert tests == [FIRST_TEST, RECALL, TEST, FIRST_TEST, TEST]


@pytest.mark.parametrize(("stop_before", "where"), [
    ("task 1/2 epoch 2/2 step 1/2", "task 1, epoch 2, step 1 of 2"),  # what was done since is lost
    ("after task 1/2", "task 1, after its 2 epochs"),
    ("task 2/2 epoch 1/2 step 1/2", "task 2, epoch 1, step 1 of 2"),
    ("\nafter ", "the end: all 2 tasks are done"),
])
def test_a_resumed_run_says_where_it_goes_on_and_does_what_is_left(stop_before, where, lab, tmp_path, seen):
    words = [*lab.words(*BASE, "--epochs", "2", "--print_freq", "1", "--eval_per_image", "always"), "--output_dir",
             tmp_path / "run"]
    code, out, _ = call(*words, "--resume", out=Interrupting(stop_before))
    assert code == 130
    assert f"nothing to resume in {tmp_path / 'run'}: the run begins" in out
    for list_ in seen.values():
        list_.clear()
    code, out, err = call(*words, "--resume")
    assert code == 0, err
    assert f"\nresuming at {where}\n" in out
    if "end" in where:
        assert seen["begun"] == seen["expected"] == []
    else:
        check(seen)
    for list_ in seen.values():
        list_.clear()
    code, out, err = call("--eval", "--output_dir", tmp_path / "run")
    assert code == 0, err
    check(seen)
