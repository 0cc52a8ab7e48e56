"""What people and programs talk to: pages, REST, the SDK wires and live events. Never torch."""
