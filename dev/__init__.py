"""What a developer's machine needs beside the program itself."""
