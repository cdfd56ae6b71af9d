"""Continue a prompt.

A bundle with a chat template gets the prompt as a user's message, unless --raw. With --json the
text comes in the object, with the rates, which are measured; an emulated NPU has none.

examples:
  lutra run pocket -p "wake me at half past six on weekdays"
  lutra run model.lutra -p "Once upon a time" --greedy
  echo "What is a lutra?" | lutra run model.lutra --max-tokens 50
  lutra run model.lutra --tokens "1 403 407" --json
  lutra run model.lutra -p "Once upon a time" --prefill npu:htp-v75 --decode cpu
  lutra run model.lutra -p "Once upon a time" --trace run.json
  lutra run model.lutra -p "Once upon a time" --decode npu:hvx-v67
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apps.options import add_model_options, add_sampling_options, load_model, read_sampling
from apps.output import print_json
from apps.pocket.bundle import encode_chat
from edge.errors import UsageError
from edge.generate import Record
from edge.model import Model
from edge.template import Message
from edge.trace import Run, Word, generation_slices, timeline_slices, write_trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="text (default: standard input)")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="text from a file")
    prompt.add_argument("--tokens", metavar="IDS", help="token ids, separated by spaces")
    parser.add_argument("--raw", action="store_true", help="no chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message, with a chat template")
    add_sampling_options(parser)
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write when what ran, and every job of an NPU's prefill, for ui.perfetto.dev",
    )


@dataclass(frozen=True)
class Prompt:
    """What to run: `shown` is printed before the continuation."""

    ids: list[int]
    shown: str


def run(args: argparse.Namespace) -> int:
    model = load_model(args)
    prompt = _read_prompt(args, model)
    records = model.stream(
        prompt.ids,
        max_tokens=args.max_tokens,
        sampling=read_sampling(args, model),
        stop=args.stop,
    )
    if not args.json:
        print(prompt.shown, end="", flush=True)
    made = list(_shown(records, silent=args.json))
    last = made[-1]
    if args.trace is not None:
        write_trace(args.trace, [_traced(model, made, f"lutra run {args.bundle}")])
    if args.json:
        print_json(_values(model, made))
    elif not args.quiet:
        print(_summary(model, last), file=sys.stderr)
    return 0


def _traced(model: Model, records: list[Record], name: str) -> Run:
    """The generation; and the jobs of its prompt, a track a processor, where an NPU ran it."""
    word: Word = "emulated" if model.emulated else "measured"
    slices = generation_slices(records, model.place)
    if (timeline := model.prefill_timeline) is not None:
        slices += timeline_slices(timeline)
    return Run(name, word, slices)


def _shown(records: Iterator[Record], *, silent: bool) -> Iterator[Record]:
    """Print each piece of text as it comes."""
    for record in records:
        if not silent:
            print(record.text, end="", flush=True)
        yield record
    if not silent:
        print(flush=True)


def _read_prompt(args: argparse.Namespace, model: Model) -> Prompt:
    if args.tokens is not None:
        return Prompt(_token_ids(args.tokens), "")
    text = _prompt_text(args)
    if model.bundle.manifest.tokenizer.chat_template is None or args.raw:
        if args.system is not None:
            raise UsageError("--system needs a chat template", "leave it out, or drop --raw")
        return Prompt(model.encode(text), text)
    messages = [Message("user", text)]
    if args.system is not None:
        messages.insert(0, Message("system", args.system))
    return Prompt(encode_chat(model, messages), "")


def _prompt_text(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return str(args.prompt)
    if args.prompt_file is not None:
        try:
            return str(args.prompt_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            what = f"--prompt-file {args.prompt_file}: {error}"
            raise UsageError(what, "give a UTF-8 text file") from error
    if sys.stdin.isatty():
        raise UsageError("no prompt", 'give one with -p "text", --prompt-file, or a pipe')
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: {error}", "give UTF-8 text") from error


def _token_ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise UsageError(f"--tokens {text!r}", 'give whole numbers, such as "1 403 407"')
    return [int(word) for word in words]


def _values(model: Model, records: list[Record]) -> dict[str, object]:
    last = records[-1]
    return {
        "text": "".join(record.text for record in records),
        "token_ids": [record.token for record in records if record.token is not None],
        "finish_reason": last.finish_reason,
        "prompt_tokens": last.prompt_tokens,
        "prefill_tok_s": None if model.prefill_emulated else last.prefill_tok_s,
        "decode_tok_s": last.decode_tok_s,
        "rates": _rates(model),
        "target": model.place,
        "note": model.note,
    }


def _summary(model: Model, last: Record) -> str:
    rate = f"at {last.prefill_tok_s:.1f} tok/s"
    return (
        f"[{model.place}: {last.prompt_tokens} prompt tokens "
        f"{'emulated' if model.prefill_emulated else rate}, {last.generated_tokens} tokens at "
        f"{last.decode_tok_s:.1f} tok/s ({_rates(model)}); ended by {last.finish_reason}]"
    )


def _rates(model: Model) -> str:
    """What the rates are: an emulator's are no device's."""
    return "emulated" if model.decode_emulated else "measured"
