"""Split CIFAR-100, OnePrompt: DualPrompt's shape with one prompt for all tasks.

    python main.py cifar100_oneprompt --data-path DIR

Published with virtual outliers, which are not part of this, and with ViT-B/16 fine-tuned on ImageNet-1k (OVOR-Deep):
Acc@1 85.99 ± 0.89 / forgetting 6.42 ± 2.03, over five class orders. 107,520 values train beside the head; the ViT
runs once, so a step costs two thirds of L2P's. Adam 1e-3 at batch 128 and the schedule of OVOR's code, which is
CODA-Prompt's, over 20 epochs. (That code has 16 and 4 with outliers, and 50 without.) Initial values are from U(-1, 1),
as in the PyTorch DualPrompt; OVOR's are from U(0, 1). Its test images were not cut at the edges (--crop_pct 1).
"""

DEFAULTS = {
    "prompt_method": "oneprompt", "head_type": "token", "prompt_layers": [2, 3, 4], "length": 20,
    "batch_size": 128, "lr": 0.002, "sched": "quarter_cosine", "epochs": 20, "clip_grad": None,
}
