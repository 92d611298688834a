"""Name the environment variables by which ctest.sh tells the cases that it runs what it was asked for."""

CONFIG_VARIABLE = "CNNBENCH_CONFIG"
OPTIONS_VARIABLE = "CNNBENCH_OPTIONS"
DRY_RUN_VARIABLE = "CNNBENCH_DRY_RUN"
DEFAULTS_VARIABLE = "CNNBENCH_DEFAULTS"
"""Environment variable: a settings file that is weaker than `--config`; run.sh's is the workload's quick.yaml."""

DIRECTORY_VARIABLE = "CNNBENCH_DIRECTORY"
"""Environment variable: where the user is, which ctest changes; relative paths in parameters start there."""

SKIPS_VARIABLE = "CNNBENCH_SKIPS"
"""Environment variable: the file that skipped cases write their reasons to, of which ctest shows nothing."""

STATUS_VARIABLE = "CNNBENCH_STATUS"
"""Environment variable: the call of ctest.sh that a case is of, by its name; in a container IN_CONTAINER."""

NEIGHBOUR_VARIABLE = "CNNBENCH_NEIGHBOUR"
"""Environment variable of a container: where the one beside it is asked, which a server runs in."""

IN_CONTAINER = "container"
"""As a value of STATUS_VARIABLE: to tell how far the case is by lines on standard error."""
