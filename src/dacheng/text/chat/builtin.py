"""Chat templates of six families, for tokenizers that bring none. Each writes what the family's models were trained on
(the tests compare with the publishers' own where these are there); choose the one that the model was trained with.

Content may be text or a list of {"type": "text", "text": …}. `enable_thinking=False` (qwen) asks for no thoughts.
"""

from __future__ import annotations

_TEXT = r"""
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content or [] -%}
{%- if part.type != 'text' -%}
{{- raise_exception('Only text parts are supported') -}}
{%- endif -%}
{{- part.text -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""

_CHATML = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + text(message.content) + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

# Llama 3 (8B, 70B Instruct); the date and tools of 3.1 are in its own template only.
_LLAMA3 = r"""
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + text(message.content) | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

# Mistral Nemo: no spaces around the control tokens, the system text in front of the last user message (as
# mistral-common puts it; the template on the hub loses it when an assistant's message stands behind).
_MISTRAL = r"""
{%- set ns = namespace(system='', chat=messages, turns=0, last=-1) %}
{%- if messages and messages[0].role == 'system' %}
    {%- set ns.system = text(messages[0].content) + '\n\n' %}
    {%- set ns.chat = messages[1:] %}
{%- endif %}
{%- for message in ns.chat %}
    {%- if message.role == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- elif message.role not in ('assistant', 'tool') %}
        {{- raise_exception('Only a first system message, and user, assistant and tool messages are supported') }}
    {%- endif %}
    {%- if message.role != 'tool' and not message.tool_calls %}
        {%- if (message.role == 'user') != (ns.turns % 2 == 0) %}
            {{- raise_exception('After the system message, user and assistant must alternate') }}
        {%- endif %}
        {%- set ns.turns = ns.turns + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in ns.chat %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.index0 == ns.last %}
            {{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' + (ns.system if loop.index0 == ns.last else '') + text(message.content) + '[/INST]' }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": ' + text(message.content) + ', "call_id": "' + (message.tool_call_id or '') }}
        {{- '"}[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- set called = call.function or call %}
            {{- '{"name": ' + called.name | tojson + ', "arguments": ' + called.arguments | tojson }}
            {{- (', "id": ' + call.id | tojson if call.id else '') + ('}' if loop.last else '}, ') }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- else %}
        {{- text(message.content) + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# Gemma 1 to 3: there is no system role.
_GEMMA = r"""
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- raise_exception('System role not supported') }}
    {%- elif (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
    {{- text(message.content) | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""

# Qwen3: thoughts are shown behind the last question only, and answers of tools stand in the user's turns.
_QWEN = r"""
{%- set ns = namespace(system='', question=messages | length - 1) %}
{%- if messages and messages[0].role == 'system' %}
    {%- set ns.system = text(messages[0].content) %}
{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\n' + (ns.system + '\n\n' if ns.system else '') }}
    {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' + tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within ' }}
    {{- '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": ' }}
    {{- '<args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages and messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + ns.system + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages if message.role == 'user' %}
    {%- if loop.last %}
        {%- set ns.question = -1 %}
        {%- for other in messages %}
            {%- if other.role == 'user' %}
                {%- set ns.question = loop.index0 %}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = text(message.content) %}
    {%- if message.role == 'assistant' %}
        {%- set thought = message.reasoning_content or '' %}
        {%- if not thought and '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.question and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set called = call.function or call %}
            {{- '\n' if content or not loop.first else '' }}
            {{- '<tool_call>\n{"name": "' + called.name + '", "arguments": ' + called.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' }}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {{- '<|im_end|>\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' }}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

# DeepSeek V3: the system text stands bare behind BOS; it calls tools, and is told of them in the system text.
_DEEPSEEK = r"""
{%- set ns = namespace(system='', results=false) %}
{%- for message in messages if message.role == 'system' %}
    {%- set ns.system = ns.system + ('' if loop.first else '\n\n') + text(message.content) %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<｜User｜>' + text(message.content) }}
        {%- set ns.results = false %}
    {%- elif message.role == 'assistant' %}
        {{- '<｜tool▁outputs▁end｜>' if ns.results else '<｜Assistant｜>' }}
        {%- set content = text(message.content) %}
        {{- content.split('</think>')[-1] if '</think>' in content else content }}
        {%- for call in message.tool_calls or [] %}
            {%- set called = call.function or call %}
            {{- '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}
            {{- '<｜tool▁call▁begin｜>' + (call.type or 'function') + '<｜tool▁sep｜>' + called.name }}
            {{- '\n```json\n' + called.arguments | tojson + '\n```<｜tool▁call▁end｜>' }}
            {{- '<｜tool▁calls▁end｜>' if loop.last else '' }}
        {%- endfor %}
        {{- '<｜end▁of▁sentence｜>' }}
        {%- set ns.results = false %}
    {%- elif message.role == 'tool' %}
        {{- '\n' if ns.results else '<｜tool▁outputs▁begin｜>' }}
        {{- '<｜tool▁output▁begin｜>' + text(message.content) + '<｜tool▁output▁end｜>' }}
        {%- set ns.results = true %}
    {%- endif %}
{%- endfor %}
{%- if ns.results %}
    {{- '<｜tool▁outputs▁end｜>' }}
{%- elif add_generation_prompt %}
    {{- '<｜Assistant｜>' }}
{%- endif %}
"""

TEMPLATES = {
    name: (_TEXT + body).strip("\n")
    for name, body in {
        "chatml": _CHATML, "llama3": _LLAMA3, "mistral": _MISTRAL, "gemma": _GEMMA, "qwen": _QWEN,
        "deepseek": _DEEPSEEK,
    }.items()
}  # fmt: skip
