"""What results look like: {label: result} of any number of models to one figure."""
