"""Faces in pictures: finding them and cutting them out."""
