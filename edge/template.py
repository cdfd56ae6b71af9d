"""Chat templates: a conversation as the text that the model was trained on.

A template is Jinja2 source that came with a checkpoint, so it is somebody else's program. It runs
in Jinja2's sandbox with the settings and functions of Transformers' apply_chat_template, and within
bounds: see `ChatTemplate`.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

from edge.errors import BadTemplate, MissingDependency

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

ROLES = ("system", "developer", "user", "assistant", "tool")

# Versions before have known ways out of the sandbox.
_JINJA2 = (3, 1, 6)

# What one rendering may do: 100 times what a conversation that fills a context of 128k tokens needs
# (some 10,000 steps and a million characters), and over in seconds.
_MAX_STEPS = 1_000_000
_MAX_CHARACTERS = 100_000_000
_MAX_INTEGER_BITS = 4096

# What an element of a list counts, in characters, where lists are printed: its share of the time.
_ELEMENT = 64

# Names of our own filters, which no template can spell.
_CHARGE = "lutra charge"
_CONCAT = "lutra concat"

_FILE = "<template>"
_CURE = "use another chat template, or lutra run --raw with a plain prompt"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is one of ROLES."""

    role: str
    content: str


class ChatTemplate:
    """A compiled chat template.

    `special_tokens` are texts by name ("bos_token": "<s>") that the template may print; `clock` is
    the time for templates that print it. Raises BadTemplate for source that is empty, is not
    Jinja2, or would step out of the sandbox; MissingDependency without jinja2.

    A rendering ends in BadTemplate when it loops, calls macros or prints more than 1,000,000 times,
    prints or joins more than 100,000,000 characters, makes a range of more than 100,000 numbers or
    an integer of more than 4096 bits. What a single filter or method makes is not bounded ahead:
    one asked for a huge width may take as much memory as there is.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        if not source.strip():
            raise BadTemplate("the chat template is empty", _CURE)
        self._special_tokens: dict[str, object] = dict(special_tokens or {})
        self._budget = _Budget()
        self._lock = Lock()  # a budget is for one rendering at a time
        self._template = _compile(source, clock, self._budget)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text, its special tokens spelled out.

        `add_generation_prompt` ends it where the assistant's answer begins. Raises BadTemplate for
        messages that this template, or any, does not take.
        """
        _check(messages)
        with self._lock:
            self._budget.renew()
            return self._render(
                self._special_tokens
                | {
                    "messages": [asdict(message) for message in messages],
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )

    def _render(self, variables: Mapping[str, object]) -> str:
        from jinja2.exceptions import SecurityError

        try:
            return self._template.render(variables)
        except _Refusal as error:
            raise BadTemplate(f"the chat template says: {error}", "change the messages") from error
        except (SecurityError, _OverBudget) as error:
            raise BadTemplate(f"unsafe chat template{_where(error)}: {error}", _CURE) from error
        except Exception as error:  # a template can raise whatever Python can
            raise BadTemplate(
                f"the chat template fails{_where(error)}: {type(error).__name__}: {error}",
                f"change the messages; {_CURE}",
            ) from error


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise BadTemplate("a conversation without messages", "give at least one")
    for index, message in enumerate(messages):
        if not isinstance(message, Message):
            raise BadTemplate(
                f"message {index} is of the type {type(message).__name__}",
                'make it with edge.Message("user", "text")',
            )
        if message.role not in ROLES:
            raise BadTemplate(
                f"message {index} has the role {message.role!r}", f"use one of {', '.join(ROLES)}"
            )


def _where(error: BaseException) -> str:
    """Where in the template an error was raised, for a message."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == _FILE]
    return f" (line {lines[-1]})" if lines else ""


# Compiling.


def _compile(source: str, clock: Callable[[], datetime], budget: _Budget) -> jinja2.Template:
    environment = _environment(clock, budget)
    from jinja2 import Template, TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    try:
        code = environment.compile(_metered(environment.parse(source)), filename=_FILE)
    except TemplateSyntaxError as error:
        what = f"the chat template is not Jinja2: line {error.lineno}: {error.message}"
        raise BadTemplate(what, _CURE) from error
    except SecurityError as error:
        raise BadTemplate(f"unsafe chat template: {error}", _CURE) from error
    except RecursionError as error:
        raise BadTemplate("unsafe chat template: nested too deep", _CURE) from error
    return Template.from_code(environment, code, environment.make_globals(None))


def _environment(clock: Callable[[], datetime], budget: _Budget) -> jinja2.Environment:
    """Transformers' environment, with our bounds. Raises MissingDependency."""
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise _need_jinja2("chat templates need the jinja2 package") from error
    from importlib import metadata  # 2 MB, and few programs use a template

    version = metadata.version("jinja2")
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < _JINJA2:
        raise _need_jinja2(f"jinja2 {version} has known ways out of its sandbox")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation_tag(), "jinja2.ext.loopcontrols"],
        finalize=budget.printed,
    )
    environment.filters["tojson"] = budget.to_json
    environment.filters[_CHARGE] = jinja2.pass_context(lambda _, count: budget.charge(count))
    environment.filters[_CONCAT] = budget.concat
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: clock().strftime(form)
    del environment.globals["lipsum"]  # makes as much text as it is asked for
    operators = {"+": budget.add, "*": budget.multiply, "**": budget.power}
    environment.intercepted_binops = frozenset(operators)
    environment.binop_table.update(operators)
    return environment


def _need_jinja2(what: str) -> MissingDependency:
    return MissingDependency(what, 'pip install "lutra[serve]", or use lutra run --raw')


def _generation_tag() -> type[Extension]:
    """`{% generation %}` marks what an assistant said, for training; here it only holds text."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


def _metered(tree: nodes.Template) -> nodes.Template:
    """The template with a charge in all that can run many times, and with our own `~`."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.visitor import NodeTransformer

    def charge(characters: int = 0) -> nodes.Expr:
        return nodes.Filter(nodes.Const(characters), _CHARGE, [], [], None, None)

    class Meter(NodeTransformer):
        def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
            texts = [part.data for part in node.nodes if isinstance(part, nodes.TemplateData)]
            self.generic_visit(node)
            node.nodes.insert(0, charge(sum(map(len, texts))))
            return node

        def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            node.body.insert(0, nodes.Output([charge()]))
            if node.test is not None:  # else the turns that it leaves out would be free
                node.test = nodes.Or(charge(), node.test)
            return node

        def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            node.body.insert(0, nodes.Output([charge()]))
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
            self.generic_visit(node)
            first, *rest = node.nodes
            return nodes.Filter(first, _CONCAT, rest, [], None, None, lineno=node.lineno)

        def visit_NSRef(self, node: nodes.NSRef) -> nodes.Node:  # noqa: N802
            if node.attr.startswith("_"):
                raise SecurityError(f"sets the attribute {node.attr!r} of a namespace")
            return node

    metered = Meter().visit(tree)
    assert isinstance(metered, nodes.Template)
    return metered


# What runs in the sandbox, beside Jinja2's own functions.


class _Refusal(Exception):
    """The template called raise_exception."""


class _OverBudget(Exception):
    """The template does more than any chat template has to."""


def _refuse(message: object) -> None:
    raise _Refusal(message)


class _Budget:
    """What is left of the steps and characters of a rendering; functions that take from it."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.steps = _MAX_STEPS
        self.characters = _MAX_CHARACTERS

    def charge(self, characters: int) -> str:
        """Take one step and some characters; prints nothing."""
        self.steps -= 1
        self.characters -= characters
        if self.steps < 0:
            raise _OverBudget(f"takes more than {_MAX_STEPS} steps")
        if self.characters < 0:
            raise _OverBudget(f"makes more than {_MAX_CHARACTERS} characters")
        return ""

    def printed(self, value: object) -> object:
        """Charge what is about to be printed. Lists in lists in lists can be long, and small."""
        match value:
            case str():
                self.charge(len(value))
            case list() | tuple():
                self._printed_all(value)
            case dict():
                self._printed_all(value)
                self._printed_all(value.values())
        return value

    def _printed_all(self, values: Iterable[object]) -> None:
        for value in values:
            self.charge(_ELEMENT)
            self.printed(value)

    def to_json(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Transformers' filter tojson: Jinja2's own would escape HTML."""
        return json.dumps(
            self.printed(value),
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def concat(self, *values: object) -> str:
        """The operator ~."""
        return "".join(str(self.printed(value)) for value in values)

    def add(self, a: Any, b: Any) -> Any:
        """The operator +."""
        self.charge(_size(a) + _size(b))
        return a + b

    def multiply(self, a: Any, b: Any) -> Any:
        """The operator *, of a sequence and a number or of two numbers."""
        if isinstance(a, int) and isinstance(b, int):
            _require_bits(a.bit_length() + b.bit_length())
        else:
            times = next((number for number in (a, b) if isinstance(number, int)), 1)
            self.charge((_size(a) + _size(b)) * max(times, 0))
        return a * b

    def power(self, a: Any, b: Any) -> Any:
        """The operator **."""
        if isinstance(a, int) and isinstance(b, int):
            _require_bits(a.bit_length() * b)
        return a**b


def _size(value: object) -> int:
    """Characters of a string, or what the elements of a list count as."""
    if isinstance(value, str):
        return len(value)
    return len(value) * _ELEMENT if isinstance(value, list | tuple) else 0


def _require_bits(bits: int) -> None:
    if bits > _MAX_INTEGER_BITS:
        raise _OverBudget(f"makes an integer of more than {_MAX_INTEGER_BITS} bits")
