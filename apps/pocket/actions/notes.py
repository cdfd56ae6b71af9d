"""Notes and lists."""

from __future__ import annotations

from apps.pocket.schema import Action

ACTIONS = (
    Action(
        "create_note",
        {"text": "text"},
        (
            "(note|note down|write down|jot down) (that|) {text:note}",
            "(make|take|create|add|write) a note (that|saying|) {text:note}",
            "(make|take|create|write) a note(,|:) {text:note}",
            "(new|) note(,|:) {text:note}",
            "(remember|keep in mind) that {text:note}",
            "note this down(,|:) {text:note}",
            "put (down|) in my notes (that|:) {text:note}",
            "save (a note|the note|this) (that|saying|) {text:note}",
            "(write|put) (this|) in my notes, {text:note}",
            "!(i want to|i need to|let me) (note|write down|remember) that {text:note}",
        ),
        (
            "add a note, {text:note}",
            "write this down, {text:note}",
            "keep a note that {text:note}",
            "(note|remember) this, {text:note}",
            "keep in my notes that {text:note}",
            "!i want to save a note saying {text:note}",
        ),
        2.4,
    ),
    Action(
        "add_to_list",
        {"item": "text", "list": "text"},
        (
            "(add|put|write) {item:item} (to|on|onto) (my|the) {list:list} list",
            "(add|put) {item:item} (to|on) {list:list} list",
            "{item:item} (on|to|goes on|goes to) (my|the) {list:list} list",
            "(my|the) {list:list} list needs {item:item}",
            "on (my|the) {list:list} list (put|write|add) {item:item}",
            "!(we|i) need {item:item} on (my|the) {list:list} list",
        ),
        (
            "(get|have) {item:item} on (my|the) {list:list} list",
            "to the {list:list} list add {item:item}",
            "!i want {item:item} on my {list:list} list",
            "write {item:item} down on the {list:list} list",
            "add to my {list:list} list {item:item}",
        ),
        2.0,
    ),
    Action(
        "show_list",
        {"list": "text"},
        (
            "(show|read|open|give|tell) (me|) (my|the) {list:list} list",
            "!what is on (my|the) {list:list} list",
            "!what do i have on (my|the) {list:list} list",
            "!is there anything on (my|the) {list:list} list",
            "let me (see|read|hear) my {list:list} list",
            "(read out|bring up|display) (my|the) {list:list} list",
        ),
        (
            "!what does my {list:list} list say",
            "let me see the {list:list} list",
            "check the {list:list} list",
            "tell me what is on my {list:list} list",
        ),
        1.2,
    ),
    Action(
        "find_note",
        {"about": "text"},
        (
            "(find|show|open|search|read) (me|) (my|the) (note|notes) about (the|my|) {about:item}",
            "!what did i (write|note) (down|) about (the|my|) {about:item}",
            "!where is (my|the) note about (the|my|) {about:item}",
            "(look for|search for) (my|the|a) note (about|on) (the|my|) {about:item}",
            "(search|look in) my notes for (the|) {about:item}",
            "!do i have (a note|notes|any notes) about (the|my|) {about:item}",
            "!which note is about (the|my|) {about:item}",
            "!is there (anything|something) in my notes about (the|my|) {about:item}",
        ),
        (
            "!which notes do i have about the {about:item}",
            "look up my notes about {about:item}",
            "find what i wrote about the {about:item}",
            "!is there a note about my {about:item}",
        ),
        1.2,
    ),
)
