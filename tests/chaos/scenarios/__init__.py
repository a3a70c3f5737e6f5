"""Single faults, one kind at a time: :data:`SCENARIOS` has those of all modules here, by name."""

from tests.chaos.scenarios import (
    bodies,
    clocks,
    crowds,
    deploys,
    freezes,
    hosts,
    networks,
    outages,
    redis_faults,
    replies,
    sqlite_faults,
)
from tests.chaos.scenarios.scene import SCENARIOS, Scenario, Scene, Unplayable, play, scenario, staged

__all__ = [
    "SCENARIOS",
    "Scenario",
    "Scene",
    "Unplayable",
    "bodies",
    "clocks",
    "crowds",
    "deploys",
    "freezes",
    "hosts",
    "networks",
    "outages",
    "play",
    "redis_faults",
    "replies",
    "scenario",
    "sqlite_faults",
    "staged",
]
