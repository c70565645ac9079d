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
_NAME, _GIVEN, _CITY = "{{ c.function.name }}", "{{ c.function.arguments | tojson }}", "{{ c.function.arguments.city }}"
_CALL, _SEP, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_ADDED = "{{ '" + _SEP + "' + c.function.arguments + '" + _CALL_END + "' }}"  # some templates add texts to JSON
_LINES = "{{ '\n```json\n' }}"
#: What a template teaches of a form, and how it writes a call that was made.
_TAUGHT = {
    "mistral_args": ("[TOOL_CALLS]f[CALL_ID]1[ARGS]{}", f"[TOOL_CALLS]{_NAME}[CALL_ID]{{{{ c.id }}}}[ARGS]{_GIVEN}"),
    "deepseek_v3": (f"{_CALL}function{_SEP}f {_LINES}", f"{_CALL}function{_SEP}{_NAME}{_LINES}{_GIVEN}{_CALL_END}"),
    "deepseek_v31": (f"{_CALL}f{_SEP}", _CALL + _NAME + _ADDED),
    "deepseek_v32": ("<｜DSML｜function_calls>", f'<｜DSML｜invoke name="{_NAME}">{_CITY}</｜DSML｜invoke>'),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>" + _GIVEN),
    "minimax_m2": ("<minimax:tool_call>", f'<minimax:tool_call><invoke name="{_NAME}">{_CITY}</invoke>'),
    "seed_oss": ("<seed:tool_call><function=f><parameter=a>", f"<seed:tool_call><function={_NAME}>{_CITY}"),
    "step3": ("<steptml:invoke", f'<steptml:invoke name="{_NAME}">{_CITY}'),
    "longcat": ("<longcat_tool_call>", f"<longcat_tool_call>{_GIVEN}"),
    "cohere": (
        "<|START_ACTION|>",
        f'<|START_ACTION|>[{{"tool_name": "{_NAME}", "parameters": {_GIVEN}}}]<|END_ACTION|>',
    ),
    "nemotron": ("<TOOLCALL>[]</TOOLCALL>", f"<TOOLCALL>[{_GIVEN}]</TOOLCALL>"),
    "jamba": ("<tool_calls>[]</tool_calls>", f"<tool_calls>[{_GIVEN}]</tool_calls>"),
    "granite": ("<|tool_call|>", f"<|tool_call|>[{_GIVEN}]"),
    "phi4_mini": ("<|tool_call|>{}<|/tool_call|>", f"<|tool_call|>{_GIVEN}<|/tool_call|>"),
    "lfm2": ("<|tool_list_start|>", f"<|tool_call_start|>[{_NAME}(city='{_CITY}')]<|tool_call_end|>"),
    "olmo3": ("<function_calls>", f"<function_calls>{_NAME}(city='{_CITY}')</function_calls>"),
    "apertus": ("<|tools_prefix|>", f'<|tools_prefix|>[{{"{_NAME}": {_GIVEN}}}]<|tools_suffix|>'),
    "pythonic": ("[func(a=1)]", f"[{_NAME}(city='{_CITY}')]"),
}
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
    **{
        form: "{% if tools %}{{ tools | tojson }} as " + taught + "{% endif %}" + _TURNS.replace("@CALL@", call)
        for form, (taught, call) in _TAUGHT.items()
    },
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
