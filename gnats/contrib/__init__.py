"""Thin adapters to what gnats lives with. Each is imported by its user; none decides anything."""
