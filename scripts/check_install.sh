#!/usr/bin/env bash
# Install the package without extras in an empty environment and run `feathervlm demo` in an empty directory.
# Usage: scripts/check_install.sh [FOLDER], by default a new temporary folder. Takes a few minutes.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-$(mktemp -d)}"
mkdir -p "$folder/work"
"${PYTHON:-python3}" -m venv "$folder/venv"
bin="$folder/venv/bin"
"$bin/pip" install --quiet --constraint "$root/constraints.txt" "$root"

cd "$folder/work"
for module in matplotlib lmms_eval; do
	if "$bin/python" -c "import $module" 2>/dev/null; then
		echo "$module is installed although no extra was requested" >&2
		exit 1
	fi
done
"$bin/feathervlm" --version
"$bin/feathervlm" methods feather >/dev/null
"$bin/feathervlm" models llava >/dev/null
"$bin/feathervlm" demo --n 4
"$bin/feathervlm" eval --limit 2 --methods feather
"$bin/feathervlm" bench --quick --config tiny --tokens 144 --methods feather >/dev/null
for command in "study --quick" "diagnose" "bench --plot scale.png"; do
	# shellcheck disable=SC2086  # words of a command
	if "$bin/feathervlm" $command 2>error.txt; then
		echo "feathervlm $command works without its extra" >&2
		exit 1
	fi
	grep --fixed-strings "pip install 'feathervlm[report]'" error.txt
done
# What the package opens while it runs has to be in it.
cd "$("$bin/python" -c 'import os, feathervlm; print(os.path.dirname(feathervlm.__file__))')"
missing="$(cd "$root/src/feathervlm" && find . -type f ! -name '*.pyc' | while read -r file; do
	[ -e "$OLDPWD/$file" ] || echo "$file"
done)"
[ -z "$missing" ] || { echo "not installed: $missing" >&2; exit 1; }
echo "The installation works: $folder/venv"
