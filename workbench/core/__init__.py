"""What every layer stands on: errors, canonical bytes, files, statistics, progress. Imports no torch."""
