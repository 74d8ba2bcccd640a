"""The preview of each environment on a pull request, and the nightly check for drift."""
