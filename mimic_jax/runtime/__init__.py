"""What knows about machines: processes, devices, being told to stop, files, and how a program ends."""
