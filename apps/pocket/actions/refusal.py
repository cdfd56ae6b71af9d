"""Small talk, and what the device cannot do and is polite about."""

from __future__ import annotations

from apps.pocket.schema import Action

SORRY = "Sorry, I can't do that."

_TRAINING = (
    (
        "(order|buy|get) (me|us|) (a pizza|pizza|some food|dinner|a burger|sushi|shoes|a "
        "ticket|tickets|flowers) (online|on the internet|from the shop|)"
    ),
    (
        "(book|reserve) (me|us|) (a|the) (flight|table|hotel|room|taxi|train) (to "
        "{_to:place}|at {_to:place}|for {_day:weekday}|)"
    ),
    "(pay|transfer|send) {_n:percent} (dollars|euros|pounds) to {_who:person}",
    "(tell|write|sing|read) (me|us|) (a|another|one) (joke|story|poem|song|riddle|fairy tale)",
    "write (a|my) (poem|story|essay|letter|speech|homework|program) (about {_what:item}|)",
    "!who (is|was) (the|) (president|king|queen|prime minister|inventor|author) of {_to:city}",
    "!who (won|wrote|painted|invented|discovered) (the|) {_what:item}",
    "!what is the (capital|population|history|language) of {_to:city}",
    "!what is the meaning of (life|love|{_what:item})",
    "!why (is|are) the (sky|sea|grass|stars|sun|moon) (blue|green|red|bright|so big)",
    "!(do you|can you) (love|like|hate|know) (me|us|{_who:person}|{_what:item})",
    "!are you (a robot|human|real|alive|happy|sad|married|an ai)",
    "!(what|how) do you (think|feel) about {_what:item}",
    (
        "(translate|say|write) {_what:item} (in|into|to) "
        "(french|german|spanish|italian|chinese|japanese)"
    ),
    "!how do (i|you) (cook|bake|build|repair|make|draw) (a|an|the|) {_what:item}",
    "!what should i (wear|eat|cook|read|do|watch) {_day:day}",
    "!(should i|can i|may i) (take|eat|drink|sell|buy|trust) (the|this|my|) {_what:item}",
    "(cook|clean|wash|paint|carry|bring|fix|repair) (me|us|) (the|my|a) {_what:item}",
    "(make|bring|pour) me (a|some|a cup of) (coffee|tea|sandwich|soup|cake)",
    "(walk|feed|wash) (the|my) (dog|cat|fish|baby)",
    "(drive|park|start|wash) (the|my) car",
    "(download|install|update|delete) (the|a|) (game|film|movie|system|virus|{_what:item})",
    "(hack|spy on|track|follow) {_who:person}",
    "(hack|crack|guess|steal) (the|a|my) (password|account|phone|computer) (of {_who:person}|)",
    "!(does|is) {_who:person} (love me|like me|angry|lying)",
    "!who will win the (match|election|game|cup|war)",
    "!what are the (lottery|winning) numbers",
    "(sell|buy) (my|the|some) (stocks|shares|house|bitcoin)",
    "!(i have|i feel) (a headache|a fever|pain|a rash), what (is it|should i take)",
    "(diagnose|cure|treat) (my|the) (headache|fever|pain|cough|rash)",
    "(fly|swim|jump|dance|run|sleep|eat) (to the moon|with me|for me|)",
    "(explain|describe|define) (the|a|) {_what:item} (to me|)",
    "(play|let's play) (chess|a game|cards|football) (with me|)",
    "(search|look up|google) (the internet|the web|online) (for|) {_what:item}",
)
_HELD_OUT = (
    "order {_what:item} online",
    "reserve a table {_day:day}",
    "write us a (story|poem) about a {_what:item}",
    "sing a song about {_who:person}",
    "!who was the (king|queen) of {_to:city} and why",
    "!what do you think about {_who:person}",
    "translate {_what:item} for me into (french|german)",
    "!how do i repair my {_what:item}",
    "!should i eat the {_what:item} or not",
    "wash and clean my {_what:item}",
    "!are you human or a robot",
    "explain to me why the sky is (blue|red)",
    "make us a cup of (tea|coffee)",
    "install the game {_what:item}",
    "steal the phone password of {_who:person}",
    "transfer {_n:percent} euros from my account to {_who:person}",
)


def _sorry(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{line} -> text={SORRY}" for line in lines)


_TALK = {
    "Hello! What can I do for you?": (
        (
            "(hello|hi|hey|hi there|hello you|good day|hey there)",
            "(hello|hi|hey) (assistant|my friend)",
        ),
        ("hello there", "hi hello", "good day my friend"),
    ),
    "Good morning!": (
        ("good morning", "good morning (to you|assistant|my friend)", "a good morning"),
        ("good morning to you my friend", "a very good morning"),
    ),
    "You're welcome!": (
        (
            "(thank you|thanks|many thanks|thanks a lot|thank you so much|thank you very much)",
            "(great|good|well done|perfect), (thanks|thank you)",
        ),
        ("many thanks to you", "great, thanks a lot", "thanks so much"),
    ),
    "I'm a small assistant. I set alarms, send messages, play music and more.": (
        (
            "!(who|what) are you",
            "!what can you do",
            "!what (do you do|can i ask you|can i say)",
            "(help|help me)",
            "!what is your name",
            "!how can you help (me|)",
            "(tell me|show me) what you can do",
        ),
        (
            "tell me who you are",
            "!what can you do for me",
            "!can you tell me your name",
            "tell me what i can ask you",
        ),
    ),
}


def _talk(side: int) -> tuple[str, ...]:
    return tuple(
        f"!{line.removeprefix('!')} -> text={text}"
        for text, sides in _TALK.items()
        for line in sides[side]
    )


ACTIONS = (
    Action("say", {"text": "text"}, _talk(0), _talk(1), 0.9),
    Action("refuse", {"text": "text"}, _sorry(_TRAINING), _sorry(_HELD_OUT), 4.0),
)
