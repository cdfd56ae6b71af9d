"""Embedding lookup: rows of a quantized or float table, in float32."""

from __future__ import annotations

from cpu.codegen.language import F16, F32, I8, I32, I64, Code, Value
from cpu.kernels.kernel import Arguments, Kernel, Thread, minimum
from edge.formats import Format
from edge.planes import QUAD, STEP, TILE

SLOTS = (
    *("tokens", "codes", "scales", "zeros", "out"),
    *("rows", "width", "groups", "steps", "vocabulary", "out_stride", "scale"),
)


def embedding_kernel(form: Format) -> Kernel:
    """out[row] = table[tokens[row]] * scale; rows are split among the threads.

    A token that the table of `vocabulary` rows has not is taken for its last one.
    Its twin is `StoredTensor.rows`.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("rows"))
        with code.loop(first, last) as row:
            token = code.load(I32, a.pointer("tokens"), row * 4).to(I64, unsigned=True)
            token = minimum(token, a.integer("vocabulary") - 1)
            out = code.offset(a.pointer("out"), row * a.integer("out_stride"))
            if form.quantized:
                _Row(code, a, form, token).write(out)
            else:
                _copy(code, a, form, token, out)

    return Kernel(f"embedding_{form}", SLOTS, body)


class _Row:
    """Writes the code that decodes one row of a quantized table, 8 weights at a time."""

    def __init__(self, code: Code, a: Arguments, form: Format, token: Value) -> None:
        self.code, self.a, self.form = code, a, form
        self.tile, self.lane = token // TILE, token % TILE

    def write(self, out: Value) -> None:
        code = self.code
        with code.loop(0, self.a.integer("steps")) as step:
            scale, zero = self.scale_and_zero(step)
            parts = self.codes(step).to(I32, unsigned=True) * self.form.zero_parts - zero
            factor = scale * (self.a.number("scale") * (1 / self.form.zero_parts))
            weights = parts.to(F32) * factor.broadcast(STEP)
            code.store(weights, out, step * (4 * STEP))

    def codes(self, step: Value) -> Value:
        """8 codes as bytes."""
        code, a, bits = self.code, self.a, self.form.bits
        if bits == 8:
            quads = (a.integer("width") + (QUAD - 1)) // QUAD
            # the last step may be of one half; the other is not part of the row
            halves = (step * 2, minimum(step * 2 + 1, quads - 1))
            low, high = (
                code.load(
                    I8.of(QUAD),
                    a.pointer("codes"),
                    ((self.tile * quads + quad) * TILE + self.lane) * QUAD,
                )
                for quad in halves
            )
            return low.shuffle(range(8), high)
        place = (self.tile * a.integer("steps") + step) * (bits * TILE) + self.lane
        masks = code.constant(I8.of(STEP), [1, 2, 4, 8, 16, 32, 64, -128])
        made = code.constant(I8.of(STEP), 0)
        for plane in range(bits):
            byte = code.load(I8, a.pointer("codes"), place + plane * TILE).broadcast(STEP)
            absent = (byte & masks).equals(0)
            made = made | absent.select(code.constant(I8.of(STEP), 0), 1 << plane)
        return made

    def scale_and_zero(self, step: Value) -> tuple[Value, Value]:
        """The zero in the parts of a code that zeros are counted in."""
        code, a, form = self.code, self.a, self.form
        group = (
            step // (form.group // STEP) if form.granularity == "group" else code.constant(I64, 0)
        )
        index = (self.tile * a.integer("groups") + group) * TILE + self.lane
        zero = code.constant(I32, int(form.zero * form.zero_parts))
        if form.asymmetric:
            stored = code.load(I8, a.pointer("zeros"), index).to(I32, unsigned=True)
            zero = stored - form.zero_first
        if form.granularity == "tensor":
            return code.load(F32, a.pointer("scales")), zero
        kind = F16 if form.granularity == "group" else F32
        return code.load(kind, a.pointer("scales"), index * kind.byte_count).to(F32), zero


def _copy(code: Code, a: Arguments, form: Format, token: Value, out: Value) -> None:
    kind = F16 if form.bits == 16 else F32
    source = code.offset(a.pointer("codes"), token * a.integer("width") * kind.byte_count)
    with code.loop(0, a.integer("width")) as i:
        value = code.load(kind, source, i * kind.byte_count).to(F32)
        code.store(value * a.number("scale"), out, i * 4)
