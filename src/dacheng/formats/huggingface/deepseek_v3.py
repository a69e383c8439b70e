"""DeepSeek-V3 and R1 (2024): V2 with sigmoid scores, a bias per expert that balances the load without a loss, and
groups as good as their two best experts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from dacheng.formats.huggingface.deepseek_v2 import LATENT_NAMES, DeepseekV2
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import BLOCK, LLAMA_DEFAULTS
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits
from dacheng.nn.moe import MoETraits

MAX_FOLLOWING = 2**6


class DeepseekV3(DeepseekV2):
    model_type = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    names = NameTable(LATENT_NAMES | {"blocks.{i}.mlp.router.score_bias": BLOCK + "mlp.gate.e_score_correction_bias"})
    heads_divide_width = False
    defaults = LLAMA_DEFAULTS | {"max_position_embeddings": 4096}
    fixed: ClassVar[Mapping[str, Any]] = {}
    flags: ClassVar = {"attention_bias": False}
    score = "sigmoid"
    routing: ClassVar = {"noaux_tc": True}
    absent = dict.fromkeys(DeepseekV2.absent, REQUIRED)  # transformers would take those of the published model

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        following = fields.integer("num_nextn_predict_layers", 0, minimum=0, maximum=MAX_FOLLOWING)
        if following:
            fields.note(f"num_nextn_predict_layers {following}: layers that guess further tokens are not built")
        interleaved = fields.boolean("rope_interleave", True)
        return super().own_traits(fields, values) | {"rope_interleaved": interleaved}

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return super().own_config(traits) | {
            "rope_interleave": traits.rope_interleaved,
            "num_nextn_predict_layers": 0,
        }

    def read_normalize(self, fields: Fields) -> bool:
        return fields.boolean("norm_topk_prob", True)

    def routing_traits(self) -> dict[str, Any]:
        return {"group_score": "two_best", "score_bias": True}

    def written_method(self, moe: MoETraits) -> str:
        return "noaux_tc"

    def redundant(self, name: str, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> str | None:
        found = re.match(r"model\.layers\.([0-9]{1,5})\.", name)
        if found and traits.layers <= int(found[1]) < traits.layers + MAX_FOLLOWING:
            return "it is of a layer that guesses further tokens, which is not built"
        return super().redundant(name, tensors, traits)
