"""The pages: one public module each, defining `PAGE`; its file name is its address."""
