"""Interfaces of other libraries, over this core."""
