"""Figures: functions from {label: result} of one or more models to a matplotlib figure."""
