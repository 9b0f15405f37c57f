"""The yardstick computes what the program computes, and the benchmark's script measures both and writes its table."""

import json
import subprocess
import sys

import pytest
import torch
from fixtures import ROOT

from benchmarks.naive import LENGTH, POOL, PULL, TOP_K, NaiveL2P, NaiveTrainer
from benchmarks.speed import random_images, read
from models.prompted_vit import PromptedViT
from prompt import PromptPool


def test_the_naive_way_is_the_same_model():
    torch.manual_seed(0)
    naive = NaiveL2P("test_vit", 6, input_size=32).eval()
    generator = torch.Generator().manual_seed(1)
    pool = PromptPool(naive.vit.embed_dim, POOL, LENGTH, TOP_K, initializer="uniform", key_initializer="uniform",
                      trained_key=True, batchwise=True, task_mask=False, share_prompts=False, share_keys=False,
                      pull_coefficient=PULL, generator=generator)
    ours = PromptedViT(naive.vit, pool, naive.head, head_type="prompt", freeze=("backbone",)).eval()
    with torch.no_grad():
        pool.prompts_MLD.copy_(naive.prompts_MLD)
        pool.keys_MD.copy_(naive.keys_MD)
    images_BCHW = torch.randn(5, 3, 32, 32, generator=generator)
    logits_BK, pull = naive(images_BCHW)
    output = ours(images_BCHW)
    torch.testing.assert_close(output.logits_BK, logits_BK, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.aux_loss, -PULL * pull, atol=1e-5, rtol=0)
    trained = [naive.prompts_MLD, naive.keys_MD, naive.head.weight]
    expected = torch.autograd.grad(logits_BK.square().sum() - pull, trained)
    found = torch.autograd.grad(output.logits_BK.square().sum() + output.aux_loss / PULL,
                                [pool.prompts_MLD, pool.keys_MD, naive.head.weight])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_the_naive_way_learns():
    torch.manual_seed(0)
    trainer = NaiveTrainer(NaiveL2P("test_vit", 8, input_size=32), random_images(8, 4), [0, 1, 2, 3], batch_size=4,
                           input_size=32, device=torch.device("cpu"), num_workers=0)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    assert trainer.train_step() == trainer.test_step() == 4
    moved = [name for (name, now), then in zip(trainer.model.named_parameters(), before, strict=True)
             if not torch.equal(now, then)]
    assert moved == ["prompts_MLD", "keys_MD", "head.weight", "head.bias"]


@pytest.fixture
def measured(tmp_path):
    (tmp_path / "README.md").write_text("before\n<!-- speed tables --><!-- end of speed tables -->\nbehind\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--model", "test_vit", "--input_size", "32", "--batch_size", "8",
         "--device", "cpu", "--turns", "2", "--ways", "naive, fp32", "fp32", "--num_workers", "1", "--records",
         str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.long
def test_the_script_measures_and_writes_its_table(measured):
    [path] = measured.glob("speed_*.json")
    record = json.loads(path.read_text())
    assert list(record["ways"]) == ["naive, fp32", "fp32"]
    for way in record["ways"].values():
        assert {kind: len(rates) for kind, rates in way["rates"].items()} == {"training": 2, "seen": 2}
        assert min(min(rates) for rates in way["rates"].values()) > 0
    assert record["ways"]["fp32"]["checkpoint_bytes"] < record["ways"]["naive, fp32"]["checkpoint_bytes"]
    assert record["startup_seconds"] > 0
    assert record["versions"]["torch"] == torch.__version__
    text = (measured / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    assert "| naive, fp32 |" in text
    assert "| fp32 |" in text


@pytest.mark.parametrize(("words", "said"), [
    (("--whole_run", "naive, fp32"), "--whole_run: invalid choice"),
    (("--reports", "naive, fp32"), "--reports: invalid choice"),
    (("--ways", "fp32"), "all are compared with 'naive, fp32'")])
def test_what_cannot_be_measured_is_refused_first(words, said, capsys):
    with pytest.raises(SystemExit):
        read(words)
    assert said in capsys.readouterr().err
