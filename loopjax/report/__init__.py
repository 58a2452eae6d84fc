"""`loopjax report`: any number of models in one HTML page."""
