"""Tools for agents, and the stores behind them."""
