"""All that the device can be asked to do, by subject; what is said for each is in phrases/."""

from __future__ import annotations

from apps.pocket.schema import Action

_ALL = (
    # clock
    Action("set_alarm", {"time": "time", "day?": "day", "repeat?": "repeat"}, 3.0),
    Action("cancel_alarm", {"time?": "time"}),
    Action("snooze", {"duration?": "duration"}, 0.7),
    Action("set_timer", {"duration": "duration"}, 1.8),
    Action("cancel_timer", {}, 0.5),
    Action("check_timer", {}, 0.5),
    Action("start_stopwatch", {}, 0.5),
    Action(
        "set_reminder", {"text": "text", "time?": "time", "day?": "day", "in?": "duration"}, 3.0
    ),
    Action("add_event", {"title": "text", "day": "day", "time?": "time"}, 1.8),
    Action("show_calendar", {"day?": "day"}),
    Action("get_time", {"place?": "text"}, 0.8),
    Action("get_date", {}, 0.5),
    # people
    Action("send_message", {"to": "text", "text": "text"}, 4.0),
    Action("send_email", {"to": "text", "subject?": "text"}, 1.2),
    Action("read_messages", {"from?": "text"}, 1.2),
    Action("call", {"to": "text"}, 2.0),
    Action("video_call", {"to": "text"}, 0.9),
    Action("hang_up", {}, 0.4),
    Action("draft_reply", {"text": "text"}, 4.0),
    # ways
    Action("navigate", {"to": "text", "by?": "word"}, 2.6),
    Action("find_nearby", {"what": "text"}, 1.3),
    Action("get_weather", {"place?": "text", "day?": "day"}, 1.6),
    # media
    Action("play_music", {"artist?": "text", "song?": "text", "genre?": "text"}, 3.0),
    Action("pause_music", {}, 0.6),
    Action("resume_music", {}, 0.6),
    Action("next_track", {}, 0.6),
    Action("previous_track", {}, 0.6),
    Action("set_volume", {"level": "change"}, 2.0),
    Action("take_photo", {"camera?": "word"}, 0.8),
    Action("record_video", {}, 0.6),
    # device
    Action("switch_setting", {"setting": "word", "state": "state"}, 3.0),
    Action("set_brightness", {"level": "change"}, 1.6),
    Action("open_app", {"app": "text"}, 1.4),
    Action("close_app", {"app": "text"}, 0.8),
    Action("get_battery", {}, 0.6),
    Action("take_screenshot", {}, 0.5),
    Action("lock_phone", {}, 0.5),
    Action("set_light", {"room?": "text", "level": "change"}, 1.8),
    Action("set_temperature", {"degrees": "number", "room?": "text"}, 1.4),
    # numbers: the model writes an expression, the device computes it
    Action("calculate", {"expression": "expression"}, 2.5),
    Action("convert_units", {"value": "number", "from": "unit", "to": "unit"}, 2.2),
    # notes
    Action("create_note", {"text": "text"}, 2.4),
    Action("add_to_list", {"item": "text", "list": "text"}, 2.0),
    Action("show_list", {"list": "text"}, 1.2),
    Action("find_note", {"about": "text"}, 1.2),
    # talk
    Action("say", {"text": "text"}, 0.9),
    Action("refuse", {"text": "text"}, 4.0),
)

ACTIONS = {action.name: action for action in _ALL}
