"""Plan where the instances of a case run, and start them there."""
