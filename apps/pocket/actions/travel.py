"""Ways, places nearby, the weather."""

from __future__ import annotations

from apps.pocket.schema import Action

_BY = (
    ("(on foot|walking)", "foot"),
    ("by (bike|bicycle)", "bike"),
    ("by (bus|train|public transport)", "transit"),
    ("by car", "car"),
)

ACTIONS = (
    Action(
        "navigate",
        {"to": "text", "by?": "word"},
        (
            "(navigate|drive|go|take me|bring me|guide me|get me) to {to:place}",
            "(show|tell|find|give) me the way to {to:place}",
            "(directions|route|the way) to {to:place}",
            "!how do i (get|go|drive) to {to:place}",
            "!what is the (best|fastest|shortest) way to {to:place}",
            "!which (road|route|way) goes to {to:place}",
            "!how can i (go|drive|walk) to {to:place}",
            "(start|begin) navigation to {to:place}",
            "!i (want|need|have) to (go|get) to {to:place}",
            "(find|plan) a (route|way) to {to:place}",
            *(f"(take|bring|guide|get) me to {{to:place}} {said} -> by={by}" for said, by in _BY),
            *(f"(directions|route|the way) to {{to:place}} {said} -> by={by}" for said, by in _BY),
            *(f"!how do i get to {{to:place}} {said} -> by={by}" for said, by in _BY),
            *(f"(plan|find) a route {said} to {{to:place}} -> by={by}" for said, by in _BY),
            "(take me home|navigate home|drive home|bring me home|the way home) -> to=home",
            "!how do i get home -> to=home",
            "(walk me|walk) to {to:place} -> by=foot",
        ),
        (
            "navigate me to {to:place}",
            "(give me|show me) directions to {to:place}",
            "!how can i get to {to:place}",
            "!which way to {to:place}",
            "drive me to {to:place}",
            *(f"navigate to {{to:place}} {said} -> by={by}" for said, by in _BY),
            *(f"!i want to get to {{to:place}} {said} -> by={by}" for said, by in _BY),
            "!what is the way home -> to=home",
        ),
        2.6,
    ),
    Action(
        "find_nearby",
        {"what": "text"},
        (
            (
                "(find|show me|look for) (a|the nearest|the next|the closest) {what:poi} "
                "(near me|nearby|around here|)"
            ),
            "!where is (the nearest|the next|the closest|a) {what:poi}",
            "!where can i find (a|the nearest) {what:poi} (near me|nearby|around here|)",
            "(nearest|closest|next) {what:poi}",
            "!is there a {what:poi} (near me|nearby|around here|close by)",
            "{what:poi} (near me|nearby|around here)",
            "!i (need|am looking for) a {what:poi}",
        ),
        (
            "!where do i find a {what:poi}",
            "show me where the nearest {what:poi} is",
            "search for a {what:poi} near me",
            "!are there any {what:poi} places nearby",
            "!i am looking for the closest {what:poi}",
        ),
        1.3,
    ),
    Action(
        "get_weather",
        {"place?": "text", "day?": "day"},
        (
            "!(what is|how is) the weather",
            "!(what is|how is) the weather {day:day}",
            "!(what is|how is) the weather in {place:city}",
            "!(what is|how is|what will be) the weather in {place:city} {day:day}",
            "!will it (rain|snow|be sunny|be cold|be warm|be hot) {day:day}",
            "!will it (rain|snow|be sunny|be cold|be warm) in {place:city} {day:day}",
            "!is it (raining|snowing|sunny|cold|warm|hot) (outside|)",
            "!is it (raining|snowing|sunny|cold|warm|hot) in {place:city}",
            "(show|tell|give) me the (weather|forecast)",
            "(show|tell|give) me the (weather|forecast) for {place:city}",
            "weather (in|for) {place:city}",
            "weather {day:day}",
            "(forecast|weather report) (for|in) {place:city}",
            "!what is the forecast (for|in) {place:city}",
            "!is it going to (snow|be cold|be warm) {day:day}",
            "!do i need (an umbrella|a coat|sunglasses) {day:day}",
            "!what will the weather be like {day:day}",
        ),
        (
            "!how will the weather be {day:day}",
            "!how is the weather {day:day} in {place:city}",
            "weather forecast for {place:city}",
            "!what is the forecast {day:day}",
            "!is it going to rain {day:day}",
            "!will i need an umbrella {day:day}",
            "tell me the weather in {place:city}",
        ),
        1.6,
    ),
)
