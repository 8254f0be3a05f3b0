"""What a drilled worker's interpreter finds first on its path; nothing of the library imports it."""
