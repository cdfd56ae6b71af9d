"""llama.cpp's side of a benchmark, through the C interface that llama-cpp-python binds.

It runs in the peer's own Python: nothing of Lutra is needed there but the worker's loop.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from apps.bench.worker import Answer, Refusal, peak_rss_bytes

# llama.cpp's enum llama_ftype. It makes those under 3 bits with an importance matrix alone.
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XXS": 23,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "TQ1_0": 36,
    "TQ2_0": 37,
}

# Rows that its quantizer holds at once; its own default is 8 GiB.
_QUANTIZE_BYTES = 1 << 28

# llama.cpp's enum llama_flash_attn_type.
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}

_LOG_LINES = 500

_BATCH = 2048  # llama.cpp's default for n_batch; n_ubatch stays at its default of 512


class LlamaCppSide:
    """Holds one loaded model and its context."""

    def __init__(self) -> None:
        self._lib: Any = None
        self._model: Any = None
        self._context: Any = None
        self._log: deque[str] = deque(maxlen=_LOG_LINES)

    @property
    def requests(self) -> Mapping[str, Callable[..., Answer]]:
        return {
            "versions": self.versions,
            "quantize": self.quantize,
            "load": self.load,
            "generate": self.generate,
            "logits": self.logits,
            "memory": self.memory,
        }

    @property
    def lib(self) -> Any:
        """The bindings. Raises Refusal (MissingDependency) where they are not installed."""
        if self._lib is None:
            try:
                llama_cpp = importlib.import_module("llama_cpp")
            except (ImportError, OSError, RuntimeError) as error:
                raise Refusal("MissingDependency", f"no llama_cpp here ({error})", "") from error
            self._lib = llama_cpp
            self._callback = llama_cpp.llama_log_callback(self._keep_log)
            llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
            llama_cpp.llama_backend_init()
        return self._lib

    def versions(self) -> Answer:
        """Versions, and llama.cpp's line on the instruction sets it was built for."""
        return {
            "llama_cpp_python": self.lib.__version__,
            "llama_cpp": self.lib.llama_version().decode(),
            "system_info": self.lib.llama_print_system_info().decode().strip(" |"),
        }

    def quantize(
        self,
        source: str,
        out: str,
        form: str,
        threads: int,
        pure: bool = True,
        importance: Mapping[str, list[float]] | None = None,
    ) -> Answer:
        """Quantize a GGUF file, every matrix to the one format unless not `pure`.

        `importance` is the mean square of every input of a matrix, by the matrix's name there.
        """
        parameters = self.lib.llama_model_quantize_default_params()
        parameters.ftype = FILE_TYPES[form]
        parameters.pure = pure
        parameters.nthread = threads
        parameters.max_buf_size = _QUANTIZE_BYTES
        if importance:
            parameters.imatrix = self._imatrix(importance)
        paths = source.encode(), out.encode()
        if self.lib.llama_model_quantize(*paths, ctypes.byref(parameters)):
            raise self._failed(f"llama.cpp cannot quantize {source} to {form}")
        return {}

    def _imatrix(self, importance: Mapping[str, list[float]]) -> Any:
        """The array that llama.cpp takes; an entry without a name ends it."""
        kind = self.lib.llama_model_imatrix_data
        made = (kind * (len(importance) + 1))()
        for entry, (name, values) in zip(made, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = (ctypes.c_float * len(values))(*values)
        return made

    def load(self, path: str, threads: int, context: int, flash_attention: str) -> Answer:
        """Load a GGUF file with llama.cpp's own defaults but for what is given."""
        began = time.perf_counter()
        lib = self.lib
        self._model = lib.llama_model_load_from_file(
            path.encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise self._failed(f"llama.cpp cannot load {path}")
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = max(_BATCH, context)
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = FLASH_ATTENTION[flash_attention]
        self._context = lib.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise self._failed(f"llama.cpp cannot make a context of {context} for {path}")
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        return {
            "load_s": time.perf_counter() - began,
            "flash_attention": flash_attention,
            "buffers": self._buffers(),
        }

    def generate(self, prompt: list[int], count: int) -> Answer:
        """Run a prompt and draw `count` tokens greedily; see `Sample` for the times."""
        import numpy as np

        self._clear()
        times = [time.perf_counter()]
        batch, tokens = prompt, []
        for _ in range(count):
            self._decode(batch)
            logits = self.lib.llama_get_logits_ith(self._context, -1)
            tokens.append(int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax()))
            batch = tokens[-1:]
            times.append(time.perf_counter())
        return {
            "first_token_s": times[1] - times[0],
            "rest_s": times[-1] - times[1],
            "tokens": tokens,
        }

    def logits(self, tokens: list[int]) -> Answer:
        """Logits [tokens, vocabulary] after each token, one token a step."""
        self._clear()
        rows = []
        for token in tokens:
            self._decode([token])
            row = self.lib.llama_get_logits_ith(self._context, -1)
            rows.append(row[: self._vocabulary])
        return {"logits": rows}

    def memory(self) -> Answer:
        return {"peak_rss_bytes": peak_rss_bytes()}

    def _clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self._context), True)

    def _decode(self, tokens: list[int]) -> None:
        ids = (self.lib.llama_token * len(tokens))(*tokens)
        if self.lib.llama_decode(self._context, self.lib.llama_batch_get_one(ids, len(tokens))):
            raise self._failed(f"llama.cpp cannot run {len(tokens)} tokens")

    def _keep_log(self, level: int, text: bytes, data: object) -> None:
        del level, data
        self._log.append(text.decode(errors="replace"))

    def _buffers(self) -> list[str]:
        """What llama.cpp logged of where weights lie, such as "AMX model buffer size"."""
        lines = "".join(self._log).splitlines()
        return [" ".join(line.split(":", 1)[1].split()) for line in lines if "buffer size" in line]

    def _failed(self, what: str) -> Refusal:
        last = " ".join("".join(self._log).split()[-40:])
        return Refusal("LutraError", f"{what}: {last}", "see the peer's log above")


SIDE = LlamaCppSide()
