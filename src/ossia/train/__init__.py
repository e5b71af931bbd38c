"""Data → harmony → a checkpoint. `sft` is a recipe, read from top to bottom; the other files are its parts."""
