"""What both sides agree on: pure values and their JSON forms (stdlib and numpy only)."""
