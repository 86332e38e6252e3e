"""Set-up of the application."""
