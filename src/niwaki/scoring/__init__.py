"""Statistics -> scores: of heads and neurons, of layers, of single weights. Higher where removal hurts more."""
