"""Split CIFAR-100, OnePrompt through all tasks, RanPAC on features whose drift is followed.

    python main.py cifar100_drift_ranpac --data-path DIR

A method of this project, not published elsewhere: prompts go on adapting the ViT after the first task, and ridge
regression takes from each feature what features have moved by so far (docs/methods.md). Settings of cifar100_oneprompt,
with a cosine to 0, with which docs/results.md has it.
Beside one epoch's pass for the head, as in cifar100_ranpac, each task but the first takes another before it begins.
"""

from configs.cifar100_oneprompt import DEFAULTS as ONEPROMPT

DEFAULTS = ONEPROMPT | {
    "head": "ridge", "drift": "shift", "sched": "cosine", "warmup_epochs": 0, "min_lr": 0.0,
}
