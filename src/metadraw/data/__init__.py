"""Tasks, and where they come from: from drawings to episodes."""
