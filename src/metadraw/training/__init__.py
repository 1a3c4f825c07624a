"""What happens during a run, and how a run is built."""
