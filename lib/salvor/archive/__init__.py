"""Whole archives of a platform: `NAME_YYYYMMDD_HHMMSS.tar.gz`, with a dump, trees and files in it, encrypted or not."""
