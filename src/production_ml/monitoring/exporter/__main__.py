"""`python -m production_ml.monitoring.exporter`: what the first monitor of a run on a node starts."""

from production_ml.monitoring.exporter.process import main

if __name__ == "__main__":
    main()
