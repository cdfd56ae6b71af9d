"""Arithmetic and units. The model writes the expression; the device computes it."""

from __future__ import annotations

from apps.pocket.schema import Action

ACTIONS = (
    Action(
        "calculate",
        {"expression": "expression"},
        (
            "!(what is|how much is|what's) {expression:sum}",
            "(calculate|compute|work out|solve) {expression:sum}",
            "(tell me|give me) (the result of|) {expression:sum}",
            "{expression:sum}",
            "!how much (does|do|would) {expression:sum} (make|give)",
            "(find|get) the (result|answer) of {expression:sum}",
        ),
        (
            "!what does {expression:sum} make",
            "!what is the result of {expression:sum}",
            "solve this, {expression:sum}",
            "work out the answer of {expression:sum}",
            "compute for me {expression:sum}",
        ),
        2.5,
    ),
    Action(
        "convert_units",
        {"value": "number", "from": "unit", "to": "unit"},
        (
            "(convert|change|turn) {units:units_in}",
            "!(what is|how much is|what's) {units:units_in}",
            "!how many {units:units_of}",
            "(tell me|give me) {units:units_in}",
            "{units:units_in}",
            "!how many {units:units_make}",
        ),
        (
            "(calculate|compute) {units:units_in}",
            "(tell me|work out) how many {units:units_of}",
            "!what are {units:units_in}",
            "(tell me|work out) how many {units:units_make}",
        ),
        2.2,
    ),
)
