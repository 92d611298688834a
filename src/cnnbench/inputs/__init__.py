"""Which networks there are, and what they are handed: labelled image sets, drawn or read, and their decoding."""
