"""DeepSeek-V2 (2024): keys and values from one small vector a token; dense layers first, then many small experts, of
which some groups are looked at, beside a network that every token goes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from dacheng.formats.huggingface.experts import PerExpert, read_experts, write_experts
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import BLOCK, LLAMA_NAMES
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.shared_fields import note_own_code
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits
from dacheng.nn.latent import LatentTraits
from dacheng.nn.moe import MoETraits
from dacheng.nn.rope import RopeScaling, yarn_mscale

_PROJECTIONS = {"q_a": "q_a_proj", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa", "kv_b": "kv_b_proj"}
_NORMS = {"q_a_norm": "q_a_layernorm", "kv_a_norm": "kv_a_layernorm"}
LATENT_NAMES = (
    LLAMA_NAMES
    | {
        f"blocks.{{i}}.attention.{ours}.{kind}": f"{BLOCK}self_attn.{theirs}.{kind}"
        for ours, theirs in _PROJECTIONS.items()
        for kind in ("weight", "bias")
    }
    | {f"blocks.{{i}}.attention.{ours}.weight": f"{BLOCK}self_attn.{theirs}.weight" for ours, theirs in _NORMS.items()}
    | {
        f"blocks.{{i}}.mlp.shared.{part}.{kind}": f"{BLOCK}mlp.shared_experts.{part}_proj.{kind}"
        for part in ("gate", "up", "down")
        for kind in ("weight", "bias")
    }
    | {"blocks.{i}.mlp.router.weight": BLOCK + "mlp.gate.weight"}
)


class DeepseekV2(PerExpert):
    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    names = NameTable(LATENT_NAMES)
    needs = ("latent", "moe")
    heads_divide_width = True
    fixed: ClassVar[Mapping[str, Any]] = {"rope_interleaved": True}
    flags: ClassVar = {"attention_bias": False, "mlp_bias": False}
    score = "softmax"
    routing: ClassVar = {"greedy": False, "group_limited_greedy": True}  # with groups?
    absent: ClassVar[Mapping[str, Any]] = {
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    }

    def own_code(self, fields: Fields) -> None:
        note_own_code(fields)

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        latent = self.read_latent(fields, values)
        return super().own_traits(fields, values) | {
            "kv_heads": None,
            "head_width": None,
            "latent": latent,
            "moe": self.read_moe(fields, values),
            "attention_scale": attention_scale(latent, values["rope_scaling"]),
        }

    def read_latent(self, fields: Fields, values: dict[str, Any]) -> LatentTraits:
        rank = fields.integer("q_lora_rank", None if fields.given("q_lora_rank") else REQUIRED)
        latent = LatentTraits(
            query_rank=rank,
            kv_rank=fields.integer("kv_lora_rank", 512),
            plain_width=fields.integer("qk_nope_head_dim", 128, maximum=2**16),
            rope_width=fields.integer("qk_rope_head_dim", 64, maximum=2**16),
            value_width=fields.integer("v_head_dim", 128, maximum=2**16),
        )
        for name, value, expected in (
            ("num_key_value_heads", values["kv_heads"], values["heads"]),
            ("head_dim", values["head_width"], latent.rope_width),
            ("qk_head_dim", fields.get("qk_head_dim"), latent.head_width),
        ):
            if value not in (None, expected):
                raise fields.error(f"is not the {expected} that follows from the other fields", name, value)
        return latent

    def read_moe(self, fields: Fields, values: dict[str, Any]) -> MoETraits:
        grouped = fields.choice("topk_method", self.routing, next(iter(self.routing)))
        fields.only("scoring_func", (self.score,), "is not how this family scores experts")
        fields.only("moe_layer_freq", (1,), "asks for experts in some of the later layers, which is not read")
        dense = fields.integer("first_k_dense_replace", self.absent["first_k_dense_replace"], minimum=0)
        groups = {name: fields.integer(name, self.absent[name], maximum=2**12) for name in ("n_group", "topk_group")}
        if not grouped:
            groups = dict.fromkeys(groups, 1)  # what they say is not looked at
        width, layers = fields.integer("moe_intermediate_size"), values["layers"]
        return read_experts(
            fields,
            values,
            "n_routed_experts",
            expert_width=width,
            shared_width=width * fields.integer("n_shared_experts", maximum=2**10),
            pattern=("D" * min(dense, layers) + "M" * layers)[:layers],
            score=self.score,
            normalize=self.read_normalize(fields),
            routed_scale=fields.number("routed_scaling_factor", self.absent["routed_scaling_factor"]),
            groups=groups["n_group"],
            groups_per_token=groups["topk_group"],
            **self.routing_traits(),
        )

    def read_normalize(self, fields: Fields) -> bool:
        fields.only("norm_topk_prob", (False,), "is applied by DeepSeek's own code and ignored by transformers")
        return False

    def routing_traits(self) -> dict[str, Any]:
        return {"group_score": "best"}

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        latent, moe = traits.latent, traits.moe
        assert latent is not None and moe is not None
        return write_experts(traits, "n_routed_experts") | {
            "head_dim": latent.rope_width,
            "q_lora_rank": latent.query_rank,
            "kv_lora_rank": latent.kv_rank,
            "qk_nope_head_dim": latent.plain_width,
            "qk_rope_head_dim": latent.rope_width,
            "qk_head_dim": latent.head_width,
            "v_head_dim": latent.value_width,
            "moe_intermediate_size": moe.expert_width,
            "n_shared_experts": moe.shared_width // moe.expert_width,
            "first_k_dense_replace": sum(not traits.is_moe(i) for i in range(traits.layers)),
            "moe_layer_freq": 1,
            "topk_method": self.written_method(moe),
            "scoring_func": self.score,
            "norm_topk_prob": moe.normalize,
            "routed_scaling_factor": moe.routed_scale,
            "n_group": moe.groups,
            "topk_group": moe.groups_per_token,
        }

    def written_method(self, moe: MoETraits) -> str:
        return "greedy" if moe.groups == 1 else "group_limited_greedy"


def attention_scale(latent: LatentTraits, scaling: RopeScaling | None) -> float | None:
    """1/sqrt(E) times the square of yarn's factor for all dimensions: DeepSeek scales scores by it, and not angles."""
    if scaling is None or not scaling.mscale_all_dim:
        return None
    mscale = yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return float(latent.head_width**-0.5 * mscale * mscale)
