"""L2P the straightforward way, as a yardstick of speed: what one writes after reading the paper, with timm and PyTorch.

Two ViTs (one for the query, one that is prompted), plain attention, every token through every block, float32,
transforms of single PIL images in worker processes, losses and accuracies read after every step, everything computed
anew in each evaluation. Computes the same model as the program does; `tests/test_benchmarks.py` compares them.

Shapes: B batch, T tokens, D width, M prompts in the pool, L vectors in each, N chosen, K classes.
"""

import io
from collections.abc import Iterator

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

POOL, LENGTH, TOP_K, PULL = 10, 5, 5, 0.1


class PilImages(Dataset):
    """uint8 images [N, H, W, 3], each turned into a PIL image and transformed alone."""

    def __init__(self, pixels_NHWC: np.ndarray, labels_N: np.ndarray, transform: v2.Compose):
        self.pixels_NHWC, self.labels_N, self.transform = pixels_NHWC, labels_N, transform

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels_NHWC[index])), int(self.labels_N[index])


class NaiveL2P(nn.Module):
    """The two networks, the pool and the head; prompts carry no position."""

    def __init__(self, model_name: str, num_classes: int, input_size: int = 224):
        super().__init__()
        make = {"pretrained": False, "num_classes": 0, "img_size": input_size}
        self.query_network = timm.create_model(model_name, **make).eval()
        self.vit = timm.create_model(model_name, **make)
        self.vit.load_state_dict(self.query_network.state_dict())
        for network in (self.query_network, self.vit):
            network.requires_grad_(False)
            for block in network.blocks:
                block.attn.fused_attn = False
        width = self.vit.embed_dim
        self.prompts_MLD = nn.Parameter(torch.empty(POOL, LENGTH, width).uniform_(-1, 1))
        self.keys_MD = nn.Parameter(torch.empty(POOL, width).uniform_(-1, 1))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K], and the sum of the chosen cosines over the batch, divided by B."""
        with torch.no_grad():
            query_BD = self.query_network.forward_features(images_BCHW)[:, 0]
        keys_MD = F.normalize(self.keys_MD, dim=1)
        query_BD = F.normalize(query_BD, dim=1)
        picks_BN = (query_BD @ keys_MD.T).topk(TOP_K, dim=1).indices
        prompts, counts = torch.unique(picks_BN, return_counts=True)
        voted_N = prompts[counts.argsort(descending=True, stable=True)[:TOP_K]]
        pull = (query_BD @ keys_MD[voted_N].T).sum() / len(images_BCHW)

        tokens_BTD = self.vit._pos_embed(self.vit.patch_embed(images_BCHW))
        chosen_BPD = self.prompts_MLD[voted_N].flatten(0, 1).expand(len(images_BCHW), -1, -1)
        tokens_BTD = torch.cat([tokens_BTD[:, :1], chosen_BPD, tokens_BTD[:, 1:]], dim=1)
        tokens_BTD = self.vit.norm(self.vit.blocks(tokens_BTD))
        return self.head(tokens_BTD[:, 1:1 + TOP_K * LENGTH].mean(1)), pull


class NaiveTrainer:
    """Steps of training and of evaluation over the images of one task."""

    def __init__(self, model: NaiveL2P, images: tuple[np.ndarray, np.ndarray], classes: list[int], *, batch_size: int,
                 input_size: int, device: torch.device, num_workers: int):
        self.model, self.device, self.classes = model.to(device), device, classes
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=0.03 * batch_size / 256)
        crop = v2.RandomResizedCrop(input_size, scale=(0.05, 1.0), ratio=(3 / 4, 4 / 3),
                                    interpolation=v2.InterpolationMode.BILINEAR)
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        resize = v2.Resize(int(256 / 224 * input_size), interpolation=v2.InterpolationMode.BICUBIC)
        self.train_transform = v2.Compose([crop, v2.RandomHorizontalFlip(), *to_tensor])
        self.test_transform = v2.Compose([resize, v2.CenterCrop(input_size), *to_tensor])
        loading = {"batch_size": batch_size, "num_workers": num_workers, "pin_memory": device.type == "cuda",
                   "drop_last": True, "persistent_workers": num_workers > 0}
        self.training = self._endless(DataLoader(PilImages(*images, self.train_transform), shuffle=True, **loading))
        self.testing = self._endless(DataLoader(PilImages(*images, self.test_transform), **loading))

    def _endless(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for images_BCHW, labels_B in loader:
                yield images_BCHW.to(self.device, non_blocking=True), labels_B.to(self.device, non_blocking=True)

    def train_step(self) -> int:
        """One step; returns its number of images."""
        self.model.vit.train()
        images_BCHW, labels_B = next(self.training)
        logits_BK, pull = self.model(images_BCHW)
        mask_K = torch.full((logits_BK.shape[1],), float("-inf"), device=self.device)
        mask_K[self.classes] = 0.0
        loss = F.cross_entropy(logits_BK + mask_K, labels_B) - PULL * pull
        if not np.isfinite(loss.item()):
            raise FloatingPointError("the loss is not finite")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        (logits_BK.argmax(1) == labels_B).float().mean().item()
        return len(labels_B)

    @torch.no_grad()
    def test_step(self) -> int:
        """One batch of evaluation, whether or not its task was evaluated before; returns its number of images."""
        self.model.eval()
        images_BCHW, labels_B = next(self.testing)
        logits_BK, _ = self.model(images_BCHW)
        F.cross_entropy(logits_BK, labels_B).item()
        (logits_BK.topk(5).indices == labels_B[:, None]).any(1).float().mean().item()
        return len(labels_B)

    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint that holds the whole model and the optimizer, without the query network."""
        kept = {k: v for k, v in self.model.state_dict().items() if not k.startswith("query_network.")}
        buffer = io.BytesIO()
        torch.save({"model": kept, "optimizer": self.optimizer.state_dict()}, buffer)
        return buffer.tell()
