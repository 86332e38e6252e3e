"""Servers that stand in for services which no test can reach."""
