"""The engine that computes nothing, so that the harness itself can be measured."""
