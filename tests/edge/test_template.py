"""Chat templates against Transformers' rendering, and against templates that misbehave.

data/template.json holds Transformers' results; data/make_template.py made it.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

import pytest

from edge.errors import BadTemplate, MissingDependency
from edge.template import ChatTemplate, Message

pytest.importorskip("jinja2")

GOLDEN = json.loads((Path(__file__).parent / "data" / "template.json").read_text(encoding="utf-8"))
HELLO = (Message("user", "Hello"),)


def render(source: str, *messages: Message) -> str:
    return ChatTemplate(source).render(messages or HELLO)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_renders_as_transformers_does(case: dict) -> None:
    now = datetime.fromisoformat(GOLDEN["now"])
    template = ChatTemplate(case["template"], case["special_tokens"], clock=lambda: now)
    messages = [Message(**message) for message in case["messages"]]
    assert template.render(messages, case["add_generation_prompt"]) == case["expected"]


def test_special_tokens_do_not_hide_the_messages() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {"messages": "no"})
    assert template.render(HELLO) == "Hello"


def test_a_template_renders_many_times() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    for text in ("a", "b"):
        assert template.render([Message("user", text)] * 3) == text * 3


def test_refusal_of_the_template_is_told() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}x"
    assert render(source) == "x"
    with pytest.raises(BadTemplate, match="No system!; change the messages"):
        render(source, Message("system", "Be kind."))


@pytest.mark.parametrize("source", ["", " \n"])
def test_no_template(source: str) -> None:
    with pytest.raises(BadTemplate, match=r"empty; .*lutra run --raw with a plain prompt"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "line"),
    [("a\n{% if x %}", 2), ("\n\n{{ 1 + }}", 3), ("{% endfor %}", 1), ("{{ 1|no_filter }}", 1)],
)
def test_syntax_error_has_its_line(source: str, line: int) -> None:
    with pytest.raises(BadTemplate, match=f"not Jinja2: line {line}: "):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("\n{{ nothing.role }}", r"line 2\): UndefinedError"),
        ("{{ 1 + 'a' }}", r"line 1\): TypeError"),
        ("{% include 'other' %}", "TypeError: no loader"),
        ("{{ strftime_now(1) }}", "TypeError"),
    ],
)
def test_failing_template_is_told(source: str, found: str) -> None:
    with pytest.raises(BadTemplate, match=found):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ (''|attr('__class__')).x }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_nothing_leaves_the_sandbox(source: str) -> None:
    with pytest.raises(BadTemplate, match="unsafe"):
        render(source)


def grow(start: str, step: str) -> str:
    """A template that does `step` to n.x 60 times."""
    return f"{{% set n = namespace(x={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}"


LOOP = "{% for i in range(100000) %}"

ENDLESS = {
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": f"{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}",
    "filtered loops": (
        f"{LOOP}{{% for i in range(100000) if false %}}{{% endfor %}}{{% endfor %}}"
    ),
    "recursive loop": (
        "{% for i in range(9999) recursive %}"
        "{% if loop.depth < 4 %}{{ loop(range(9999)) }}{% endif %}{% endfor %}"
    ),
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "repeated text": "{{ 'a' * 10**10 }}",
    "repeated list": "{{ [1] * 10**10 }}",
    "repeated reversed": "{{ 10**10 * 'a' }}",
    "power": "{{ 9**(9**9) }}",
    "squares": grow("9", "{% set n.x = n.x * n.x %}"),
    "doubled by +": grow("'a'", "{% set n.x = n.x + n.x %}"),
    "doubled by ~": grow("'a'", "{% set n.x = n.x ~ n.x %}"),
    "doubled by set": grow("'a'", "{% set t %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = t %}"),
    "printed text": LOOP + "a" * 2000 + "{% endfor %}",
    "nested lists": grow("[]", "{% set n.x = [n.x, n.x] %}") + "{{ n.x }}",
    "nested lists as JSON": grow("[]", "{% set n.x = [n.x, n.x] %}") + "{{ n.x|tojson|length }}",
    "lorem ipsum": "{{ lipsum(n=10**7) }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_endless_template_ends(source: str) -> None:
    with pytest.raises(BadTemplate, match=r"more than|Range too big|Recursion|lipsum"):
        render(source)


def test_budget_is_per_rendering() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}")
    for _ in range(12):
        assert template.render(HELLO) == "Hello"


def test_a_long_conversation_is_within_the_budget() -> None:
    messages = [Message("user" if i % 2 else "assistant", "word " * 500) for i in range(1000)]
    chatml = next(case["template"] for case in GOLDEN["cases"] if case["name"] == "chatml")
    assert len(ChatTemplate(chatml).render(messages)) > 2_500_000


def test_no_messages() -> None:
    with pytest.raises(BadTemplate, match="give at least one"):
        ChatTemplate("x").render([])


def test_messages_of_other_kinds() -> None:
    with pytest.raises(BadTemplate, match="message 1 is of the type dict; make it"):
        render("x", *HELLO, {"role": "user", "content": "Hello"})  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["", "bot", "User"])
def test_unknown_role(role: str) -> None:
    with pytest.raises(BadTemplate, match=f"message 1 has the role '{role}'; use one of system"):
        render("x", *HELLO, Message(role, "Hello"))


def test_needs_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependency, match=r'pip install "lutra\[serve\]"'):
        ChatTemplate("x")


def test_needs_a_safe_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"jinja2": "3.1.5"}[name])
    with pytest.raises(MissingDependency, match=r"jinja2 3\.1\.5 has known ways out"):
        ChatTemplate("x")
