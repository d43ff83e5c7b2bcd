#!/usr/bin/env bash
# Install the package with the extra `app` in an empty environment, and open the page as a new user would.
# Usage: scripts/check_app.sh [FOLDER], by default a new temporary folder. Takes a few minutes.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-$(mktemp -d)}"
mkdir -p "$folder/work"
"${PYTHON:-python3}" -m venv "$folder/venv"
bin="$folder/venv/bin"
# The page takes an older Pillow than development does.
grep --invert-match '^pillow==' "$root/constraints.txt" >"$folder/constraints.txt"
"$bin/pip" install --quiet --constraint "$folder/constraints.txt" "$root[app]"

cd "$folder/work"
"$bin/feathervlm" app --port 0 >address.txt 2>messages.txt &
page=$!
trap 'kill "$page" 2>/dev/null || true' EXIT
for _ in $(seq 120); do
	grep --quiet http address.txt && break
	kill -0 "$page" || { cat messages.txt >&2; exit 1; }
	sleep 1
done
"$bin/python" - "$(grep --only-matching 'http.*' address.txt)" <<'END'
import sys
from urllib.request import urlopen

with urlopen(sys.argv[1]) as page:
    text = page.read().decode()
    assert page.status == 200 and "feathervlm" in text and "fv-run" in text, text[:500]
    assert "default-src 'self'" in page.headers["content-security-policy"]
END
kill -INT "$page"
wait "$page" || { echo "the page ended with $?" >&2; cat messages.txt >&2; exit 1; }
[ "$(cat messages.txt)" = "Press Ctrl+C to stop." ] || { cat messages.txt >&2; exit 1; }
[ -z "$(ls | grep --invert-match --line-regexp --regexp address.txt --regexp messages.txt)" ] || { ls >&2; exit 1; }
# gradio can write files beside the modules that use it.
"$bin/python" -c 'import feathervlm, pathlib; assert not list(pathlib.Path(feathervlm.__file__).parent.rglob("*.pyi"))'
echo "The page works: $folder/venv"
