#!/bin/sh
# Compares the public API with that of the last release in CHANGELOG.md, and fails for each change that would break
# a caller, unless a line of CHANGELOG.md under "### Breaking" of [Unreleased] names what it changes.
# The release is its tag, or in a clone without tags the commit that wrote its heading.
set -eu
cd "$(dirname "$0")/.."
apidiff="go run golang.org/x/exp/cmd/apidiff@v0.0.0-20261014143641-f0251eb4aa3e"

version=$(sed -n 's/^## \[\([0-9][0-9.]*\)\].*/\1/p' CHANGELOG.md | head -n 1)
if [ -z "$version" ]; then
	echo "apidiff: no release yet"
	exit 0
fi
release=$(git rev-parse -q --verify "v$version^{commit}" || git log --format=%H -S"## [$version]" -- CHANGELOG.md | tail -n 1)
if [ -z "$release" ]; then
	if git diff -U0 HEAD -- CHANGELOG.md | grep -qF "+## [$version]"; then
		echo "apidiff: v$version is being made"
		exit 0
	fi
	echo "apidiff: no commit of v$version here; run: git fetch --unshallow --tags" >&2
	exit 1
fi

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/release"
git archive "$release" | tar -x -C "$dir/release"
module=$(go list -m)
run() { $apidiff -m "$@" 2>"$dir/log" || { cat "$dir/log" >&2; exit 1; }; }
(cd "$dir/release" && run -w "$dir/old" "$module")
run -w "$dir/new" "$module"
run -incompatible "$dir/old" "$dir/new" >"$dir/changes"

# A change is a line "- PACKAGE.NAME: what" or "- (*T).NAME: what"; NAME is what CHANGELOG.md has to tell of.
sed -n '/^## \[Unreleased\]/,/^## \[[0-9]/{/^### Breaking/,/^##/p;}' CHANGELOG.md >"$dir/told"
status=0
grep '^- ' "$dir/changes" >"$dir/lines" || true
while read -r line; do
	name=$(echo "$line" | sed -E 's/^- //; s/: .*//; s/.*[./]//; s/[^A-Za-z0-9_].*//')
	if ! grep -qwF "$name" "$dir/told"; then
		echo "apidiff: since v$version: ${line#- } (not under \"### Breaking\" in CHANGELOG.md)" >&2
		status=1
	fi
done <"$dir/lines"
exit $status
