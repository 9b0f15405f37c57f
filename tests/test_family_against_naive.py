"""Every prompt method against its naive version (naive_family.py): logits, loss and gradients; and each image alone.

A case is the words of a command line; the method is built from them as the program does it.
"""

import functools

import naive_family
import naive_l2p as naive
import pytest
import torch
from tiny_vits import SMALL, TINY_VITS, images_for, tiny_vit
from torch import nn

from configs.command import parse
from models.prompted_vit import PromptedViT
from models.trunk import run_trunk
from prompt import FixedPrompt, Host, PromptPool
from prompt_methods import build_prompt_method
from prompt_methods.coda import CodaPrompt
from prompt_methods.dualprompt import DualPrompt
from prompt_methods.oneprompt import OnePrompt
from utils import random_generator

CLASSES, TASKS, LAST = 7, 3, SMALL["depth"] - 1
L2P = "--size 6 --length 2 --top_k 3"
CASES = {  # the tiny ViTs have the layers 0, 1, 2
    "dualprompt": "--prompt_method dualprompt --g_prompt_layers 0 --g_prompt_length 2 --prompt_layers 1 2 --length 3 "
                  "--pull_constraint_coeff 0.5",
    "dualprompt, shared in the middle and at the end": "--prompt_method dualprompt --g_prompt_layers 2 1 "
                  "--g_prompt_length 3 --prompt_layers 0 --length 1 --no-pull_constraint",
    "coda": "--prompt_method coda --prompt_layers 0 2 --size 8 --length 4 --orthogonality 0.3",
    "coda without a penalty": "--prompt_method coda --prompt_layers 1 --size 8 --length 2 --orthogonality 0",
    "oneprompt": "--prompt_method oneprompt --g_prompt_layers 1 --g_prompt_length 2 --prompt_layers 0 2 --length 4",
    "deep l2p": f"{L2P} --prompt_layers 0 1 2",
    "l2p in the middle": f"{L2P} --prompt_layers 1",
    "l2p in the last block": f"{L2P} --prompt_layers 2",
    "deep l2p without keys": f"{L2P} --prompt_layers 0 2 --no-prompt_key",
    "a fixed choice": f"{L2P} --prompt_layers 0 1 --prompt_choice fixed",
    "a random choice": f"{L2P} --prompt_layers 0 1 --prompt_choice random",
    "a pool of one": "--size 1 --length 2 --top_k 1 --prompt_layers 0 1",
    "deep, no pool": "--no-prompt_pool --length 2 --prompt_layers 0 2",
}
IN_EVERY_VIT = ("dualprompt", "coda", "oneprompt", "deep l2p")
OTHER_HEAD_TYPES = [(case, head_type) for case in ("deep l2p", "l2p in the last block")
                    for head_type in ("prompt", "gap", "token+prompt")] + [("dualprompt", "gap"), ("coda", "gap")]


def build(case: str, vit: str = "plain", head_type: str = "token", dtype: torch.dtype = torch.float64, **changes
          ) -> PromptedViT:
    backbone = tiny_vit(vit, dtype)
    options = parse(["cifar100_l2p", "--head_type", "token", "--pull_constraint_coeff", "0.5", *CASES[case].split()]
                    ).options | changes
    attention = backbone.blocks[0].attn
    host = Host(dim=backbone.embed_dim, depth=len(backbone.blocks), num_heads=attention.num_heads,
                head_dim=attention.head_dim, num_tasks=TASKS, generator=functools.partial(random_generator, 3))
    prompt = build_prompt_method(options["prompt_method"], options, host)
    if isinstance(prompt, CodaPrompt):
        trained_away(prompt)
    head = nn.Linear(backbone.embed_dim, CLASSES)
    for values in head.parameters():
        nn.init.normal_(values, std=0.3, generator=random_generator(3, "head"))
    return PromptedViT(backbone, prompt, head, head_type=head_type, prompt_pos_embed="none",
                       freeze=("backbone",)).to(dtype).train()


@torch.no_grad()
def trained_away(prompt: CodaPrompt) -> None:
    """Components of task 0 as training leaves them, neither orthogonal nor of length 1."""
    end = prompt.bounds_of(0)[1]
    for parameter in prompt.parameters():
        parameter[:, :end] += 0.3 * torch.randn(parameter[:, :end].shape, generator=random_generator(4))


# ---- the naive version of a model's prompts ----
def prefix_of(keys_YPHE, values_YPHE, layers) -> dict[int, naive_family.Prefix]:
    return {layer: (keys_YPHE[place], values_YPHE[place]) for place, layer in enumerate(layers)}


def naive_prompts(model: PromptedViT, images, task: int | None, per_image: bool):
    """What each image gets, and what the method adds to the loss (0 where nothing)."""
    prompt, query_BD = model.prompt, None
    if prompt.needs_query:
        query_BD = naive.query(model.backbone, images)
    if isinstance(prompt, DualPrompt):
        general = prefix_of(prompt.general.keys_YPHE, prompt.general.values_YPHE, prompt.general.layers)
        special = [prefix_of(keys, values, prompt.layers_in_order)
                   for keys, values in zip(prompt.prompt_keys_MYPHE, prompt.prompt_values_MYPHE, strict=True)]
        given, pull = naive_family.dualprompt(query_BD, general, special, prompt.keys_MD, task,
                                              prompt.votes and not per_image)
        return given, -prompt.pull_coefficient * pull
    if isinstance(prompt, CodaPrompt):
        components = {layer: (prompt.prompts_YMLD[place], prompt.keys_YMD[place], prompt.attention_YMD[place])
                      for place, layer in enumerate(prompt.layers_in_order)}
        first, end = prompt.bounds.tolist()
        given, penalty = naive_family.coda(query_BD, components, first, end, model.backbone.blocks[0].attn.num_heads)
        return given, prompt.orthogonality * penalty if task is not None else 0.0
    if isinstance(prompt, OnePrompt):
        general, special = (prefix_of(part.keys_YPHE, part.values_YPHE, part.layers)
                            for part in (prompt.general, prompt.special))
        return naive_family.oneprompt(len(images), general, special), 0.0

    if isinstance(prompt, FixedPrompt):
        whole = {layer: prompt.prompt_LD[place * prompt.length:(place + 1) * prompt.length]
                 for place, layer in enumerate(prompt.layers_in_order)}
        return naive_family.deep_l2p([[0]] * len(images), [whole]), 0.0
    return naive_pool(prompt, query_BD, len(images), per_image)


def naive_pool(prompt: PromptPool, query_BD, images: int, per_image: bool):
    pool = [{layer: prompt_LD[place * prompt.length:(place + 1) * prompt.length]
             for place, layer in enumerate(prompt.layers_in_order)} for prompt_LD in prompt.prompts_MLD]
    batchwise, added = prompt.batchwise and not per_image, 0.0
    if prompt.choice == "nearest":
        keys_MD = prompt.prompts_MLD.mean(dim=1) if prompt.keys_MD is None else prompt.keys_MD
        chosen = naive.choose(query_BD, keys_MD, prompt.top_k, batchwise)
        similarity_BM = naive.cosine(query_BD, keys_MD)
        pull = sum(similarity_BM[b, m] for b, picks in enumerate(chosen) for m in picks) / images
        added = -prompt.pull_coefficient * pull
    elif prompt.choice == "random":  # the same scores: the caller has set the seed
        chosen = naive_family.ranked(torch.rand(images, prompt.pool_size), prompt.top_k)
        if batchwise:
            chosen = [naive_family.most_picked(chosen, prompt.pool_size, prompt.top_k)] * images
    else:
        chosen = [list(range(prompt.top_k))] * images
    return naive_family.deep_l2p(chosen, pool), added


def both(model: PromptedViT, images, task: int | None = None, per_image: bool = False):
    """(logits, what is added to the loss) of the program and of the naive version, from the same random numbers."""
    torch.manual_seed(11)
    output = model(images, task=task, per_image=per_image)
    torch.manual_seed(11)
    given, added = naive_prompts(model, images, task, per_image)
    logits = naive_family.forward(model.backbone, images, given, model.head, model.head_type, model.prompt_pos_embed)
    return (output.logits_BK, 0.0 if output.aux_loss is None else output.aux_loss), (logits, added)


# ---- training ----
def compare_training(model: PromptedViT, task: int, count: int = 5) -> None:
    images = images_for(model.backbone, count, dtype=torch.float64)
    labels = torch.tensor([1, 2, 1, 3, 2])[:count]
    (logits, added), (expected_logits, expected_added) = both(model, images, task)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=0)
    outside = torch.ones(CLASSES, dtype=torch.bool)
    outside[[1, 2, 3]] = False
    loss = nn.functional.cross_entropy(logits.masked_fill(outside, -torch.inf), labels) + added
    expected_loss = naive.loss(expected_logits, labels, [1, 2, 3], 0.0, 0.0) + expected_added
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=0)
    names, parameters = zip(*model.trained_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(expected_loss, parameters)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
        pulled = name != "prompt.keys_MD" or model.prompt.pull_coefficient > 0
        assert (theirs.abs().max() > 1e-4) == pulled, f"{name}: a gradient of zero would agree with anything"


@pytest.mark.parametrize("case", CASES)
def test_training_in_the_first_task_and_in_a_later_one(case):
    model = build(case)
    compare_training(model, 0)
    model.prompt.begin_task(1)
    compare_training(model, 1)


@pytest.mark.parametrize("case", IN_EVERY_VIT)
@pytest.mark.parametrize("vit", [vit for vit in TINY_VITS if vit != "plain"])
def test_every_kind_of_vit(vit, case):
    model = build(case, vit)
    model.prompt.begin_task(1)
    compare_training(model, 1, count=2)


@pytest.mark.parametrize(("case", "head_type"), OTHER_HEAD_TYPES)
def test_whatever_the_head_reads(case, head_type):
    compare_training(build(case, head_type=head_type), 0, count=2)


@pytest.mark.parametrize("vit", ["dinov2 with registers", "qk-norm and LayerScale"])
def test_what_joins_late_among_registers(vit):
    compare_training(build("deep l2p", vit, head_type="token+prompt"), 0, count=2)


def test_only_vectors_before_the_first_block_have_a_position():
    model = build("deep l2p", head_type="prompt")
    model.prompt_pos_embed = "cls"
    compare_training(model, 0, count=2)


# ---- test ----
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_evaluation_by_vote_and_per_image(case, dtype):
    """After a second task was begun, so that a test has more than one E-prompt, or components of two tasks."""
    model = build(case, dtype=dtype)
    model.prompt.begin_task(1)
    images = images_for(model.backbone, dtype=dtype)
    logits = []
    for per_image in (False, True):
        (found, _), (expected, _) = both(model.eval(), images, per_image=per_image)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        logits.append(found)
    differ = (logits[0] - logits[1]).abs().max() > 1e-3
    assert differ == (model.prompt.votes and case != "a pool of one"), "the protocols differ where there is a vote"


# ---- each image alone ----
@pytest.mark.parametrize("task", [None, 1])
@pytest.mark.parametrize("case", CASES)
def test_an_image_does_not_hang_on_its_batch_mates(case, task):
    """DualPrompt's first PyTorch code reshapes keys, values, layers and images into each other, and was copied often.

    Chosen per image: in a test of every method, and in training of those without a vote there.
    """
    changes = {} if task is None else {"batchwise_prompt": False}
    model = build(case, **changes)
    model.prompt.begin_task(1)
    images = images_for(model.backbone, dtype=torch.float64)
    torch.manual_seed(5)
    together = model(images, task=task, per_image=True).logits_BK
    torch.manual_seed(5)
    alone = torch.cat([model(image[None], task=task, per_image=True).logits_BK for image in images])
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)
    order = [3, 0, 4, 1, 2]
    if not model.prompt.draws:
        torch.testing.assert_close(model(images[order], task=task, per_image=True).logits_BK, together[order],
                                   atol=1e-10, rtol=0)


@pytest.mark.parametrize(("share_prompts", "share_keys"), [(True, False), (False, True), (True, True), (False, False)])
def test_an_e_prompt_starts_from_the_one_before_it(share_prompts, share_keys):
    prompt = build("dualprompt", shared_prompt_pool=share_prompts, shared_prompt_key=share_keys).prompt
    before = {name: tensor.clone() for name, tensor in prompt.state_dict().items()}
    prompt.begin_task(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in prompt.state_dict().items())
    prompt.begin_task(2)
    for name, tensor in prompt.state_dict().items():
        expected, shared = before[name].clone(), share_keys if name == "keys_MD" else share_prompts
        if shared and not name.startswith("general"):
            expected[2] = expected[1]
        assert torch.equal(tensor, expected), name


# ---- where the trunk takes short cuts ----
@pytest.mark.parametrize("changes", [{"attn_drop_rate": 0.2}, {"proj_drop_rate": 0.2}, {"drop_path_rate": 0.3}],
                         ids=lambda changes: next(iter(changes)))
def test_prefixes_and_dropout_are_those_of_an_uncut_run(changes):
    """With the same seed: what is dropped does not hang on which tokens are read."""
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0, **changes)
    generator = random_generator(1)
    tokens_BTD = torch.randn(4, 17, 48, generator=generator)
    prefixes = {layer: (torch.randn(4, 5, 3, 16, generator=generator), torch.randn(4, 5, 3, 16, generator=generator))
                for layer in (0, LAST)}
    joining = {layer: torch.randn(4, 2, 48, generator=generator) for layer in (1, LAST)}
    found = []
    for start, stop in ((0, 1), (0, 21)):
        torch.manual_seed(2)
        found.append(run_trunk(vit.train(), tokens_BTD, start, stop, joining, prefixes))
    assert torch.equal(found[0], found[1][:, :1])
    without = run_trunk(vit.eval(), tokens_BTD, 0, 1, joining, prefixes)
    assert not torch.allclose(found[0], without), "nothing was dropped"
    torch.testing.assert_close(without, run_trunk(vit, tokens_BTD, 0, 21, joining, prefixes)[:, :1])


def test_a_prefix_of_the_last_block_costs_no_mlp():
    model, seen = build("oneprompt"), []
    for block in model.backbone.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    model(images_for(model.backbone, dtype=torch.float64))
    assert seen == [17] * LAST + [1]
