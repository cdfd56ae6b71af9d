"""Pocket: a small model of our own that turns a spoken command into a device action as JSON.

The text it learns from is generated here (`grammar`, `actions/`, `dataset`), as are its tokenizer
and its weights (`tokenizer`, `train`).
"""
