"""Building a run, and carrying it out."""
