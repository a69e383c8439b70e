"""The built-in templates with {% generation %} in them, for comparing masks with transformers; a tokenizer for all."""

from __future__ import annotations

from text_corpora import MIXED
from tokenizers import AddedToken

from dacheng.text import Tokenizer, train_tokenizer
from dacheng.text.chat import TEMPLATES

# Special in one family or another. "<|end|>" takes the white space behind it with it, as in Phi-3's tokenizer.
SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>", "[INST]", "[/INST]", "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "<｜end▁of▁sentence｜>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>",
    "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>",
    "[|endofturn|]", "<|eot|>", "<|header_start|>", "<|header_end|>", "<end_of_utterance>", "<|return|>", "<|call|>",
)  # fmt: skip
# Tokens, but not special ones, as DeepSeek and Qwen have them.
ADDED = (
    "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>", "<｜tool▁sep｜>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip

# name: (what stands in the template, what stands there instead)
_TAGS: dict[str, list[tuple[str, str]]] = {
    "chatml": [
        (
            r"{{- '<|im_start|>' + message.role + '\n' + text(message.content) + '<|im_end|>\n' }}",
            r"""{{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- text(message.content) + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- text(message.content) + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}""",
        )
    ],
    "llama3": [
        (
            r"+ '<|end_header_id|>\n\n' + text(message.content) | trim + '<|eot_id|>' }}",
            r"""+ '<|end_header_id|>\n\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- text(message.content) | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- text(message.content) | trim + '<|eot_id|>' }}
    {%- endif %}""",
        )
    ],
    "mistral": [
        ("{{- '[TOOL_CALLS][' }}", "{%- generation %}{{- '[TOOL_CALLS][' }}"),
        ("{{- ']' + eos_token }}", "{{- ']' + eos_token }}{%- endgeneration %}"),
        (
            "{{- text(message.content) + eos_token }}",
            "{%- generation %}{{- text(message.content) + eos_token }}{%- endgeneration %}",
        ),
    ],
    "gemma": [
        (
            r"{{- text(message.content) | trim + '<end_of_turn>\n' }}",
            r"""{%- if message.role == 'assistant' %}
        {%- generation %}{{- text(message.content) | trim + '<end_of_turn>' }}{%- endgeneration %}
    {%- else %}
        {{- text(message.content) | trim + '<end_of_turn>' }}
    {%- endif %}
    {{- '\n' }}""",
        )
    ],
    "qwen": [
        (r"{{- '<|im_start|>assistant\n' }}" + "\n        {%- if loop",
         r"{{- '<|im_start|>assistant\n' }}{%- generation %}" + "\n        {%- if loop"),
        (r"{{- '<|im_end|>\n' }}" + "\n    {%- elif message.role == 'tool'",
         r"{{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}" + "\n    {%- elif message.role == 'tool'"),
    ],
    "deepseek": [
        ("{%- set content = text(message.content) %}\n        {{- content.split",
         "{%- generation %}{%- set content = text(message.content) %}\n        {{- content.split"),
        ("{{- '<｜end▁of▁sentence｜>' }}", "{{- '<｜end▁of▁sentence｜>' }}{%- endgeneration %}"),
    ],
}  # fmt: skip


def tagged(name: str) -> str:
    """The built-in template `name`, with the assistant's part of each turn marked: what comes behind the header, up to
    and with the token that ends the turn."""
    template = TEMPLATES[name]
    for old, new in _TAGS[name]:
        assert template.count(old) == 1, (name, old)
        template = template.replace(old, new)
    return template


def chat_tokenizer(size: int = 800) -> Tokenizer:
    """A small byte-level BPE that has the control tokens of every family."""
    core = train_tokenizer(MIXED, kind="bpe", vocab_size=size)._core
    core.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    core.add_special_tokens([AddedToken("<|end|>", normalized=False, rstrip=True)])
    core.add_tokens([AddedToken(name, normalized=False) for name in ADDED])
    return Tokenizer(core, bos_token="<s>", eos_token="</s>", pad_token="<|endoftext|>")
