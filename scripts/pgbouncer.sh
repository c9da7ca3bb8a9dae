#!/bin/sh
# Builds PgBouncer from Debian's sources, for integration/pgbouncer: one below 1.21 and one above, into .build/pgbouncer.
# Nothing is installed but what building needs (scripts/setup.sh pgbouncer), and no service is started. On a machine
# without apt, name binaries instead: PGONCE_PGBOUNCER=/path/of/one:/path/of/another
set -eu
cd "$(dirname "$0")/.."
suites="bookworm trixie" # PgBouncer 1.18 and 1.24
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
folder=$PWD/.build/pgbouncer

if [ -n "${PGONCE_PGBOUNCER:-}" ]; then exit 0; fi
wanted=""
for suite in $suites; do [ -x "$folder/$suite/pgbouncer" ] || wanted="$wanted $suite"; done
[ -n "$wanted" ] || exit 0

stop() {
	echo "pgbouncer: $1; or name binaries: PGONCE_PGBOUNCER=/path/of/one:/path/of/another" >&2
	exit 1
}
[ "${PGONCE_NO_INSTALL:-}" != 1 ] || stop "PGONCE_NO_INSTALL=1 forbids fetching PgBouncer's sources"
command -v apt-get >/dev/null || stop "There is no apt here"
[ -r "$keyring" ] || stop "There is no $keyring (package debian-archive-keyring)"
scripts/setup.sh race pgbouncer
echo "pgbouncer: building from Debian's sources:$wanted, into .build/pgbouncer (PGONCE_NO_INSTALL=1 forbids this)" >&2

for suite in $wanted; do
	work=$folder/$suite/work
	rm -rf "$work"
	mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
	cat >"$work/debian.sources" <<-EOF
		Types: deb-src
		URIs: http://deb.debian.org/debian
		Suites: $suite
		Components: main
		Signed-By: $keyring
	EOF
	fetch() { # apt with lists of its own: the machine's know nothing of this
		apt-get -qq -o APT::Sandbox::User= -o Dir::Etc::sourcelist="$work/debian.sources" -o Dir::Etc::sourceparts=/nonexistent \
			-o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" "$@" >&2
	}
	fetch update
	(cd "$work" && fetch source --download-only pgbouncer && tar xzf pgbouncer_*.orig.tar.gz)
	(
		cd "$work"/pgbouncer-*/
		./configure --without-openssl --without-cares && make
	) >"$folder/$suite/log" 2>&1 || stop "it does not build, see $folder/$suite/log"
	mv "$work"/pgbouncer-*/pgbouncer "$folder/$suite/pgbouncer"
	rm -rf "$work"
	"$folder/$suite/pgbouncer" --version | head -n 1 >&2
done
