#!/usr/bin/env bash
# Makes .venv, or brings it up to date, from requirements/. `make setup` calls it. Does nothing where nothing changed.
# PYTHON=/path/to/python picks the interpreter. Needs no root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.setup-done          # where and from what the finished .venv was made
unfinished=$venv/.setup-unfinished # a first installation has begun and not ended
started=$SECONDS

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$@" >&2
    exit 1
}
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

fingerprint() {
    pwd
    sha256sum pyproject.toml requirements/*.txt scripts/setup.sh
}

# The version of an interpreter that can make the environment; fails for any other. numpy, pandas and networkx, as
# pinned, need Python 3.11.
usable() {
    "$1" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if usable "$candidate" >/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no usable Python (tried: ${PYTHON:-python3.11, python3.12, python3.13, python3})" \
        "needed is Python 3.11 or newer with its venv module (on Debian and Ubuntu: python3.11-venv)" \
        "one from uv, conda or pyenv needs no root; then: make setup PYTHON=/path/to/python3.11"
}

# Whether the .venv that is there cannot be kept: broken, unfinished, moved, or made with another Python than asked for.
must_rebuild() {
    [[ -e $unfinished ]] && return 0
    [[ -e $stamp && $(head -n 1 "$stamp") != "$PWD" ]] && return 0
    local have
    have=$(usable "$venv/bin/python") || return 0
    [[ -n ${PYTHON:-} && $(usable "$PYTHON") != "$have" ]]
}

up_to_date() {
    [[ -e $stamp && $(<"$stamp") == "$(fingerprint)" ]] && ! must_rebuild
}

up_to_date && exit 0

[[ $(uname -sm) == "Linux x86_64" ]] || die "the pinned packages are for Linux on x86-64; this is $(uname -sm)"

# Two set-ups at once in one tree would install over each other: the second waits, then finds the work done.
if command -v flock >/dev/null; then
    mkdir -p .cache
    exec 9>.cache/setup.lock
    flock -n 9 || { say "waiting for another set-up of this tree"; flock 9; }
    up_to_date && exit 0
fi

if [[ ! -d $venv ]] || must_rebuild; then
    python=$(find_python)
    say "making $venv with $("$python" --version)"
    rm -rf "$venv"
    mkdir "$venv"
    touch "$unfinished"
    "$python" -m venv "$venv"
fi
rm -f "$stamp"

say "installing PyTorch, CPU build"
# One retry and a short time-out: where PyTorch's index cannot be reached, pip's own configuration may know the wheel.
pip install -qq --no-deps --no-compile --retries 1 --timeout 15 -r requirements/torch-cpu.txt ||
    die "PyTorch's CPU build was found neither on its own index (requirements/torch-cpu.txt) nor where pip looks otherwise"

say "installing $(grep -c '^[^#]' requirements/cpu.txt) pinned packages (about a minute on a fast network)"
pip install -qq --no-deps --no-compile -r requirements/cpu.txt

say "installing ray_weights itself, editable"
pip install -qq --no-deps --no-build-isolation -e .

say "compiling to bytecode"
# On all cores, where pip would use one. Files that do not compile (templates, newer syntax) are nobody's imports.
"$venv/bin/python" -m compileall -qq -j 0 -x '/tests?/' "$venv/lib" || true

cuda=$("$venv/bin/python" -c 'import torch; print(torch.version.cuda or "")') || die "torch does not import"
[[ -z $cuda ]] || die "torch is a CUDA $cuda build, where the CPU build was expected: make distclean, then make setup"

rm -f "$unfinished"
fingerprint >"$stamp"
say "done in $((SECONDS - started)) s"
