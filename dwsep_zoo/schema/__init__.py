"""The ground floor: settings, run records and measures as plain data, without PyTorch."""
