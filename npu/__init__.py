"""NPU backends: Qualcomm's HTP and HVX. Imports `edge` and `cpu.codegen` alone."""
