"""Prefill on one program and decode on another, over one KV cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.backend import Program, PromptProgram, WholeProgram
from edge.kvcache import KVCache
from edge.target import Target


class Pair:
    """Prompts on one program, single tokens on another. See `edge.backend.Program`.

    `edge.generate.prefill` gives `prompt` what is longer than a token; `run` is decode's.
    """

    def __init__(self, prompt: PromptProgram, decode: Program) -> None:
        self.prompt = prompt
        self.decode = decode

    @property
    def target(self) -> Target:
        """Decode's."""
        return self.decode.target

    @property
    def place(self) -> str:
        """What they run on, in words."""
        decode = self.decode.place if isinstance(self.decode, WholeProgram) else self.target
        return f"prefill on {self.prompt.place}, decode on {decode}"

    @property
    def decode_emulated(self) -> bool:
        """Whether decoding runs in emulation, where times mean nothing."""
        if isinstance(self.decode, WholeProgram):
            return self.decode.emulated
        return self.target.emulated

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.decode.chunks

    def run(
        self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run a chunk on decode's program."""
        return self.decode.run(tokens, count, cache, logit_rows)
