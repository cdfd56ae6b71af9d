"""Exact match: how many held-out commands a model turns into exactly the action that was meant."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps.options import load_model
from apps.output import print_json
from apps.pocket.dataset import Example, held_out_set
from apps.pocket.tokenizer import ANSWER, EOS, render
from apps.progress import Bar
from edge.errors import UsageError
from edge.generate import prefill
from edge.model import Model


@dataclass(frozen=True)
class Answer:
    """An example, and whether the model answers it to the letter."""

    example: Example
    right: bool


def check_model(model: Model) -> None:
    """Raises UsageError where the model does not take pocket's prompts."""
    if model.tokenizer.token_id(ANSWER) is None:
        raise UsageError(
            f"{model.bundle.folder}: its tokenizer has no {ANSWER}, so it is not pocket's",
            "exact match is for `pocket` and other conversions of its checkpoint",
        )


def answer_all(
    model: Model, examples: Sequence[Example], advance: Callable[[int], None]
) -> list[Answer]:
    """Ask the model for every example's action."""
    answers = []
    for example in examples:
        answers.append(Answer(example, is_exact(model, example)))
        advance(1)
    return answers


def is_exact(model: Model, example: Example) -> bool:
    """Whether greedy decoding gives the action and ends, on what prompts and decoding run on.

    Every token of the action must be the likeliest after those before it.
    """
    tokenizer = model.tokenizer
    cache = model.session().cache
    given = tokenizer.encode_chat(render(example.command))
    for token in tokenizer.encode_chat(example.action + EOS):
        if prefill(model.program, cache, given).argmax() != token:
            return False
        given = [token]
    return True


def share(answers: Sequence[Answer]) -> float:
    """Share of answers that are right."""
    return sum(answer.right for answer in answers) / len(answers)


def by_action(answers: Sequence[Answer]) -> dict[str, float]:
    """The share by action."""
    names = dict.fromkeys(answer.example.name for answer in answers)
    return {name: share([a for a in answers if a.example.name == name]) for name in names}


# The verb `lutra eval --exact-match`.


def run(args: argparse.Namespace) -> int:
    """Ask the model that the options name for the held-out set's actions and print the share."""
    if args.commands < 1:
        raise UsageError(f"--commands {args.commands}", "use 1 or more")
    model = load_model(args)
    check_model(model)
    bar = Bar(quiet=args.quiet)
    bar.start("exact match", args.commands, "commands")
    answers = answer_all(model, held_out_set(args.commands), bar.advance)
    bar.finish()
    wrong = [answer.example for answer in answers if not answer.right]
    values = {
        "exact_match": share(answers),
        "commands": len(answers),
        "actions": by_action(answers),
        "wrong": [example.command for example in wrong],
        "measure": "emulated" if model.emulated else "measured",
        "target": model.place,
    }
    if args.json:
        print_json(values)
        return 0
    for example in wrong:
        print(f"not exact: {example.command!r}, should be {example.action}")
    print(
        f"{args.bundle}: exact match {100 * share(answers):.2f} % of {len(answers)} held-out "
        f"commands ({values['measure']}, {model.place})"
    )
    return 0
