"""`python -m feathervlm` is the `feathervlm` command."""

from feathervlm.cli.main import main

if __name__ == "__main__":
    main()
