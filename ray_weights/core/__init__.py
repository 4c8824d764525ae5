"""Pure state machines and decisions: events in, commands out. No Ray, torch, NIXL, clock, environment or
logging."""
