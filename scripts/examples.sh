#!/bin/sh
# Runs the storm of every example, one after the other, each on a throw-away server, and ends with their lines. Fails
# if one of them fails, or does not end with a line whose verdict is ok. usage: examples.sh [NAME...]
set -eu
cd "$(dirname "$0")/../examples"
# shellcheck disable=SC2046 # names of folders
[ $# -gt 0 ] || set -- $(for main in */main.go; do dirname "$main"; done)
mkdir -p ../.build
lines=$(mktemp)
trap 'rm -f "$lines" "$lines.out"' EXIT
status=0
for name in "$@"; do
	go build -o "../.build/$name" "./$name"
	echo "== $name"
	failed=""
	{ "../.build/$name" || echo "failed" >"$lines.failed"; } | tee "$lines.out"
	if [ -e "$lines.failed" ]; then failed=1 && rm "$lines.failed"; fi
	line=$(tail -n 1 "$lines.out")
	case $line in
	"$name requests="*" verdict=ok") ;;
	*) failed=1 ;;
	esac
	if [ -n "$failed" ]; then
		status=1
		case $line in "$name "*) ;; *) line="$name did not end with a verdict" ;; esac
	fi
	echo "$line" >>"$lines"
done
echo
cat "$lines"
exit $status
