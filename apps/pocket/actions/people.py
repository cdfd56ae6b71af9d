"""Messages, calls, mail, and drafts of replies."""

from __future__ import annotations

from apps.pocket.schema import Action

ACTIONS = (
    Action(
        "send_message",
        {"to": "text", "text": "text"},
        (
            "(text|message) {to:first} {text:message}",
            "(text|message|tell) {to:person} that {text:message}",
            "tell {to:first} {text:message}",
            (
                "(send|write) (a|) (message|text) to {to:person} (saying|that says|that) "
                "{text:message}"
            ),
            "(send|write) {to:person} a (message|text) (saying|that says|that) {text:message}",
            "send {to:first} {text:message}",
            "write (to|) {to:first} {text:message}",
            "let {to:person} know (that|) {text:message}",
            "say {text:message} to {to:person}",
            "say to {to:person} {text:message}",
            "message to {to:person}(,|:) {text:message}",
            "(send|write) a message to {to:person}(,|:) {text:message}",
            "(text|message) {to:person} and say {text:message}",
            "tell {to:person} this(,|:) {text:message}",
            "send {text:message} as a message to {to:person}",
        ),
        (
            "send a text to {to:person}, {text:message}",
            "write a message saying {text:message} to {to:person}",
            "write {to:person} that {text:message}",
            "(tell|text) {to:person}, {text:message}",
            "drop {to:person} a message saying {text:message}",
            "let {to:person} know this, {text:message}",
            "send {text:message} to {to:person}",
        ),
        4.0,
    ),
    Action(
        "send_email",
        {"to": "text", "subject?": "text"},
        (
            "(write|send|start|compose) (an email|a mail|an e-mail|mail) to {to:person}",
            (
                "(write|send|start|compose) (an email|a mail|mail) to {to:person} about "
                "(the|my|) {subject:item}"
            ),
            "(email|mail) {to:person}",
            "(email|mail) {to:person} about (the|my|) {subject:item}",
            "(write|send) {to:person} (an email|a mail) about (the|my|) {subject:item}",
            "new (email|mail) to {to:person}",
            "new (email|mail) to {to:person} about (the|my|) {subject:item}",
            (
                "!i (want|need|have) to (write|mail|send) {to:person} "
                "an email about the {subject:item}"
            ),
        ),
        (
            "(write|send) {to:person} (an email|a mail)",
            "!i want to email {to:person} about the {subject:item}",
            "!i need to send {to:person} a mail",
            "make a new email to {to:person} about the {subject:item}",
        ),
        1.2,
    ),
    Action(
        "read_messages",
        {"from?": "text"},
        (
            "(read|show|open|check) (me|) my (new|last|) messages",
            "(read|show|open|check) (me|) (my|the) messages from {from:person}",
            "(read|show) (me|) (the|my) last message from {from:person}",
            "!do i have (any|new|any new) messages",
            "!did {from:person} (write|text|send) (to me|me|anything)",
            "!what did {from:person} (write|text|say|send)",
            "read what {from:person} (sent|sent me|said)",
            "!is there (a message|anything) from {from:person}",
            "!has {from:person} (answered|written)",
            "!any (new|) messages from {from:person}",
            "!any new messages",
        ),
        (
            "!did i get a message from {from:person}",
            "!do i have messages from {from:person}",
            "!is there anything new from {from:person}",
            "read what {from:person} wrote",
            "check for new messages",
        ),
        1.2,
    ),
    Action(
        "call",
        {"to": "text"},
        (
            "(call|phone|ring|dial) {to:person}",
            "(give|make) {to:person} a (call|ring)",
            "(make|start|place) a (call|phone call) to {to:person}",
            "get {to:person} on the (phone|line)",
            "(call|ring) {to:person} (up|now|back)",
            "!i (want|need|have) to (call|talk to|speak to|speak with) {to:person}",
            "(let me talk|put me through|connect me) to {to:person}",
            "phone up {to:person}",
            "(let me|i want to) (ring|reach) {to:person}",
            "start a call (to|with) {to:person}",
            "dial the number of {to:person}",
        ),
        (
            "(call|phone) {to:person} for me",
            "dial {to:person} now",
            "!i want to phone {to:person}",
            "let me speak to {to:person}",
            "start a phone call with {to:person}",
            "connect me with {to:person}",
        ),
        2.0,
    ),
    Action(
        "video_call",
        {"to": "text"},
        (
            "(video call|videocall|facetime) {to:person}",
            "(make|start|place) a video call (to|with) {to:person}",
            "(call|ring|phone) {to:person} with (camera|a camera)",
            "(call|ring|phone) {to:person} (on video|with video|by video)",
            "!i want (to see|a video call with) {to:person}",
            "(give|make) {to:person} a video call",
            "(video chat|start a video chat) with {to:person}",
        ),
        (
            "call {to:person} with the camera on",
            "!i want to video call {to:person}",
            "get {to:person} on video",
            "video call to {to:person}",
            "make a video chat with {to:person}",
        ),
        0.9,
    ),
    Action(
        "hang_up",
        {},
        (
            "(hang up|end the call|end this call|stop the call|drop the call)",
            "(hang up|end) the (phone|line)",
            "(end|finish|stop) (my|this|the) (phone call|call)",
            "!i am done (talking|with this call)",
        ),
        (
            "hang up now",
            "finish with this call",
            "stop that phone call",
            "drop this call",
        ),
        0.4,
    ),
)
