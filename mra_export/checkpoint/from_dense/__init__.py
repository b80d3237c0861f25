"""Dense checkpoint -> MRA checkpoint."""
