"""What docs/methods.md promises: a new prompt method is a file, an experiment and a word of the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures import ROOT, TINY, write_npz

pytestmark = pytest.mark.long

METHOD = '''"""One vector for every image that drifts from task to task: a sample."""

import torch
from torch import nn

from prompt import Host, NothingChosen, Prompts


class Drifting(NothingChosen):
    num_tokens, layers = 1, frozenset({0})

    def __init__(self, dim: int, tasks: int):
        super().__init__()
        self.vector_D = nn.Parameter(torch.zeros(dim))
        self.drift_TD = nn.Parameter(torch.zeros(tasks, dim))
        self.register_buffer("last", torch.tensor(0))

    def begin_task(self, task: int) -> None:
        self.last.fill_(task)

    def forward(self, query_BD, batch_size, task=None, per_image=False) -> Prompts:
        vector_D = self.vector_D + self.drift_TD[: self.last + 1].sum(0)
        return Prompts({0: vector_D.expand(batch_size, 1, -1)})


def build(host: Host, *, length: int) -> Drifting:
    return Drifting(host.dim, host.num_tasks)
'''
EXPERIMENT = '''"""A sample."""

DEFAULTS = {"prompt_method": "drifting"}
'''
WORDS = '("l2p", "dualprompt", "coda", "oneprompt", "none")'


def test_a_new_method_is_a_file_an_experiment_and_a_word(tmp_path):
    code = tmp_path / "code"
    shutil.copytree(ROOT, code, symlinks=True, ignore=shutil.ignore_patterns(
        ".git", ".venv", "output", "local_datasets", "tests", "results", "__pycache__"))
    (code / "prompt_methods" / "drifting.py").write_text(METHOD)
    (code / "configs" / "drifting.py").write_text(EXPERIMENT)
    options = code / "configs" / "base.py"
    assert options.read_text().count(WORDS) == 1
    options.write_text(options.read_text().replace(WORDS, WORDS.replace('"none"', '"drifting", "none"')))

    data = write_npz(tmp_path / "data.npz")
    command = [sys.executable, "main.py", "drifting", "--dataset", "Split-NPZ", "--data-path", str(data), "--num_tasks",
               "2", *TINY, "--output_dir", str(tmp_path / "run"), "--device", "cpu"]
    for words in (command, [sys.executable, "main.py", "--eval", "--output_dir", str(tmp_path / "run")]):
        done = subprocess.run(words, cwd=code, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    found = [json.loads((Path(tmp_path) / "run" / name).read_text()) for name in ("summary.json", "eval_summary.json")]
    assert found[0]["acc@1"] == found[1]["acc@1"]
    assert found[0]["protocol"] == "nothing to choose, class-incremental"
    shown = subprocess.run([sys.executable, "main.py", "--list"], cwd=code, capture_output=True, text=True).stdout
    assert "drifting" in shown
