"""Fields that config.json of any decoder may have: without influence on the forward pass, or asking for what no family
here is built with."""

from __future__ import annotations

from dacheng.formats.huggingface.fields import Fields

# Why each field that has no influence on the forward pass has none.
UNDERSTOOD = {
    "transformers_version": "who wrote the file",
    "_name_or_path": "where the writer had it from",
    "_attn_implementation_autoset": "the writer's choice of kernel",
    "dtype": "the tensors say it themselves",
    "torch_dtype": "the tensors say it themselves",
    "use_cache": "the engine decides",
    "cache_implementation": "the engine decides",
    "pretraining_tp": "how the original was split: the same products",
    "bos_token_id": "the tokenizer's and generation's",
    "eos_token_id": "the tokenizer's and generation's",
    "pad_token_id": "the tokenizer's and generation's",
    "output_attentions": "what the writer's library returns beside the logits",
    "output_hidden_states": "what the writer's library returns beside the logits",
    "return_dict": "what the writer's library returns",
    "chunk_size_feed_forward": "the same product in pieces",
    "is_llama_config": "a mark of the converter",
    "transformers.js_config": "for another runtime",
    "unsloth_version": "who fine-tuned it",
    "unsloth_fixed": "a mark of the converter",
}


def read_shared(fields: Fields, dropouts: tuple[str, ...] = ("attention_dropout",)) -> None:
    """Takes the fields above, refuses features that change the forward pass and are not built, and notes dropout."""
    fields.understood(UNDERSTOOD)
    fields.only("rope_interleaved", (False,), "asks for interleaved rotary pairs, which this family does not have")
    quantised = fields.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise fields.error(
            f"says that the weights are quantised ({method}), which is not read",
            "quantization_config",
            quantised,
            "use the checkpoint in bfloat16, or convert it with the program that wrote it",
        )
    fields.only("per_layer_config", ({},), "gives layers different shapes, which is not built")
    fields.only("is_encoder_decoder", (False,), "asks for an encoder")
    fields.only("add_cross_attention", (False,), "asks for an encoder")
    fields.only("use_bidirectional_attention", (False,), "asks for attention to later tokens")
    for name in dropouts:
        if dropout := fields.number(name, 0.0, or_zero=True):
            fields.note(f"{name} {dropout} concerns training, and is not applied there")


def refuse_own_code(fields: Fields) -> None:
    fields.only("auto_map", (), "asks for code from the model's own files, which is never run")


def note_own_code(fields: Fields) -> None:
    """For families that were published with their code before transformers had it: ours is built from the config."""
    if fields.get("auto_map") is not None:
        fields.note("auto_map names code beside the weights; it is never run, and model_type says what it computes")
