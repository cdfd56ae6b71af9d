"""Makes template.json: conversations as Transformers renders them. Needs transformers and jinja2.

    python tests/edge/data/make_template.py

The templates are small ones in the idioms of the published ones.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils

NOW = datetime(2024, 7, 26, 9, 5)

SYSTEM = {"role": "system", "content": "Answer <b>briefly</b> & kindly."}
USER = {"role": "user", "content": "  Où est le café?\n"}
ANSWER = {"role": "assistant", "content": 'In "Lyon".'}
AGAIN = {"role": "user", "content": "{{ 7*7 }} {% raw %}"}

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or \
message.role == "assistant" and not message.tool_calls %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ \
message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """{{ bos_token }}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/...') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

NAMESPACE = """{%- set ns = namespace(found=false, count=0, seen=[]) -%}
{%- for message in messages[::-1] if message.role != 'system' -%}
  {%- set index = (messages|length - 1) - loop.index0 -%}
  {%- if not ns.found and message.role == 'user' -%}
    {%- set ns.found = true -%}
    {%- set ns.last = index -%}
  {%- endif -%}
  {%- set ns.count = ns.count + 1 -%}
  {%- set ns.seen = ns.seen + [message.role] -%}
{%- endfor -%}
last={{ ns.last }} count={{ ns.count * 2 ** 3 }} seen={{ ns.seen }} {{ 'a' * 3 ~ 1 ~ none }}
{%- for message in messages -%}
  {%- if loop.last -%}{%- break -%}{%- endif -%}
  {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
  [{{ loop.index }}/{{ loop.length }} {{ loop.previtem.role if loop.previtem else '-' }}]
{%- endfor -%}
"""

MACRO = """{% macro turn(message, mark='#') %}
{{ mark }} {{ message.role|upper }}: {{ message.content|tojson }}
{% endmacro %}
{% for message in messages %}
{{ turn(message) }}
{%- if message.role == 'assistant' %}
    {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}

{% endif %}
{% endfor %}
{% generation %}{% set inner = 1 %}{{ inner }}{% endgeneration %}
{{ {'é': '<&>', 'list': [1, none, true]}|tojson(indent=2) }} {{ inner is defined }}
{{ tools is none }} {{ nothing }} {{ pad_token is defined }} {{ dict(a=1).items()|list }}
{% set joined %}{% for c in 'abc' %}{{ c }}{{ ', ' if not loop.last }}{% endfor %}{% endset %}
{{ joined|replace(',', ';') }}
"""

WHITESPACE = """
  {% if true %}
    kept {{ 1 }}
  {% endif %}
{# a comment #}
  {%+ if true %}plus{% endif +%}
{{ messages[0].content }}
{% for x in [] %}{% else %}
none
{% endfor %}"""

CASES: list[tuple[str, str, list[dict[str, str]], bool]] = [
    ("chatml", CHATML, [USER], True),
    ("chatml-system", CHATML, [SYSTEM, USER, ANSWER, AGAIN], True),
    ("chatml-closed", CHATML, [USER, ANSWER], False),
    ("llama3", LLAMA3, [SYSTEM, USER, ANSWER, AGAIN], True),
    ("llama3-no-system", LLAMA3, [USER], False),
    ("gemma", GEMMA, [USER, ANSWER, AGAIN], True),
    ("namespace", NAMESPACE, [SYSTEM, USER, ANSWER, AGAIN], True),
    ("macro", MACRO, [SYSTEM, USER, ANSWER], True),
    ("whitespace", WHITESPACE, [USER], True),
]


class Clock(datetime):
    """A clock that stands still, in place of the module's."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def main() -> None:
    chat_template_utils.datetime = Clock
    rows = []
    for name, template, messages, prompt in CASES:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=prompt, **SPECIAL
        )
        case = {"name": name, "template": template, "messages": messages}
        case |= {"special_tokens": SPECIAL, "add_generation_prompt": prompt}
        rows.append(case | {"expected": rendered[0]})
    text = json.dumps({"now": NOW.isoformat(), "cases": rows}, indent=1, ensure_ascii=False)
    Path(__file__).with_name("template.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
