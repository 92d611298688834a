"""Labelled image sets on disk, how they are made, and how they become input tensors."""
