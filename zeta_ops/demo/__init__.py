"""The demo: predict the next byte of a real text by attention over all that came before, without training."""
