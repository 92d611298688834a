"""TensorFlow, stock or with Intel's (ITEX) or AMD's extension (zentf): frozen graphs."""
