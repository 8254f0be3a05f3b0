"""The demo: the whole path on handwritten digits, from a table of scans to a served model, with a real kill between."""
