"""A decoder of given weights."""

from __future__ import annotations

from torch import Tensor

from dacheng.formats.meta import on_meta
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits


def decoder_of(traits: DecoderTraits, state: dict[str, Tensor], like: Decoder) -> Decoder:
    """The model of these traits with exactly the tensors of `state` as its weights (not copies), of the family and in
    the mode of `like`."""
    with on_meta():
        made = Decoder(traits)
    made.family = like.family
    made.load_state_dict(state, strict=True, assign=True)
    for module in made.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.rebuild(like.embed.weight.device)  # type: ignore[operator]
    return made.train(like.training)
