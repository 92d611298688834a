#!/usr/bin/env bash
# Make .venv for the controller from the lock files; safe to repeat and quick when nothing has changed.
# Arguments: more lock files to install, such as "test". PYTHON chooses the interpreter (3.10 to 3.13).
set -euo pipefail
unset PYTHONHOME PYTHONPATH PYTHONUSERBASE PIP_PREFIX PIP_ROOT PIP_TARGET PIP_USER # .venv is to hold what the locks say
export PYTHONNOUSERSITE=1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

is_supported() {
    [[ $("$1" -c 'import sys; print((3, 10) <= sys.version_info[:2] <= (3, 13))' 2>&1) == True ]]
}

find_python() {
    local candidate
    for candidate in ${PYTHON-python3 python3.13 python3.12 python3.11 python3.10}; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup.sh: ${PYTHON-python3}: not a Python 3.10 to 3.13; install one, or give it as PYTHON=python3.11" >&2
    return 1
}

has_system_cmake() {
    command -v cmake >/dev/null && command -v ctest >/dev/null && [[ $(cmake --version) =~ ([0-9]+)\.([0-9]+) ]] &&
        ((BASH_REMATCH[1] > 3 || (BASH_REMATCH[1] == 3 && BASH_REMATCH[2] >= 20)))
}

names=(installer controller)
has_system_cmake || names+=(cmake)
names+=("$@")

is_complete() {
    [[ -x $venv/bin/python ]] && is_supported "$venv/bin/python" || return
    for name in "${names[@]}"; do
        cmp --silent "$root/requirements/$name.lock" "$venv/installed-$name.lock" || return
    done
    cmp --silent "$root/pyproject.toml" "$venv/installed-pyproject.toml"
}

# A checkout that is complete may be read-only.
if is_complete; then
    exit
fi
if ! { : >>"$root/.setup.lock"; } 2>/dev/null || [[ ! -w $root ]]; then
    echo "setup.sh: $root: cannot be written to, and .venv is made there; copy it to a disk that you may write to" >&2
    exit 1
fi

# Two set-ups at once would install over each other.
exec 9>"$root/.setup.lock"
flock 9

if [[ ! -x $venv/bin/python ]] || ! is_supported "$venv/bin/python"; then
    python=$(find_python)
    echo "setup: making .venv with $python"
    rm -rf "$venv"
    if ! "$python" -I -m venv "$venv"; then
        rm -rf "$venv"
        echo "setup.sh: $python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
fi

# pip installs uv, and uv the rest: by pip's configuration, as cnnbench.staging.installer reads it.
install() {
    if [[ $1 == installer ]]; then
        "$venv/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
            --only-binary :all: --requirement "$root/requirements/$1.lock"
    else
        "$venv/bin/python" -I "$root/src/cnnbench/base/start.py" cnnbench.staging.installer --here "$1"
    fi
}

for name in "${names[@]}"; do
    lock=$root/requirements/$name.lock
    installed=$venv/installed-$name.lock
    if ! cmp --silent "$lock" "$installed"; then
        echo "setup: installing requirements/$name.lock"
        install "$name"
        cp "$lock" "$installed"
    fi
done

if ! cmp --silent "$root/pyproject.toml" "$venv/installed-pyproject.toml"; then
    "$venv/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --editable "$root"
    cp "$root/pyproject.toml" "$venv/installed-pyproject.toml"
fi
