"""Every prompt method, control and baseline, a row each: test_methods.py holds all of them to the same promises.

Whoever adds a method or a head adds a row. A check that cannot hold for a row needs a field here that says why.
"""

from collections.abc import Callable
from dataclasses import dataclass

import timm
from fixtures import ROOT

import models  # noqa: F401 -- registers the demo's backbone with timm

WIDTH = 128
"""D of the demo's ViT, which has 4 blocks with 4 heads and on whose pretrained weights every row runs."""
CLASSES, TASKS, BATCH = 6, 3, 4
WORDS = ("--model", "glyph_vit_tiny", "--init-checkpoint", ROOT / "demo" / "glyph_vit.safetensors", "--input-size", 32,
         "--batch-size", BATCH, "--epochs", 1, "--num-workers", 0, "--device", "cpu", "--print-freq", 1)


def linear_head() -> dict[str, int]:
    return {"head.weight": CLASSES * WIDTH, "head.bias": CLASSES}


def pool(size: int, vectors: int, keys: bool = True) -> dict[str, int]:
    return linear_head() | {"prompt.prompts_MLD": size * vectors * WIDTH} | ({"prompt.keys_MD": size * WIDTH} if keys
                                                                             else {})


def prefixes(name: str, vectors: int) -> dict[str, int]:
    """As many keys as values."""
    return {f"prompt.{name}.keys_YPHE": vectors * WIDTH, f"prompt.{name}.values_YPHE": vectors * WIDTH}


def whole_backbone() -> dict[str, int]:
    return {f"backbone.{name}": values.numel() for name, values in timm.create_model("glyph_vit_tiny"
                                                                                     ).named_parameters()}


NO_PROMPTS = ("--prompt_method", "none", "--head_type", "token")
L2P = ("--size", 5, "--length", 2, "--top_k", 2)


@dataclass(frozen=True)
class Method:
    name: str
    words: tuple[object, ...]
    """Of its command line, the experiment first; those above follow."""
    trains: Callable[[], dict[str, int]]
    """Names and sizes of what trains; nothing: it learns without gradient."""
    protocol: str = "nothing to choose"
    """How prompts are chosen in a test, as every result says it."""
    buffers: tuple[str, ...] = ()
    """What a checkpoint holds beside what trains."""
    chooses: bool = False
    """Whether prompts are chosen from a pool, so that accuracy under a choice per image is reported too."""
    queries: bool = False
    draws: bool = False
    """Whether its training draws, so that several processes cannot agree with one."""
    in_a_stream: str | None = None
    """What refuses it in a stream without tasks; None: it runs there."""
    frozen: bool = True
    """Whether the backbone stays as it is."""

    def __str__(self) -> str:
        return self.name


RIDGE = ("head.weights_MK", "head.seen_K", "head.ridge")
NO_TASKS = "--schedule gaussian has no tasks, of which other options need to know: add"
VOTE = f"batch vote over {BATCH}"
METHODS = [
    Method("l2p", ("cifar100_l2p", *L2P), lambda: pool(5, 2), VOTE, chooses=True, queries=True),
    Method("deep l2p", ("cifar100_l2p", *L2P, "--prompt_layers", 0, 2, 3), lambda: pool(5, 3 * 2), VOTE, chooses=True,
           queries=True),
    Method("random choice", ("cifar100_l2p", *L2P, "--prompt_choice", "random"), lambda: pool(5, 2, keys=False),
           f"random prompts, {VOTE}", chooses=True, draws=True),
    Method("fixed choice", ("cifar100_l2p", *L2P, "--prompt_choice", "fixed"), lambda: pool(5, 2, keys=False),
           "the same prompts for all", chooses=True),
    Method("no pool", ("cifar100_l2p", "--no-prompt_pool", "--length", 3, "--prompt_layers", 0, 1),
           lambda: linear_head() | {"prompt.prompt_LD": 2 * 3 * WIDTH}),
    Method("dualprompt", ("cifar100_dualprompt", "--prompt_layers", 2, 3, "--length", 3),
           lambda: linear_head() | prefixes("general", 2 * 5) | {
               "prompt.prompt_keys_MYPHE": TASKS * 2 * 3 * WIDTH, "prompt.prompt_values_MYPHE": TASKS * 2 * 3 * WIDTH,
               "prompt.keys_MD": TASKS * WIDTH},
           VOTE, chooses=True, queries=True,
           in_a_stream=f"{NO_TASKS} --prompt_method l2p"),
    Method("coda", ("cifar100_coda", "--prompt_layers", 0, 3, "--size", 7, "--length", 4),
           lambda: linear_head() | {"prompt.prompts_YMLD": 2 * 7 * 4 * WIDTH, "prompt.keys_YMD": 2 * 7 * WIDTH,
                                    "prompt.attention_YMD": 2 * 7 * WIDTH},
           "prompts weighted per image", buffers=("prompt.bounds",), queries=True,
           in_a_stream=f"{NO_TASKS} --prompt_method l2p"),
    Method("oneprompt", ("cifar100_oneprompt", "--prompt_layers", 2, 3, "--length", 4),
           lambda: linear_head() | prefixes("general", 2 * 5) | prefixes("special", 2 * 4)),
    Method("no prompts", ("cifar100_linear",), linear_head),
    Method("class means", ("cifar100_ncm",), dict, buffers=("head.sums_KD", "head.counts_K"),
           in_a_stream=f"{NO_TASKS} --head linear"),
    Method("ridge", ("cifar100_ranpac", "--random_features", 20), dict, buffers=RIDGE,
           in_a_stream=f"{NO_TASKS} --head linear"),
    Method("l2p, then ridge", ("cifar100_l2p", *L2P, "--head", "ridge", "--random_features", 20, "--adapt", "first"),
           lambda: {name.replace("head.", "head.classifier."): size for name, size in pool(5, 2).items()}, VOTE,
           buffers=RIDGE, chooses=True, queries=True,
           in_a_stream=f"{NO_TASKS} --head linear"),
    Method("oneprompt, drift followed, ridge", ("cifar100_oneprompt", "--prompt_layers", 2, 3, "--length", 4, "--head",
                                                "ridge", "--random_features", 20, "--drift", "shift"),
           lambda: {name.replace("head.", "head.classifier."): size for name, size in linear_head().items()}
           | prefixes("general", 2 * 5) | prefixes("special", 2 * 4),
           buffers=(*RIDGE, "head.moved_D"), in_a_stream=f"{NO_TASKS} --head linear --drift none"),
    Method("aligned", ("cifar100_linear", "--align", "--align_samples", 9, "--align_epochs", 1), linear_head,
           in_a_stream=f"{NO_TASKS} --no-align"),
    Method("fine-tuning", ("cifar100_finetune",), lambda: linear_head() | whole_backbone(), frozen=False),
]
