"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them.

A layer of K inputs and N outputs is qweight int32 [K * bits / 32, N], packed along K; qzeros int32
[groups, N * bits / 32], packed along N; scales [groups, N]; g_idx [K], the group of each input. A
weight is scale * (code - zero), where the first version of the format stores zero - 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from converter.models.config import Config
from converter.sources.huggingface import Checkpoint
from converter.sources.packed import (
    WORD_BITS,
    Integers,
    Linear,
    expect_matrix,
    expect_shape,
    unpack_words,
    with_order,
)

# How it was found, which kernels ran it, and other things that do not change what it means.
_INERT_WORDS = """
    act_group_aware adapter auto_round backend batch_size block_name_to_quantize cache_block_outputs
    damp_auto_increment damp_percent data_type dataset desc_act disable_exllama enable_full_range
    exllama_config failsafe hyb_act is_marlin_format iters low_cpu_mem_usage low_gpu_mem_usage lr
    max_input_length meta minmax_lr model_file_base_name model_name_or_path model_seqlen
    module_name_preceding_first_block modules_in_block_to_quantize mse nsamples offload_to_disk
    pad_token_id quant_method seqlen static_groups tokenizer true_sequential use_cuda_fp16
    use_exllama quantizer autoround_version enable_quanted_input enable_minmax_tuning
"""
_INERT = tuple(_INERT_WORDS.split())


@dataclass(frozen=True)
class Gptq:
    """The packing of one checkpoint. `offset` is what its zeros lack."""

    bits: int
    group_size: int
    symmetric: bool
    offset: int
    kind: str = "GPTQ"

    @staticmethod
    def parse(section: Config) -> Gptq:
        """Read a quantization_config. Raises UnsupportedMath naming the key."""
        bits = section.integer("bits")
        if bits not in (2, 3, 4, 8):
            raise section.unsupported("bits", "need 2, 3, 4 or 8")
        size = section.peek("group_size")
        if type(size) is not int or (size != -1 and size < 1):
            raise section.unsupported("group_size", "need -1 or a number of weights")
        key = "format" if section.peek("format") else "checkpoint_format"
        version = section.choice(key, ["gptq", "gptq_v2"], "gptq")
        section.choice("pack_dtype", ["int32"], "int32")
        section.ignore("checkpoint_format", "format", *_INERT)
        if section.peek("is_marlin_format"):
            raise section.unsupported("is_marlin_format", "need the plain format")
        symmetric = section.flag("sym", True)
        section.flag("lm_head", False)
        section.finish()
        return Gptq(bits, size, symmetric, 1 if version == "gptq" else 0)

    def stems(self, checkpoint: Checkpoint) -> Iterable[str]:
        return [n.removesuffix(".qweight") for n in checkpoint.tensor_names if ".qweight" in n]

    def parts(self) -> tuple[str, ...]:
        return ("qweight", "qzeros", "scales", "g_idx")

    def describe(self, checkpoint: Checkpoint, stem: str) -> Linear:
        words, out = expect_matrix(checkpoint, f"{stem}.qweight", "I32")
        width = words * WORD_BITS // self.bits
        group = width if self.group_size == -1 else min(self.group_size, width)
        linear = Linear((out, width), self.bits, group, not self.symmetric)
        groups = linear.group_count
        zero_words = -(-out * self.bits // WORD_BITS)
        expect_shape(checkpoint, f"{stem}.qzeros", (groups, zero_words), "I32")
        expect_shape(checkpoint, f"{stem}.scales", (groups, out), "")
        return with_order(linear, checkpoint, f"{stem}.g_idx", "I32")

    def read(
        self, checkpoint: Checkpoint, stem: str, linear: Linear, first: int, last: int
    ) -> Integers:
        words = checkpoint.raw(f"{stem}.qweight")[:, first:last]
        zeros = unpack_words(checkpoint.raw(f"{stem}.qzeros"), self.bits)[:, first:last]
        scales = checkpoint.rows(f"{stem}.scales", 0, linear.group_count)[:, first:last]
        codes = unpack_words(words.T, self.bits)
        # masked, as AutoGPTQ does: a zero of 0 is stored as -1
        mask = np.uint8((1 << self.bits) - 1)
        return Integers(codes, scales.T, (zeros.T + np.uint8(self.offset)) & mask)
