"""All that the device can be asked to do, by subject."""

from __future__ import annotations

from apps.pocket.actions import (
    clock,
    device,
    media,
    notes,
    numbers,
    people,
    refusal,
    replies,
    travel,
)

ACTIONS = {
    action.name: action
    for subject in (clock, people, replies, travel, media, device, numbers, notes, refusal)
    for action in subject.ACTIONS
}
