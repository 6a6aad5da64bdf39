"""Kinds of image files, made by tools of others and held against decoders of others."""
