"""The laboratory: data, training, arms, statistics, report and command line."""
