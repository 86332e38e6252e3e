"""Configuration of the application as its older parts ask for it."""
