"""What a pull request's reviewer reads of each environment, and the nightly look for drift."""
