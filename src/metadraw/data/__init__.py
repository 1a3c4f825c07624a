"""From drawings to episodes."""
