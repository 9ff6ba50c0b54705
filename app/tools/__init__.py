"""Developer tools of the app."""
