"""A small vector language on LLVM, with one capability table per instruction set.

Kernels are written once in `language`; what an instruction set does its own way (dot products,
bit expansion, tiles) is in its table (`x86`, ...). `emit` makes machine code of a module.
"""
