"""Distances between sets of images, and what they need."""
