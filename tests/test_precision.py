"""bfloat16 and torch.compile: the same model, to the rounding of the one and of the other."""

import pytest
import torch
from fixtures import compiled_anew
from tiny_vits import TINY_VITS, images_for, tiny_vit

from models import QueryCache
from models.prompted_vit import PromptedViT
from prompt import NoPrompts, PromptPool

CLASSES = 7


def build(case: str, freeze: tuple[str, ...] = ("backbone",), **changes) -> PromptedViT:
    generator = torch.Generator().manual_seed(3)
    vit = tiny_vit(case)
    pool = PromptPool(vit.embed_dim, 6, 2, 3, initializer="uniform", key_initializer="uniform", trained_key=True,
                      batchwise=True, task_mask=True, share_prompts=False, share_keys=False, pull_coefficient=0.5,
                      generator=generator)  # the mask: near-ties of the choice cannot differ by rounding
    head = torch.nn.Linear(vit.embed_dim, CLASSES)
    for values in head.parameters():
        torch.nn.init.normal_(values, std=0.3, generator=generator)
    return PromptedViT(vit, pool, head, freeze=freeze, **{"head_type": "prompt"} | changes)


def step(model: PromptedViT) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    images = images_for(model.query_network)
    output = model.train()(images, task=0)
    loss = torch.nn.functional.cross_entropy(output.logits_BK, torch.tensor([1, 2, 1, 3, 2])) + output.aux_loss
    return output.logits_BK, loss, list(torch.autograd.grad(loss, [p for _, p in model.trained_parameters()]))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("case", TINY_VITS)
def test_bfloat16_computes_the_same_to_its_rounding(case):
    """Eight bits of mantissa: a few percent after some blocks of random weights, harsher than trained ones."""
    exact, rounded = build(case), build(case)
    rounded.use_bfloat16()
    assert {p.dtype for p in rounded.backbone.parameters()} == {torch.bfloat16}
    for (name, found), (_, expected) in zip(rounded.trained_parameters(), exact.trained_parameters(), strict=True):
        assert found.dtype == torch.float32, name
        assert torch.equal(found, expected), name
    (logits, loss, gradients), (logits_, loss_, gradients_) = step(rounded), step(exact)
    assert {logits.dtype, loss.dtype, *(g.dtype for g in gradients)} == {torch.float32}
    assert 1e-5 < relative(logits, logits_) < 0.06
    assert relative(loss, loss_) < 0.06
    for found, expected in zip(gradients, gradients_, strict=True):
        assert relative(found, expected) < 0.25


def test_a_backbone_that_trains_keeps_float32_weights():
    exact, rounded = build("plain", freeze=("patch_embed",)), build("plain", freeze=("patch_embed",))
    rounded.use_bfloat16()
    assert {p.dtype for p in rounded.backbone.parameters()} == {torch.float32}
    assert {p.dtype for p in rounded.query_network.parameters()} == {torch.bfloat16}
    (logits, _, gradients), (logits_, _, gradients_) = step(rounded), step(exact)
    assert {logits.dtype, *(g.dtype for g in gradients)} == {torch.float32}
    assert 1e-5 < relative(logits, logits_) < 0.06
    norms = [torch.stack([g.norm() for g in each]).norm().item() for each in (gradients, gradients_)]
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("head_type", ["prompt", "token+prompt", "gap"])
def test_compiled_blocks_compute_the_same(head_type):
    plain, compiled = build("plain", head_type=head_type), build("plain", head_type=head_type)
    with compiled_anew():
        compiled.compile(batch_size=5)
    (logits, loss, gradients), (logits_, loss_, gradients_) = step(compiled), step(plain)
    torch.testing.assert_close(logits, logits_, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, loss_, atol=1e-5, rtol=1e-5)
    for found, expected in zip(gradients, gradients_, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    images = images_for(plain.backbone, count=3)  # the last batch of an epoch: not compiled, and the same bits
    with torch.no_grad():
        assert torch.equal(compiled.eval()(images).logits_BK, plain.eval()(images).logits_BK)


# ---- queries kept between evaluations ----
class Counting(QueryCache):
    """Counts the batches whose query was computed."""

    computed = 0

    def _kept(self, store, weights, key, compute):
        def counted():
            self.computed += 1
            return compute()

        return super()._kept(store, weights, key, counted)


def test_a_query_is_computed_once_per_images_batch_size_and_weights():
    model, cache = build("plain").eval(), Counting()
    images = images_for(model.backbone)

    def ask(name: str = "images", batch_size: int = 5, index: int = 0) -> torch.Tensor:
        return cache.query(model, name, batch_size, index, images)

    first = ask()
    assert torch.equal(first, model.query(images))
    assert ask() is first
    assert cache.computed == 1
    for other in ({"name": "others"}, {"batch_size": 4}, {"index": 1}):
        ask(**other)
    assert cache.computed == 4
    with torch.no_grad():
        model.backbone.blocks[0].mlp.fc1.weight.mul_(2)
    changed = ask()
    assert cache.computed == 5
    assert torch.equal(changed, model.query(images))
    assert not torch.equal(changed, first)


def test_training_does_not_empty_the_cache():
    model, cache = build("plain"), Counting()
    images = images_for(model.backbone)
    cache.query(model.eval(), "images", 5, 0, images)
    _, _, gradients = step(model)
    with torch.no_grad():
        for (_, parameter), gradient in zip(model.trained_parameters(), gradients, strict=True):
            parameter.sub_(gradient)
    cache.query(model.eval(), "images", 5, 0, images)
    assert cache.computed == 1


def test_the_cache_keeps_no_more_than_it_may():
    model = build("plain").eval()
    images = images_for(model.backbone)
    size = model.query(images).nbytes
    cache = Counting(max_bytes=2 * size)
    for _ in range(2):
        for index in range(3):
            assert torch.equal(cache.query(model, "images", 5, index, images), model.query(images))
            assert cache.used_bytes <= cache.max_bytes
    assert cache.computed == 4, "two are kept, the third is computed each time"


def test_nothing_is_kept_where_nothing_is_asked():
    model = build("plain", embedding_key="mean").eval()
    assert Counting().query(model, "images", 5, 0, images_for(model.backbone)) is None


def without_prompts(**changes) -> PromptedViT:
    plain = build("plain")
    return PromptedViT(plain.backbone, NoPrompts(), plain.head, **{"head_type": "token", "freeze": ("backbone",)}
                       | changes)


def test_a_frozen_vit_without_prompts_reads_a_test_image_once():
    """What is kept is the very feature that the head reads."""
    model, cache = without_prompts().eval(), Counting()
    images = images_for(model.backbone)
    query_BD = cache.query(model, "images", 5, 0, images)
    assert torch.equal(query_BD, model.features(images))
    passes = []
    model.backbone.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    assert torch.equal(model(images, query_BD=query_BD).logits_BK, model.head(query_BD))
    assert not passes
    model(images)
    assert len(passes) == 1


@pytest.mark.parametrize("changes", [{"head_type": "gap"}, {"freeze": ()}])
def test_it_reads_it_again_where_the_feature_is_another_or_may_change(changes):
    model = without_prompts(**changes).eval()
    assert Counting().query(model, "images", 5, 0, images_for(model.backbone)) is None
