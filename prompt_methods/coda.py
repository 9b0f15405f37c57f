"""CODA-Prompt (Smith et al., CVPR 2023): a prompt is a sum of components, weighted by how an image attends to each.

Shapes: B batch, D width, M components of a layer, Y layers, L vectors of a component (half keys, half values), H heads,
E = D/H.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from errors import InputError
from prompt import Host, NothingChosen, Prompts, l2_normalise


class CodaPrompt(NothingChosen):
    """Component m of a layer has a prompt P_m, a key K_m and an attention A_m.

    An image with query q gives it the weight cosine(q ⊙ A_m, K_m) (section 4.2 of the paper). Task t owns components
    tM/T … (t+1)M/T - 1 of each layer. They are drawn orthogonal to all earlier ones when the task begins, and train
    while it lasts. Earlier ones are frozen, later ones are not used, in training and in a test.

    Args:
        dim: width D.
        size, length, layers, shape: M, L, Y blocks of the ViT, (H, E).
        num_tasks: T, at most M.
        orthogonality: μ, the weight of the penalty mean((X Xᵀ - I)²) over X = P, K, A of the components in use.
        generator: gives the generator of task t: `generator("task", t)`.
    """

    needs_query, uses_prefixes = True, True

    def __init__(self, dim: int, size: int, length: int, layers: tuple[int, ...], shape: tuple[int, int],
                 num_tasks: int, *, orthogonality: float, generator: Callable[..., torch.Generator]):
        super().__init__()
        self.layers, self.layers_in_order = frozenset(layers), layers
        self.size, self.length, self.shape, self.num_tasks = size, length, shape, num_tasks
        self.orthogonality, self.generator = orthogonality, generator
        self.prompts_YMLD = nn.Parameter(torch.zeros(len(layers), size, length, shape[0] * shape[1]))
        self.keys_YMD = nn.Parameter(torch.zeros(len(layers), size, dim))
        self.attention_YMD = nn.Parameter(torch.zeros(len(layers), size, dim))
        # A buffer: a checkpoint knows which components a test may use, and no step waits for the device to learn it.
        self.register_buffer("bounds", torch.zeros(2, dtype=torch.long))
        self.begin_task(0)

    def bounds_of(self, task: int) -> tuple[int, int]:
        """The first component of a task, and the first behind it."""
        return task * self.size // self.num_tasks, (task + 1) * self.size // self.num_tasks

    @torch.no_grad()
    def begin_task(self, task: int) -> None:
        first, end = self.bounds_of(task)
        generator = self.generator("task", task)
        for place in range(len(self.layers_in_order)):
            for parameter in (self.prompts_YMLD, self.keys_YMD, self.attention_YMD):
                known_MX = parameter[place].flatten(1)
                drawn_MX = torch.randn(end - first, known_MX.shape[1], generator=generator).to(known_MX)
                new_MX = orthonormal(drawn_MX, known_MX[:first])
                parameter[place, first:end] = new_MX.view_as(parameter[place, first:end])
        self.bounds.copy_(torch.tensor([first, end]))

    def forward(self, query_BD: Tensor, batch_size: int, task: int | None = None, per_image: bool = False) -> Prompts:
        number_M = torch.arange(self.size, device=query_BD.device)
        used_M, earlier_M = number_M < self.bounds[1], number_M < self.bounds[0]
        prefixes, penalty = {}, query_BD.new_zeros(())
        for place, layer in enumerate(self.layers_in_order):
            prompts_MLD, keys_MD, attention_MD = (
                torch.where(earlier_M.view(-1, *[1] * (values.ndim - 1)), values.detach(), values)
                for values in (self.prompts_YMLD[place], self.keys_YMD[place], self.attention_YMD[place]))
            weights_BM = attended_cosine(query_BD, attention_MD, keys_MD) * used_M
            prompt_BLD = torch.einsum("bm,mld->bld", weights_BM, prompts_MLD)
            prefixes[layer] = tuple(half.unflatten(-1, self.shape) for half in prompt_BLD.chunk(2, dim=1))
            if self.orthogonality and task is not None:
                for values in (prompts_MLD.flatten(1), keys_MD, attention_MD):
                    penalty = penalty + self._penalty(values, used_M)
        return Prompts(prefixes=prefixes, aux_loss=self.orthogonality * penalty if task is not None else None)

    def _penalty(self, values_MX: Tensor, used_M: Tensor) -> Tensor:
        """mean((X Xᵀ - I)²) over the components in use."""
        off_MM = values_MX @ values_MX.T - torch.eye(self.size, device=values_MX.device, dtype=values_MX.dtype)
        return (off_MM.square() * used_M[:, None] * used_M).sum() / used_M.sum().square()

    def describe_choice(self, batch_size: int) -> str:
        return "prompts weighted per image"


def attended_cosine(query_BD: Tensor, attention_MD: Tensor, keys_MD: Tensor) -> Tensor:
    """cosine(q_b ⊙ A_m, K_m) [B, M], by two matrix products instead of a tensor [B, M, D]."""
    products_BM = query_BD @ (attention_MD * l2_normalise(keys_MD)).T
    squared_lengths_BM = query_BD.square() @ attention_MD.square().T
    return products_BM * torch.rsqrt(squared_lengths_BM.clamp_min(1e-12))


def orthonormal(drawn_NX: Tensor, known_MX: Tensor) -> Tensor:
    """Vectors of length 1, orthogonal to each other and to the known ones (which need not be so among themselves).

    Gram and Schmidt's method, by QR factors, in float64 on the CPU: components that were trained are far from
    orthogonal.
    """
    known_XM = known_MX.cpu().double().T
    drawn_XN = drawn_NX.cpu().double().T
    if known_XM.shape[1]:
        basis_XM = torch.linalg.qr(known_XM).Q
        for _ in range(2):  # twice is enough: the second time takes away what rounding left
            drawn_XN = drawn_XN - basis_XM @ (basis_XM.T @ drawn_XN)
    factor = torch.linalg.qr(drawn_XN)
    signs_N = torch.sign(torch.diagonal(factor.R))  # as Gram and Schmidt would leave them
    return (factor.Q * signs_N).T.to(drawn_NX)


def build(host: Host, *, size: int, length: int, prompt_layers: list[int], orthogonality: float) -> CodaPrompt:
    """CODA-Prompt as the options of these names describe it: `size` components of `length` vectors in each layer."""
    num_tasks = host.known_tasks("coda")
    if num_tasks > size:
        raise InputError(f"--size {size} gives not every of the {num_tasks} tasks a component: use --size {num_tasks} "
                         "or more.")
    if length % 2:
        raise InputError(f"--length {length}: half of a component's vectors are keys, half are values; use an even "
                         "number.")
    if size > host.dim:
        raise InputError(f"--size {size}: no more than {host.dim} keys of {host.model_name} can be orthogonal; use "
                         f"--size {host.dim} or less.")
    return CodaPrompt(host.dim, size, length, host.check_layers("prompt_layers", prompt_layers),
                      host.head_shape("coda"), num_tasks, orthogonality=orthogonality, generator=host.generator)
