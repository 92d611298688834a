"""What people type and scripts call: parses, prints, exits; nothing below it does."""
