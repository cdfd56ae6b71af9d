"""CPU backend: machine code from the graph for x86-64 and ARM64. Imports `edge` alone."""
