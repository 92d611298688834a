"""The engine that computes nothing, so that the harness itself can be measured."""

from cnnbench.engines.registry import Engine

ENGINES = (Engine(name="null", backend="cnnbench.engines.null.backend:NullBackend"),)
