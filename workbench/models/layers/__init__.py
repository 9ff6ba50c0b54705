"""Bricks a transformer is composed of; none asks which model it serves."""
