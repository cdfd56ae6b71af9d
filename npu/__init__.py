"""NPU backends: Qualcomm's HTP and HVX. Of the other rooms it imports
`edge`, and of `cpu` the vector language and the kernels written in it.
"""
