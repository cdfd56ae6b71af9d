"""Quantizers: from float rows to codes, scales and zeros."""
