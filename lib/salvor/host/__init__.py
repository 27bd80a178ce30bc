"""A machine: what it says of itself, its services, and the fence that cuts it off from everybody but its operator."""

PATH = "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin\n"
"""What every script begins with: who is not root may have a PATH without these."""
