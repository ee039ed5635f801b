"""What a model, an embodiment and a run are. Nothing in this room needs torch to be described."""
