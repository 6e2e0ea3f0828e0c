"""What runs beside the program: one worker, and the heartbeats that it does."""
