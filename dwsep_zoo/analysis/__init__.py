"""What networks cost: counts, latency, and the arithmetic behind them."""
