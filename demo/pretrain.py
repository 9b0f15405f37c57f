"""Pretrain the demo's tiny ViT on glyph classes the demo never shows, and keep the backbone.

    python -m demo.pretrain

Supervised classification, every step on images never seen before. With many classes from the first step on the loss
stays at chance for most of the run; with few it falls at once, and what was learned then carries over to many. So the
first `--first-steps` steps use the first `--first-classes` classes only.

The weights go to `--output` as float16 safetensors, without the head; the file's metadata says how they were made and
what they reach. Training draws its images from glyph seeds of a billion and more, every test from seeds below.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from continual_datasets.glyphs import DEMO_CLASSES, PRETRAIN_CLASSES, glyph_images
from models.glyph_vit import GLYPH_VIT

WEIGHTS = Path(__file__).with_name("glyph_vit.safetensors")
FIRST_TRAINING_SEED = 10**9
TRANSFER_SETS, CLASSES_PER_SET = 5, 20


def main() -> None:
    args = parse(sys.argv[1:])
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    backbone = timm.create_model("glyph_vit_tiny")
    head = nn.Linear(backbone.num_features, args.classes)
    start, cpu_start = time.perf_counter(), time.process_time()
    train(backbone, head, args)
    seconds, cpu_seconds = round(time.perf_counter() - start), round(time.process_time() - cpu_start)

    # Measured on what is saved: the rounding to float16 included.
    state = {name: value.half().contiguous() for name, value in backbone.state_dict().items()}
    backbone.load_state_dict(state)
    backbone.eval()
    facts = {
        "command": shlex.join(["python", "-m", "demo.pretrain", *sys.argv[1:]]),
        "options": {name: value for name, value in vars(args).items() if name != "output"},
        "model": "glyph_vit_tiny",
        "model_kwargs": GLYPH_VIT,
        "pretraining_classes": [PRETRAIN_CLASSES[0], PRETRAIN_CLASSES[args.classes - 1]],
        "accuracy_new_samples": held_out_accuracy(backbone, head, PRETRAIN_CLASSES[: args.classes]),
        "ncm_accuracy_unseen_classes": transfer_accuracy(backbone),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__},
    }
    save_file(state, args.output, {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
    print(json.dumps(facts, indent=1))


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", type=int, default=512, help="glyph classes to tell apart")
    parser.add_argument("--first-classes", type=int, default=64, help="classes of the first steps")
    parser.add_argument("--first-steps", type=int, default=500, help="steps before all classes come in")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak, after the warm-up; a cosine to 0 follows")
    parser.add_argument("--warmup-steps", type=int, default=200)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    return parser.parse_args(words)


def train(backbone: nn.Module, head: nn.Linear, args: argparse.Namespace) -> None:
    """AdamW on the cross-entropy of all classes so far; weight decay on matrices only."""
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    weights = [*backbone.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / args.warmup_steps) * 0.5 * (1 + math.cos(math.pi * step / args.steps)),
    )
    backbone.train()
    for step in range(args.steps):
        classes = args.first_classes if step < args.first_steps else args.classes
        images_BCHW, labels_B = training_batch(classes, step, args)
        logits_BK = head(backbone(images_BCHW))[:, :classes]
        loss = F.cross_entropy(logits_BK, labels_B)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        if (step + 1) % 100 == 0:
            accuracy = (logits_BK.argmax(1) == labels_B).float().mean().item()
            print(f"step {step + 1}  classes {classes}  loss {loss.item():.3f}  batch {accuracy:.1%}", flush=True)


def training_batch(classes: int, step: int, args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """New images, about `batch_size`, of as many of the first `classes` classes as fit: a function of (seed, step)."""
    per_class = max(1, args.batch_size // classes)
    chosen = np.random.default_rng((args.seed, step)).permutation(classes)[: args.batch_size]
    glyph_seed = FIRST_TRAINING_SEED * (args.seed + 1) + step
    images_NHWC, positions_N = glyph_images([PRETRAIN_CLASSES[c] for c in chosen], per_class, glyph_seed)
    return as_input(images_NHWC), torch.from_numpy(chosen[positions_N])


def as_input(images_NHWC: np.ndarray) -> torch.Tensor:
    """uint8 pixels to what the model reads: float32 [N, 3, 32, 32] in [0, 1], no mean or standard deviation."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def features(backbone: nn.Module, images_NHWC: np.ndarray) -> torch.Tensor:
    """The cls token after the final norm, [N, D]."""
    return torch.cat([backbone(images_BCHW) for images_BCHW in as_input(images_NHWC).split(256)])


def held_out_accuracy(backbone: nn.Module, head: nn.Linear, classes: Sequence[int]) -> float:
    """Percent right on ten new samples of every pretraining class."""
    images_NHWC, labels_N = glyph_images(classes, 10, seed=0)
    with torch.inference_mode():
        predicted_N = head(features(backbone, images_NHWC)).argmax(1)
    return round(100 * (predicted_N.numpy() == labels_N).mean().item(), 2)


def transfer_accuracy(backbone: nn.Module) -> float:
    """Percent right by nearest class mean among 20 unseen classes: 50 images for a mean, 50 to test, five such sets."""
    correct = []
    for index in range(TRANSFER_SETS):
        classes = DEMO_CLASSES[index * CLASSES_PER_SET : (index + 1) * CLASSES_PER_SET]
        features_ND = features(backbone, glyph_images(classes, 50, seed=1)[0])
        means_KD = features_ND.view(CLASSES_PER_SET, 50, -1).mean(1)
        images_NHWC, labels_N = glyph_images(classes, 50, seed=2)
        nearest_N = torch.cdist(features(backbone, images_NHWC), means_KD).argmin(1)
        correct.append((nearest_N.numpy() == labels_N).mean().item())
    return round(100 * float(np.mean(correct)), 2)


if __name__ == "__main__":
    main()
