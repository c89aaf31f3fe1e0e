"""One module for each framework, the same obligations under the same names."""
