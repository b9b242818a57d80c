#!/bin/sh
# Make the virtual environment in the folder $1, or leave it alone where it works already.
# PYTHON names the interpreter to use; without it the first that is new enough is taken.
# The file .python in the environment holds the folder it was made in: scripts and an editable
# install carry absolute paths, so an environment that was moved is made again.
set -eu

venv=$1
here=$(pwd -P)
stamp=$venv/.python
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

if [ "$(cat "$stamp" 2>/dev/null)" = "$here" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    exit 0
fi

# An environment that somebody else made here is as good, where it is new enough and has pip.
if [ ! -e "$stamp" ] && "$venv/bin/python" -c "import pip; $new_enough" 2>/dev/null; then
    echo "$here" >"$stamp"
    exit 0
fi

too_old=
no_venv=
for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    if ! "$python" -c "$new_enough"; then
        too_old=${too_old:-"$python is $version"}
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        no_venv=${no_venv:-"$python ($version)"}
        package=python${version%.*}-venv
    else
        echo "Making $venv with $python ($version)" >&2
        "$python" -m venv --clear "$venv"
        echo "$here" >"$stamp"
        exit 0
    fi
done

if [ -n "$no_venv" ]; then
    echo "error: $no_venv cannot make an environment, its venv module is not installed; on Debian and Ubuntu: sudo apt install $package" >&2
elif [ -n "$too_old" ]; then
    echo "error: Python 3.11 or newer is needed, but $too_old; install a newer one, or name it: make PYTHON=/path/to/python3.12" >&2
else
    echo "error: Python 3.11 or newer is needed, but none was found (looked for ${PYTHON:-python3}); install it, or name it: make PYTHON=/path/to/python3" >&2
fi
exit 1
