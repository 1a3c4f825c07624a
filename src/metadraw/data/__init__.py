"""What tasks are made of, and how: from drawings to episodes."""
