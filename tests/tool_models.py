"""Chat templates with tools and thoughts in every form, and tiny models that have them and room for their prompts."""

import json
import shutil
from pathlib import Path

CONTEXT = 2048
_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}@CALL@{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Templates by format: the marks by which each is known, how it writes tools and calls.
TEMPLATES = {
    "hermes": "{% if tools %}{{ tools | tojson }} in <tool_call></tool_call>{% endif %}"
    + _TURNS.replace("@CALL@", "<tool_call>{{ c.function.name }}{{ c.function.arguments.city }}</tool_call>"),
    "llama3": "{% if tools %}{{ tools | tojson }} <|python_tag|>{% endif %}"
    + _TURNS.replace("@CALL@", "{{ c.function | tojson }}"),
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
    + _TURNS.replace("@CALL@", "[TOOL_CALLS]{{ c.id }}{{ c.function | tojson }}"),
    "qwen_xml": "{% if tools %}{{ tools | tojson }} in <tool_call><function=a><parameter=b>{% endif %}"
    + _TURNS.replace("@CALL@", "<function={{ c.function.name }}>{{ c.function.arguments.city }}"),
    "glm": "{% if tools %}{{ tools | tojson }} in <tool_call>a<arg_key>{% endif %}"
    + _TURNS.replace("@CALL@", "<tool_call>{{ c.function.name }}{{ c.function.arguments.city }}"),
    "gemma": "{% if tools %}{{ tools | tojson }}<|tool_call>{% endif %}"
    + _TURNS.replace("@CALL@", "call:{{ c.function.name }}{{ c.function.arguments.city }}"),
    "json": "{% if tools %}{{ tools | tojson }}{% endif %}" + _TURNS.replace("@CALL@", "{{ c.function | tojson }}"),
}
THINKING = (
    _TURNS.replace("@CALL@", "")
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    + "<think>\n\n</think>\n\n{% endif %}"
)


def with_template(model: Path, folder: Path, template: str) -> Path:
    """Copy a tiny model without learned positions into a folder, with another template and a longer context."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"model_max_length": CONTEXT}))
    return folder
