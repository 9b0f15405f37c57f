"""How good is what the head reads, before anything is trained? Nearest class mean on it, for ways to start the prompts.

    python -m benchmarks.prompt_features cifar100_l2p --data-path DIR_OR_NPZ --model ... --output_dir FILE.json

Takes the options of main.py. For each start below, the frozen ViT reads training and test images of the first two
tasks with the prompts as they start (chosen per image), and test images are put to the nearest class mean of the
head's features. No gradient, no step: differences come from the prompts' start alone. `--output_dir` names the file.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from configs.base import parse
from continual_datasets import Batches, build_scenario
from continual_datasets.transforms import EvalTransform, TrainTransform
from models import build_model, resolve_model_name
from records import environment_record, without_folders

UNIFORM = {"initializer": "uniform", "prompt_key_init": "uniform"}
SMALL = {"initializer": "flax_uniform", "prompt_key_init": "flax_uniform"}
STARTS = {
    "no prompts, cls token": {"prompt_method": "none", "head_type": "token"},
    "U(-1, 1), cls position (PyTorch)": UNIFORM | {"prompt_pos_embed": "cls", "length": 5, "top_k": 5},
    "U(-1, 1), no position": UNIFORM | {"prompt_pos_embed": "none", "length": 5, "top_k": 5},
    "U(0, 0.01), cls position": SMALL | {"prompt_pos_embed": "cls", "length": 5, "top_k": 5},
    "U(0, 0.01), no position": SMALL | {"prompt_pos_embed": "none", "length": 5, "top_k": 5},
    "U(0, 0.01), no position, N 4 L 10 (JAX)": SMALL | {"prompt_pos_embed": "none", "length": 10, "top_k": 4},
    "U(-1, 1), cls position, head reads cls": UNIFORM | {"head_type": "token", "prompt_pos_embed": "cls"},
}


class Features(torch.nn.Module):
    """Stands in place of the head and lets what it would read through."""

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        return features_BD


@torch.no_grad()
def nearest_class_mean(options: dict, scenario, batches: Batches, tasks: int) -> float:
    """Percent of the test images of the first tasks whose class mean, among those tasks' classes, is nearest."""
    model = build_model(options, scenario.num_classes, scenario.tasks_known_in_training)
    model.head = Features()
    model.eval()
    read = {part: [(model(b.images_BCHW, per_image=True).logits_BK, b.labels_B) for task in scenario.tasks[:tasks]
                   for b in batches.evaluation(getattr(task, part))] for part in ("train", "test")}
    features, labels = {}, {}
    for part, pairs in read.items():
        features[part] = F.normalize(torch.cat([f for f, _ in pairs]), dim=1)
        labels[part] = torch.cat([y for _, y in pairs])
    classes = labels["train"].unique()
    means = torch.stack([features["train"][labels["train"] == c].mean(0) for c in classes])
    nearest = classes[(features["test"] @ F.normalize(means, dim=1).T).argmax(1)]
    return 100 * (nearest == labels["test"]).float().mean().item()


def main() -> None:
    options = parse(sys.argv[1:]).options
    scenario = build_scenario(options["dataset"], options["data_path"], download=False, shuffle=options["shuffle"],
                              num_tasks=options["num_tasks"], seed=options["seed"], subsample=options["subsample"],
                              subsample_test=options["subsample_test"])
    norm = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if options["input_norm"] == "imagenet" else (None, None)
    device = torch.device("cpu")
    batches = Batches(TrainTransform(options["input_size"]), EvalTransform(options["input_size"], *norm),
                      batch_size=options["batch_size"], seed=options["seed"], device=device)
    found = {}
    for name, changes in STARTS.items():
        found[name] = nearest_class_mean(options | changes, scenario, batches, tasks=2)
        print(f"{found[name]:6.1f}  {name}", flush=True)
    record = {"nearest_class_mean": found, "model": resolve_model_name(options["model"])[0],
              "classes": sum(len(task.classes) for task in scenario.tasks[:2]), "options": options,
              **environment_record(device)}
    record = without_folders(record)
    Path(options["output_dir"]).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
