"""A peer for tests: answers what llama.cpp's side would, at once, and prints where it must not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping

from apps.bench.worker import Answer, Refusal, peak_rss_bytes

SYSTEM_INFO = "CPU : AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1"


class FakeSide:
    @property
    def requests(self) -> Mapping[str, Callable[..., Answer]]:
        return {
            "versions": self.versions,
            "load": self.load,
            "generate": self.generate,
            "memory": lambda: {"peak_rss_bytes": peak_rss_bytes()},
            "refuse": self.refuse,
            "fail": self.fail,
            "die": self.die,
            "linger": self.linger,
        }

    def versions(self) -> Answer:
        return {"llama_cpp_python": "1", "llama_cpp": "2", "system_info": SYSTEM_INFO}

    def load(self, path: str, threads: int, context: int, flash_attention: str) -> Answer:
        print("a library prints this")
        return {
            "load_s": 0.25,
            "flash_attention": flash_attention,
            "buffers": [f"{threads} {context} {flash_attention}"],
            "size": os.path.getsize(path),
        }

    def generate(self, prompt: list[int], count: int) -> Answer:
        time.sleep(0.001)
        return {"first_token_s": 0.5, "rest_s": 0.125 * (count - 1), "tokens": prompt[:1] * count}

    def refuse(self) -> Answer:
        raise Refusal("PromptTooLong", "what was found", "what to do")

    def fail(self) -> Answer:
        raise ZeroDivisionError("by zero")

    def die(self, by: int | None = None) -> Answer:
        os.write(2, b"the last words\n")
        if by is not None:
            os.kill(os.getpid(), by)
        os._exit(7)

    def linger(self) -> Answer:
        """Keep the process from ending with its input, as a library's thread may."""
        threading.Thread(target=time.sleep, args=(600,)).start()
        return {}


SIDE = FakeSide()
