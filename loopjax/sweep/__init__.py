"""Many runs from one config file, and the table of what they came to."""
