"""`loopjax report`: any number of models on one HTML page."""
