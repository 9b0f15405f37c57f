"""Split CIFAR-100, CODA-Prompt: each image weights 100 components in each of five blocks.

    python main.py cifar100_coda --data-path DIR

Published: Acc@1 86.25 ± 0.74 with ViT-B/16 *fine-tuned on ImageNet-1k* (add --model
vit_base_patch16_224.augreg_in21k_ft_in1k or your own --init_checkpoint); others find 86.9 with ImageNet-21k weights,
which are the default here. Its spread is over class orders; the test images were not cut at the edges (--crop_pct 1).
Components that are not orthogonal cost nothing, as in the later released code, which draws them orthogonal, as here.
The first one had 1e-7 (--orthogonality), a millionth of the paper's 0.1. Both drop the last, short batch of an epoch,
which is trained on here. Adam 1e-3 at batch 128, 20 epochs.
"""

DEFAULTS = {
    "prompt_method": "coda", "head_type": "token", "prompt_layers": [0, 1, 2, 3, 4], "size": 100, "length": 8,
    "batch_size": 128, "lr": 0.002, "sched": "quarter_cosine", "epochs": 20, "clip_grad": None,
    "orthogonality": 0.0,
}
