"""Queries of test images, kept from one evaluation to the next.

Test images never change and the query network is frozen, so what it says of an image holds for a whole run: evaluating
a task again costs the prompted pass alone.
"""

from collections.abc import Callable

from torch import Tensor

from models.prompted_vit import PromptedViT


class QueryCache:
    """Queries by (weights of the query network, images, batch).

    Args:
        max_bytes: how much is kept; what does not fit is computed anew each time. The default holds the queries of
            170,000 images of a ViT-B in float32.
    """

    def __init__(self, max_bytes: int = 2**29):
        self.max_bytes, self.used_bytes = max_bytes, 0
        self._weights: object = None
        self._queries: dict[tuple[str, int, int], Tensor] = {}

    def query(self, model: PromptedViT, images_key: str, batch_size: int, index: int,
              images_BCHW: Tensor) -> Tensor | None:
        """The query [B, D] of a batch, or None where knowing it would save next to nothing.

        Args:
            images_key: names the whole set of images; equal for equal pixels only.
            batch_size, index: which of its images are in this batch.
        """
        if not model.query_is_kept:
            return None
        return self._kept(model.query_weights(), (images_key, batch_size, index), lambda: model.query(images_BCHW))

    def holds(self, model: PromptedViT, images_key: str) -> bool:
        """Whether queries of these images are kept, of the query network as it is now."""
        return model.query_weights() == self._weights and any(key[0] == images_key for key in self._queries)

    def _kept(self, weights: object, key: tuple[str, int, int], compute: Callable[[], Tensor]) -> Tensor:
        if weights != self._weights:  # another network, or the same one changed in place
            self._queries.clear()
            self._weights, self.used_bytes = weights, 0
        if key not in self._queries:
            query_BD = compute()
            if self.used_bytes + query_BD.nbytes > self.max_bytes:
                return query_BD
            self._queries[key] = query_BD
            self.used_bytes += query_BD.nbytes
        return self._queries[key]
