"""The blocks compute only the tokens that are read, and compute the same for them as the whole ViT does."""

import copy

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from tiny_vits import TINY_VITS, images_for, tiny_vit

from models import trunk
from models.trunk import drops, is_plain, run_trunk


def embedded(vit: VisionTransformer) -> torch.Tensor:
    with torch.no_grad():
        return vit._pos_embed(vit.patch_embed(images_for(vit, dtype=vit.norm.weight.dtype)))


def compare(vit: VisionTransformer, start: int, stop: int) -> None:
    """Outputs and gradients of the tokens read, against timm's own blocks run whole; outputs in float32 too."""
    tokens_BTD = embedded(vit)
    whole_BTD = vit.norm(vit.blocks(vit.norm_pre(tokens_BTD)))
    torch.testing.assert_close(run_trunk(vit, tokens_BTD, start, stop), whole_BTD[:, start:stop], atol=1e-5, rtol=0)
    vit = vit.double()
    ours_BTD, theirs_BTD = (embedded(vit).requires_grad_() for _ in range(2))
    ours_BRD = run_trunk(vit, ours_BTD, start, stop)
    theirs_BRD = vit.norm(vit.blocks(vit.norm_pre(theirs_BTD)))[:, start:stop]
    torch.testing.assert_close(ours_BRD, theirs_BRD)
    weights = torch.randn(ours_BRD.shape, generator=torch.Generator().manual_seed(1), dtype=ours_BRD.dtype)
    for out in (ours_BRD, theirs_BRD):
        (out * weights).sum().backward()
    torch.testing.assert_close(ours_BTD.grad, theirs_BTD.grad)
    assert theirs_BTD.grad.abs().max() > 1e-3, "a gradient of zero would agree with anything"


@pytest.mark.parametrize("part", [(0, 1), (1, 4), (0, 6), (2, 3)])
@pytest.mark.parametrize("case", TINY_VITS)
def test_the_tokens_read_come_out_as_from_the_whole_block(case, part):
    compare(tiny_vit(case), *part)


def test_attention_that_trains_in_bfloat16_is_as_exact_as_the_fused_one(monkeypatch):
    """Outputs and gradients against float32, with and without a prefix and a part of the tokens."""
    vit = tiny_vit("plain")
    rounded = copy.deepcopy(vit).to(torch.bfloat16)
    heads, width = vit.blocks[0].attn.num_heads, vit.blocks[0].attn.head_dim
    prefix = [torch.randn(5, 3, heads, width, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]

    def outcome(vit: VisionTransformer) -> torch.Tensor:
        tokens_BTD = embedded(vit).requires_grad_()
        out_BRD = run_trunk(vit, tokens_BTD, 1, 4, prefixes={1: tuple(prefix)})
        out_BRD.float().square().sum().backward()
        return torch.cat([out_BRD.flatten(), tokens_BTD.grad.flatten()]).float()

    exact = outcome(vit)
    unfused = outcome(rounded)
    monkeypatch.setattr(trunk, "takes_matrix_products", lambda *operands: False)
    fused = outcome(rounded)
    errors = [((found - exact).norm() / exact.norm()).item() for found in (unfused, fused)]
    assert not torch.equal(unfused, fused)
    assert errors[0] < min(1.5 * errors[1], 0.05)


@pytest.mark.parametrize("kind", [ResPostBlock, ParallelScalingBlock])
def test_blocks_of_another_kind_run_whole(kind):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0, block_fn=kind)
    assert not is_plain(vit.blocks[-1])
    compare(vit.eval(), 1, 4)


@pytest.mark.parametrize("changes", [{"proj_drop_rate": 0.1}, {"attn_drop_rate": 0.1}, {"drop_path_rate": 0.1}])
def test_a_block_that_drops_runs_whole_in_training(changes):
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0, **changes)
    tokens_BTD = embedded(vit)
    assert not drops(vit.eval().blocks[-1])
    assert drops(vit.train().blocks[-1])
    vit.train()
    draws = []
    for run in (lambda: run_trunk(vit, tokens_BTD, 1, 4), lambda: vit.norm(vit.blocks(tokens_BTD))[:, 1:4]):
        torch.manual_seed(0)
        draws.append(run())
    assert torch.equal(*draws)
    compare(vit.eval(), 1, 4)


def test_the_last_block_spends_its_mlp_only_on_the_tokens_read():
    vit, seen = tiny_vit("plain"), []
    for block in vit.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
        block.attn.proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    tokens_BTD = embedded(vit)
    run_trunk(vit, tokens_BTD, 1, 4)
    whole = tokens_BTD.shape[1]
    assert seen == [whole, whole] * (len(vit.blocks) - 1) + [3, 3]
    seen.clear()
    run_trunk(vit, tokens_BTD, 0, whole)  # `gap` reads them all
    assert seen == [whole, whole] * len(vit.blocks)
