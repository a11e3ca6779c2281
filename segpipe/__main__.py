"""`python -m segpipe VERB ...`, where the console command is not on the path."""

from segpipe.cli import main

if __name__ == "__main__":
    main()
