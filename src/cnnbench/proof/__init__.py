"""What really ran: traces and layers held against a precision, outputs against a reference; the verdict."""
