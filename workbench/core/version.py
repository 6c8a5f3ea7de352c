"""The version that documents, atlases and the command line carry."""

VERSION = "0.1.0"
