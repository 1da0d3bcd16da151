"""Stage 1, what is wanted: the recipe language, its faults with line numbers, the gallery."""
