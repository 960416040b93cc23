"""One technique a file or folder, its steps read top to bottom: observe, score, allocate, prune, repair."""
