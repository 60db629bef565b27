"""The commands of ``dwsep``, one module each: options, and what the terminal shows."""
