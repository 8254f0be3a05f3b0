"""What every room stands on: errors, plug-ins, the clock, the launcher's environment, redaction, structured logs."""
