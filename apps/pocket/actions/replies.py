"""Drafts of short replies: what to answer depends on the message, and on yes or no."""

from __future__ import annotations

from apps.pocket.schema import Action

_ASK = "(draft|write|suggest) (a|an|) (reply|answer) to"
_YES = "(reply|answer|say) (yes|ok|sure) to"
_NO = "(reply|answer|say) (no|no thanks|i can't) to"
_ASK_TEST = "(give me a reply|draft a short answer|suggest a short reply) to"
_YES_TEST = "(write yes|draft a yes|reply with yes) to"
_NO_TEST = "(write no|draft a no|reply with no) to"


def _any_stance(messages: str, text: str, ask: str = _ASK) -> str:
    return f"{ask}: {messages} -> text={text}"


_INVITE = (
    "(do you want to|would you like to|shall we|can we|let's) (meet|eat|have lunch|have dinner)"
    " at {_place:place}",
    "(are you coming|will you come|can you come) to {_place:place}",
    "(come|meet me|join us|see you) at {_place:place}",
    "(we are meeting|we meet|we all meet) at {_place:place}",
)
_INVITE_TEST = (
    "(do you want to come|would you like to come) to {_place:place}",
    "will you join us at {_place:place}",
    "shall we all meet at {_place:place}",
)
_FAVOUR = (
    (
        "(can you|could you|would you|will you|please) (bring|buy|get|fix|send me|lend "
        "me) (the|some|a) {_thing:item}"
    ),
    "(i need|we need) (the|some|a) {_thing:item}, can you (help|bring it|get it)",
)
_FAVOUR_TEST = (
    "(could you please|can you please) (bring|buy|get) the {_thing:item}",
    "we need some {_thing:item}, could you help",
)

_TRAINING = (
    *(f"{_YES}: {line} -> text=Sounds good, see you at {{_place}}!" for line in _INVITE),
    *(f"{_NO}: {line} -> text=Sorry, I can't make it to {{_place}}." for line in _INVITE),
    *(f"{_YES}: {line} -> text=Sure, I'll take care of the {{_thing}}." for line in _FAVOUR),
    *(f"{_NO}: {line} -> text=Sorry, I can't help with the {{_thing}}." for line in _FAVOUR),
    _any_stance(
        "(thank you|thanks|many thanks) for (the|your) {_thing:item}",
        "You're welcome! Enjoy the {_thing}.",
    ),
    _any_stance(
        "(thank you|thanks) (so much|a lot|for everything|for your help|)", "You're welcome!"
    ),
    _any_stance("(i'm|i am|i will be) (running|a bit|very) late", "No problem, take your time."),
    _any_stance(
        "(sorry|i'm sorry|i am so sorry) (for being late|i forgot|about yesterday|about that|)",
        "No problem, don't worry about it.",
    ),
    _any_stance(
        (
            "(happy birthday|happy birthday to you|have a great birthday|all the best "
            "for your birthday)"
        ),
        "Thank you so much!",
    ),
    _any_stance(
        "(how are you|how are you doing|how is it going|how do you feel|are you ok)",
        "I'm fine, thanks! How are you?",
    ),
    _any_stance(
        "(where are you|where are you now|how far are you|when will you be here)", "I'm on my way."
    ),
    _any_stance("(good night|sleep well|good night and sleep well)", "Good night!"),
    _any_stance(
        "(i passed|i got the job|we won|i won|i passed the exam|we got the house)",
        "Congratulations, that's great news!",
    ),
    _any_stance("(i am sick|i'm sick|i have a cold|i feel sick|i am ill)", "Get well soon!"),
    _any_stance(
        "(call me|call me back|can you call me|please call me|call me when you can)",
        "I'll call you soon.",
    ),
    _any_stance(
        "(see you|see you soon|see you later|see you tomorrow|talk to you later)", "See you!"
    ),
)

_HELD_OUT = (
    *(f"{_YES_TEST}: {line} -> text=Sounds good, see you at {{_place}}!" for line in _INVITE_TEST),
    *(f"{_NO_TEST}: {line} -> text=Sorry, I can't make it to {{_place}}." for line in _INVITE_TEST),
    *(
        f"{_YES_TEST}: {line} -> text=Sure, I'll take care of the {{_thing}}."
        for line in _FAVOUR_TEST
    ),
    *(
        f"{_NO_TEST}: {line} -> text=Sorry, I can't help with the {{_thing}}."
        for line in _FAVOUR_TEST
    ),
    _any_stance(
        "(thank you so much|thanks a lot) for the {_thing:item}",
        "You're welcome! Enjoy the {_thing}.",
        _ASK_TEST,
    ),
    _any_stance(
        "(many thanks|thanks so much|thank you for your help)", "You're welcome!", _ASK_TEST
    ),
    _any_stance(
        "(i'm going to be late|i am running very late)", "No problem, take your time.", _ASK_TEST
    ),
    _any_stance(
        "(i am sorry about yesterday|so sorry i forgot)",
        "No problem, don't worry about it.",
        _ASK_TEST,
    ),
    _any_stance(
        "(have a happy birthday|a very happy birthday to you)", "Thank you so much!", _ASK_TEST
    ),
    _any_stance(
        "(how are you today|hi how are you doing)", "I'm fine, thanks! How are you?", _ASK_TEST
    ),
    _any_stance("(where are you right now|hey where are you)", "I'm on my way.", _ASK_TEST),
    _any_stance("(a good night to you|good night everyone)", "Good night!", _ASK_TEST),
    _any_stance(
        "(we passed the exam|i won the match)", "Congratulations, that's great news!", _ASK_TEST
    ),
    _any_stance("(i feel ill|i'm sick with a cold)", "Get well soon!", _ASK_TEST),
    _any_stance("(can you call me back|please call me later)", "I'll call you soon.", _ASK_TEST),
    _any_stance("(see you soon then|ok see you later)", "See you!", _ASK_TEST),
)

ACTIONS = (Action("draft_reply", {"text": "text"}, _TRAINING, _HELD_OUT, 4.0),)
