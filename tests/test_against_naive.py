"""The model and the step against the naive L2P of naive_l2p.py: logits, loss, gradients, several steps of training."""

import naive_l2p as naive
import pytest
import torch
from tiny_vits import TINY_VITS, images_for, tiny_vit
from torch import nn

from continual_datasets import Batch
from models.prompted_vit import PromptedViT
from models.trunk import run_trunk
from prompt import FixedPrompt, NoPrompts, PromptPool
from training import train_step

SIZE, LENGTH, TOP_K, CLASSES = 6, 2, 3, 7
FROZEN = ("blocks", "patch_embed", "cls_token", "norm", "pos_embed", "reg_token", "fc_norm")
HAS_CLS_POSITION = [case for case in TINY_VITS if "no cls" not in case and "registers" not in case]


def build(case: str, **changes) -> PromptedViT:
    """A small model in float64, where near-ties of the choice cannot differ by rounding."""
    settings = {"head_type": "prompt", "embedding_key": "cls", "prompt_pos_embed": "none", "batchwise": True,
                "task_mask": False, "trained_key": True, "coefficient": 0.5, "pool": True, "freeze": FROZEN} | changes
    generator = torch.Generator().manual_seed(3)
    vit = tiny_vit(case, torch.float64)
    if settings["pool"]:
        prompt = PromptPool(vit.embed_dim, SIZE, LENGTH, TOP_K, initializer="uniform", key_initializer="uniform",
                            trained_key=settings["trained_key"], batchwise=settings["batchwise"],
                            task_mask=settings["task_mask"], share_prompts=False, share_keys=False,
                            pull_coefficient=settings["coefficient"], generator=generator)
    else:
        prompt = FixedPrompt(vit.embed_dim, LENGTH, initializer="uniform", generator=generator)
    head = nn.Linear(vit.embed_dim, CLASSES)
    for values in head.parameters():
        nn.init.normal_(values, std=0.3, generator=generator)
    return PromptedViT(vit, prompt, head, head_type=settings["head_type"], embedding_key=settings["embedding_key"],
                       prompt_pos_embed=settings["prompt_pos_embed"], freeze=settings["freeze"]).double()


def naive_forward(model: PromptedViT, images, task=None, per_image=False):
    pool = isinstance(model.prompt, PromptPool)
    prompts = model.prompt.prompts_MLD if pool else model.prompt.prompt_LD
    masked = task if pool and model.prompt.task_mask else None
    return naive.forward(model.backbone, images, prompts, model.prompt.keys_MD if pool else None, model.head.weight,
                         model.head.bias, top_k=TOP_K, batchwise=pool and model.prompt.batchwise and not per_image,
                         head_type=model.head_type, prompt_pos_embed=model.prompt_pos_embed,
                         embedding_key=model.embedding_key, mask_task=masked, pool=pool)


def trained(model: PromptedViT) -> list[torch.Tensor]:
    return [parameter for _, parameter in model.trained_parameters()]


def compare(model: PromptedViT, *, task: int, classes: list[int] | None = None, coefficient: float = 0.5) -> None:
    """Logits, choice, loss and gradients of one training pass."""
    images = images_for(model.backbone, dtype=torch.float64)
    labels = torch.tensor([1, 2, 1, 3, 2])
    output = model.train()(images, task=task)
    outside = torch.ones(CLASSES, dtype=torch.bool)
    outside[classes or list(range(CLASSES))] = False
    loss = nn.functional.cross_entropy(output.logits_BK.masked_fill(outside, -torch.inf), labels)
    if output.aux_loss is not None:
        loss = loss + output.aux_loss
    gradients = torch.autograd.grad(loss, trained(model))

    expected = naive_forward(model, images, task)
    expected_loss = naive.loss(expected["logits"], labels, classes, expected["pull"], coefficient)
    expected_gradients = torch.autograd.grad(expected_loss, trained(model))
    torch.testing.assert_close(output.logits_BK, expected["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=0)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert theirs.abs().max() > 1e-4, "a gradient of zero would agree with anything"
    if output.selected_BN is not None:
        assert [set(row) for row in output.selected_BN.tolist()] == [set(row) for row in expected["selected"]]


@pytest.mark.parametrize("case", TINY_VITS)
def test_without_prompts_the_features_are_timms(case):
    vit = tiny_vit(case)
    model = PromptedViT(vit, NoPrompts(), nn.Linear(vit.embed_dim, CLASSES), head_type="token", freeze=FROZEN)
    images = images_for(vit)
    tokens_BTD = vit._pos_embed(vit.patch_embed(images))
    ours = run_trunk(vit, tokens_BTD, 0, tokens_BTD.shape[1])
    torch.testing.assert_close(ours, vit.forward_features(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours, torch.stack([naive.encode(vit, image) for image in images]), atol=1e-5, rtol=0)
    torch.testing.assert_close(model(images).logits_BK, model.head(vit.forward_features(images)[:, 0]))


@pytest.mark.parametrize("case", TINY_VITS)
def test_every_kind_of_vit(case):
    compare(build(case), task=0, classes=[1, 2, 3])


@pytest.mark.parametrize("case", HAS_CLS_POSITION)
def test_prompts_with_the_cls_position(case):
    compare(build(case, prompt_pos_embed="cls"), task=0)


@pytest.mark.parametrize("changes", [
    {"batchwise": False}, {"trained_key": False}, {"pool": False}, {"coefficient": 0.0, "trained_key": False},
    {"head_type": "token"}, {"head_type": "gap"}, {"head_type": "token+prompt"}, {"embedding_key": "mean"},
    {"embedding_key": "max"}, {"embedding_key": "mean_max", "batchwise": False}, {"task_mask": True}],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()))
def test_every_variant(changes):
    model = build("plain", **changes)
    coefficient = changes.get("coefficient", 0.5)
    compare(model, task=0, classes=[1, 2, 3], coefficient=coefficient)
    compare(model, task=1, coefficient=coefficient)


def test_the_prompt_mask_ends_with_the_pool():
    """Task 2 would need prompts 6 to 8 of a pool of 6: the nearest keys are used, and one warning says so."""
    model = build("plain", task_mask=True)
    with pytest.warns(UserWarning, match="task 3 has no prompts of its own in a pool of 6"):
        compare_task = model.train()(images_for(model.backbone, dtype=torch.float64), task=2)
    free = build("plain").train()(images_for(model.backbone, dtype=torch.float64), task=2)
    assert torch.equal(compare_task.selected_BN, free.selected_BN)


def test_the_mask_is_for_training_only():
    masked, free = build("plain", task_mask=True).eval(), build("plain").eval()
    images = images_for(free.backbone, dtype=torch.float64)
    assert torch.equal(masked(images).logits_BK, free(images).logits_BK)
    assert not torch.equal(masked(images, task=1).selected_BN, free(images, task=1).selected_BN)


@pytest.mark.parametrize("per_image", [False, True])
def test_evaluation_by_vote_and_per_image(per_image):
    model = build("plain").eval()
    images = images_for(model.backbone, dtype=torch.float64)
    output = model(images, per_image=per_image)
    expected = naive_forward(model, images, per_image=per_image)
    torch.testing.assert_close(output.logits_BK, expected["logits"], atol=1e-5, rtol=0)
    distinct = {tuple(sorted(row)) for row in output.selected_BN.tolist()}
    assert (len(distinct) > 1) == per_image, "the images should disagree, or the two protocols are not told apart"


@pytest.mark.parametrize("batchwise", [False, True])
def test_no_shape_hangs_on_the_data(batchwise):
    """On the meta device tensors have shapes and no values: a choice that looked at values could not be made."""
    pool = build("plain", batchwise=batchwise).prompt.to("meta")
    prompts = pool(torch.empty(5, 48, dtype=torch.float64, device="meta"), 5, task=0)
    assert prompts.selected_BN.shape == (5, TOP_K)
    assert prompts.tokens[0].shape == (5, TOP_K * LENGTH, 48)


def test_a_known_query_changes_nothing():
    model = build("plain").eval()
    images = images_for(model.backbone, dtype=torch.float64)
    assert torch.equal(model(images, query_BD=model.query(images)).logits_BK, model(images).logits_BK)


def test_steps_of_training():
    """Four steps of train_step, clipped and by Adam, against the same steps by hand."""
    model = build("plain")
    images = images_for(model.backbone, dtype=torch.float64)
    labels = torch.tensor([1, 2, 1, 3, 2])
    names = [name for name, _ in model.trained_parameters()]
    twin = build("plain")
    state = naive.adam_start([p.detach() for p in trained(twin)])
    optimizer = torch.optim.Adam(trained(model), lr=0.05)
    outside = torch.ones(CLASSES, dtype=torch.bool)
    outside[[1, 2, 3]] = False
    clipped = False
    for step in range(4):
        batch = Batch(images.roll(step, 0), labels.roll(step), step)
        loss, _ = train_step(model.train(), optimizer, batch, 0, outside, 1.0)

        expected = naive_forward(twin, batch.images_BCHW)
        expected_loss = naive.loss(expected["logits"], batch.labels_B, [1, 2, 3], expected["pull"], 0.5)
        torch.testing.assert_close(loss, expected_loss.detach(), atol=1e-5, rtol=0)
        gradients = torch.autograd.grad(expected_loss, trained(twin))
        clipped |= sum(g.square().sum() for g in gradients).item() > 1
        values, state = naive.adam_step([p.detach() for p in trained(twin)], naive.clip_gradients(gradients), state,
                                        0.05)
        with torch.no_grad():
            for parameter, value in zip(trained(twin), values, strict=True):
                parameter.copy_(value)
        for name, ours, theirs in zip(names, trained(model), trained(twin), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert clipped, "the case should reach the clipping"


@pytest.mark.parametrize(("shared_pool", "shared_key"), [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("task", [0, 1, 2])
def test_transfer_between_tasks(task, shared_pool, shared_key):
    pool = build("plain").prompt
    pool.share_prompts, pool.share_keys = shared_pool, shared_key
    prompts, keys = pool.prompts_MLD.detach().clone(), pool.keys_MD.detach().clone()
    expected = naive.transfer(prompts, keys, task, TOP_K, shared_pool, shared_key)
    pool.begin_task(task)
    assert torch.equal(pool.prompts_MLD, expected[0])
    assert torch.equal(pool.keys_MD, expected[1])


def test_a_trained_backbone_leaves_the_query_alone():
    """With nothing frozen the query comes from a copy that stays as it was."""
    model = build("plain", freeze=())
    images = images_for(model.backbone, dtype=torch.float64)
    before = model.query(images)
    assert len(trained(model)) == len(list(model.backbone.parameters())) + 4
    optimizer = torch.optim.SGD(trained(model), lr=0.5)
    train_step(model.train(), optimizer, Batch(images, torch.tensor([1, 2, 1, 3, 2]), 0), 0, None, None)
    assert torch.equal(model.query(images), before)
    assert not torch.allclose(model.backbone.forward_features(images)[:, 0], before)
