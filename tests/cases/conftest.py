"""The cases are material for tests: nothing here is to be collected or imported by pytest itself."""

collect_ignore_glob = ["invalid/*", "valid/*"]
