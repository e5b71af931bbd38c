"""`python -m ossia` is the command `ossia`."""

from ossia.cli import main

if __name__ == "__main__":
    main()
