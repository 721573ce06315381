"""What stands for "nothing is to be predicted here"; apart from the loss, so that reading data needs no torch."""

IGNORE = -100  # the label of a position that is not scored, as everywhere in PyTorch
