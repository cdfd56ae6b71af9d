"""Kernels in the vector language, each beside its plain NumPy twin.

All have one signature: a pointer to their arguments (64-bit slots), the thread's index, and how
many threads there are. Threads split the work among themselves; what a kernel writes in slices is
whole after the next barrier.
"""
