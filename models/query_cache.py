"""What is known of test images, kept from one evaluation to the next.

Test images never change and the query network is frozen, so what it says of an image holds for a whole run: evaluating
a task again costs the prompted pass alone. Once prompts train no more, what the head reads of an image stays as well:
then evaluating again takes no pass through the ViT.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from models.prompted_vit import PromptedViT, Reading

MAX_BYTES = 2**29
"""Holds the queries of 170,000 images of a ViT-B in float32, or queries and what the head reads of half as many."""


@dataclass
class _Store:
    """Values by (what tells images apart, batch size, index of the batch), all of the same weights."""

    weights: object = None
    values: dict[tuple, Any] = field(default_factory=dict)
    used_bytes: int = 0

    def holds(self, weights: object, images: tuple) -> bool:
        return weights == self.weights and any(key[0] == images for key in self.values)

    def holds_batch(self, weights: object, key: tuple) -> bool:
        return weights == self.weights and key in self.values


class QueryCache:
    """Queries by (weights of the query network, images, batch); and by the same and the prompts, what a head reads.

    Args:
        max_bytes: how much is kept; what does not fit is computed anew each time. MAX_BYTES when not given.
    """

    def __init__(self, max_bytes: int | None = None):
        self.max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        self._queries, self._readings = _Store(), _Store()

    @property
    def used_bytes(self) -> int:
        return self._queries.used_bytes + self._readings.used_bytes

    def query(self, model: PromptedViT, images_key: str, batch_size: int, index: int,
              images_BCHW: Tensor | None) -> Tensor | None:
        """The query [B, D] of a batch, or None where knowing it would save next to nothing.

        Args:
            images_key: names the whole set of images; equal for equal pixels only.
            images_BCHW: None where `needs_no_images` says so.
            batch_size, index: which of its images are in this batch.
        """
        if not model.query_is_kept:
            return None
        return self._kept(self._queries, model.query_weights(), ((images_key,), batch_size, index),
                          lambda: model.query(images_BCHW))

    def reading(self, model: PromptedViT, images_key: str, batch_size: int, index: int, images_BCHW: Tensor | None,
                query_BD: Tensor | None, per_image: bool) -> Reading:
        """What the head reads of a batch, where nothing trains that makes it; arguments as of `query`."""
        if model.reads_query and query_BD is not None:
            return Reading(query_BD)  # which is kept
        return self._kept(self._readings, model.read_weights(), ((images_key, per_image), batch_size, index),
                          lambda: model.read(images_BCHW, query_BD=query_BD, per_image=per_image))

    def holds(self, model: PromptedViT, images_key: str) -> bool:
        """Whether queries of these images are kept, of the query network as it is now."""
        return self._queries.holds(model.query_weights(), (images_key,))

    def holds_readings(self, model: PromptedViT, images_key: str, per_image: bool) -> bool:
        """Whether what the head reads of these images is kept, of the model as it is now."""
        if model.reads_query:
            return self.holds(model, images_key)
        return self._readings.holds(model.read_weights(), (images_key, per_image))

    def needs_no_images(self, model: PromptedViT, images_key: str, batch_size: int, index: int, per_image: bool,
                        query_too: bool) -> bool:
        """Whether a batch is known so well that nothing has to look at its images again; arguments as of `reading`.

        What a head reads is kept only where it stays, so a reading that is there holds.

        Args:
            query_too: the query is asked for, whether or not it is kept.
        """
        query_is_known = self._queries.holds_batch(model.query_weights(), ((images_key,), batch_size, index))
        if model.reads_query:
            return query_is_known
        return (query_is_known or not (query_too or model.query_is_kept)) and self._readings.holds_batch(
            model.read_weights(), ((images_key, per_image), batch_size, index))

    def _kept(self, store: _Store, weights: object, key: tuple, compute: Callable[[], Any]) -> Any:
        if weights != store.weights:  # other weights, or the same ones changed in place
            store.values.clear()
            store.weights, store.used_bytes = weights, 0
        if key not in store.values:
            value = compute()
            size = (value.features_BD if isinstance(value, Reading) else value).nbytes
            if self.used_bytes + size > self.max_bytes:
                return value
            store.values[key] = value
            store.used_bytes += size
        return store.values[key]
