"""What do prompts do to a frozen ViT before anything is trained? Measured for ways to start the prompts.

    python -m benchmarks.prompt_features cifar100_l2p --data-path DIR_OR_NPZ --model NAME --output_dir FILE.json

Takes the options of main.py. For each start below, the frozen ViT reads training and test images of the first two
tasks with the prompts as they start (chosen per image). No gradient, no step. Measured are, on what the head reads, the
accuracy of the nearest class mean on the test images; and on the cls token behind the prompts, its cosine to the cls
token without prompts (mean over test images), and linear CKA between the two (Kornblith et al., ICML 2019; 1: the same
features but for rotation and scale). Norms of the ViT's own tokens stand beside them. `--output_dir` names the file.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from build import build_batches
from configs.command import parse
from continual_datasets import Batches, Scenario
from distributed import Processes
from models import PromptedViT, build_model, resolve_model_name
from records import environment_record, without_folders

UNIFORM = {"initializer": "uniform", "prompt_key_init": "uniform"}
SMALL = {"initializer": "flax_uniform", "prompt_key_init": "flax_uniform"}


def nothing(model: PromptedViT) -> Tensor | float:
    return 0.0


def random_vector(model: PromptedViT) -> Tensor:
    """A direction that means nothing to the ViT, as long as the cls token's position embedding."""
    position_D = model.backbone.pos_embed[0, 0]
    direction_D = torch.randn(position_D.shape, generator=torch.Generator().manual_seed(0))
    return F.normalize(direction_D, dim=0) * position_D.norm()


def patch_position(model: PromptedViT) -> Tensor:
    """The position embedding of the patch in the middle."""
    positions_TD = model.backbone.pos_embed[0, 1:]
    return positions_TD[len(positions_TD) // 2]


# Name -> the options, and what is added to every prompt vector besides.
STARTS: dict[str, tuple[dict[str, Any], Callable[[PromptedViT], Tensor | float]]] = {
    "no prompts, cls token": ({"prompt_method": "none", "head_type": "token"}, nothing),
    "U(-1, 1), cls position (PyTorch)": (UNIFORM | {"prompt_pos_embed": "cls"}, nothing),
    "U(-1, 1), no position": (UNIFORM | {"prompt_pos_embed": "none"}, nothing),
    "U(0, 0.01), cls position": (SMALL | {"prompt_pos_embed": "cls"}, nothing),
    "U(0, 0.01), no position": (SMALL | {"prompt_pos_embed": "none"}, nothing),
    "U(0, 0.01), no position, N 4 L 10 (JAX)": (SMALL | {"prompt_pos_embed": "none", "length": 10, "top_k": 4},
                                                nothing),
    "U(-1, 1), random vector of the cls position's norm": (UNIFORM | {"prompt_pos_embed": "none"}, random_vector),
    "U(-1, 1), position of a patch": (UNIFORM | {"prompt_pos_embed": "none"}, patch_position),
    "U(-1, 1), cls position, head reads cls": (UNIFORM | {"head_type": "token", "prompt_pos_embed": "cls"}, nothing),
}


@torch.no_grad()
def measure(options: dict[str, Any], adds: Callable[[PromptedViT], Tensor | float], scenario: Scenario,
            tasks: int) -> dict[str, float]:
    model = build_model(options, scenario.num_classes, scenario.tasks_known_in_training).eval()
    if model.prompt.layers:
        model.prompt.prompts_MLD += adds(model)
    batches = build_batches(options, model, torch.device("cpu"), Processes())
    read = {part: read_all(model, batches, [getattr(task, part) for task in scenario.tasks[:tasks]])
            for part in ("train", "test")}
    (features_BD, labels_B), (tests_BD, expected_B) = read["train"][:2], read["test"][:2]
    classes = labels_B.unique()
    means_KD = torch.stack([F.normalize(features_BD[labels_B == c], dim=1).mean(0) for c in classes])
    nearest_B = classes[(F.normalize(tests_BD, dim=1) @ F.normalize(means_KD, dim=1).T).argmax(1)]
    query_BD, cls_BD = read["test"][2:]
    return {"nearest_class_mean": 100 * (nearest_B == expected_B).double().mean().item(),
            "cls_cosine": F.cosine_similarity(query_BD, cls_BD).mean().item(), "cls_cka": cka(query_BD, cls_BD)}


def read_all(model: PromptedViT, batches: Batches, parts: list) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the head reads, labels, and the cls tokens without and with prompts, of all images of `parts`."""
    rows = []
    head_type = model.head_type
    for part in parts:
        for batch in batches.evaluation(part):
            features_BD = model.features(batch.images_BCHW)
            model.head_type = "token"
            rows.append((features_BD, batch.labels_B, model.query(batch.images_BCHW),
                         model.features(batch.images_BCHW)))
            model.head_type = head_type
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def cka(one_BD: Tensor, other_BD: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same images, 0 to 1."""
    one_BD, other_BD = ((features - features.mean(0)).double() for features in (one_BD, other_BD))
    shared = (one_BD.T @ other_BD).norm() ** 2
    return (shared / ((one_BD.T @ one_BD).norm() * (other_BD.T @ other_BD).norm())).item()


@torch.no_grad()
def norms(options: dict[str, Any], scenario: Scenario) -> dict[str, float]:
    """Lengths of the ViT's own tokens, and the cosine of the cls token to its position embedding."""
    model = build_model(options, scenario.num_classes, scenario.tasks_known_in_training).eval()
    batches = build_batches(options, model, torch.device("cpu"), Processes())
    vit, images_BCHW = model.backbone, next(iter(batches.evaluation(scenario.tasks[0].test))).images_BCHW
    cls_D, position_D = vit.cls_token[0, 0], vit.pos_embed[0, 0]
    return {"cls_token": cls_D.norm().item(), "cls_position": position_D.norm().item(),
            "cls_token_to_its_position_cosine": F.cosine_similarity(cls_D, position_D, dim=0).item(),
            "patch_position_mean": vit.pos_embed[0, 1:].norm(dim=1).mean().item(),
            "patch_without_position_mean": vit.patch_embed(images_BCHW).norm(dim=-1).mean().item()}


def main() -> None:
    from build import read_scenario

    options = parse(sys.argv[1:]).options
    scenario = read_scenario(options)
    found = {"norms": norms(options, scenario), "starts": {}}
    print(found["norms"], flush=True)
    for name, (changes, adds) in STARTS.items():
        found["starts"][name] = measure(options | changes, adds, scenario, tasks=2)
        print("".join(f"{value:8.2f}" for value in found["starts"][name].values()), f" {name}", flush=True)
    record = found | {"model": resolve_model_name(options["model"])[0], "options": options,
                      "classes": sum(len(task.classes) for task in scenario.tasks[:2]),
                      **environment_record(torch.device("cpu"))}
    Path(options["output_dir"]).write_text(json.dumps(without_folders(record), indent=1) + "\n")


if __name__ == "__main__":
    main()
