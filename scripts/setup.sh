#!/bin/sh
# Sees to it that this machine has what the named parts need: "postgres" (server binaries, to
# start throw-away servers from), "race" (a C compiler, for go test -race), "redis" (a server binary
# to measure against) and "pgbouncer" (what scripts/pgbouncer.sh builds it with; Debian's own package would
# start a service) and "faults" (libfaketime, to step a server's clock). What is missing is installed with apt, after saying so. No server is started, stopped or
# configured. PGONCE_NO_INSTALL=1 forbids installing. usage: setup.sh [postgres] [race] [redis] [pgbouncer] [faults]
set -eu

has_postgres() {
	for dir in "${PGONCE_PGBIN:-}" $(echo "$PATH" | tr ':' ' ') /usr/lib/postgresql/*/bin \
		/opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin /usr/pgsql-*/bin; do
		if [ -n "$dir" ] && [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then return 0; fi
	done
	return 1
}

has_race() { echo '#include <stdlib.h>' | "${CC:-gcc}" -E -x c - >/dev/null 2>&1; }

# Debian keeps the server's program in redis-tools, under the name of another part that it plays.
has_redis() { command -v redis-server >/dev/null || command -v redis-check-rdb >/dev/null; }

has_libevent() { command -v pkg-config >/dev/null && pkg-config --exists libevent && command -v make >/dev/null; }

has_libfaketime() { for lib in /usr/lib/*/faketime/libfaketime.so.1 /usr/lib/faketime/libfaketime.so.1; do [ ! -e "$lib" ] || return 0; done; return 1; }

missing=""
for part in "$@"; do
	case $part in
	postgres) has_postgres || missing="$missing postgresql" ;;
	race) has_race || missing="$missing gcc libc6-dev" ;;
	# redis-server would start a service now, and at every boot; redis-tools brings none.
	redis) has_redis || missing="$missing redis-tools" ;;
	pgbouncer) has_libevent || missing="$missing make pkg-config libevent-dev" ;;
	faults) has_libfaketime || missing="$missing libfaketime" ;;
	*) echo "setup: unknown part $part" >&2; exit 2 ;;
	esac
done
[ -n "$missing" ] || exit 0

stop() {
	echo "setup: missing:$missing. $1" >&2
	exit 1
}
[ "${PGONCE_NO_INSTALL:-}" != 1 ] || stop "PGONCE_NO_INSTALL=1 forbids installing; run: sudo scripts/setup.sh $*"
if ! command -v apt-get >/dev/null; then
	stop "There is no apt here. On macOS run: brew install postgresql@17 redis && xcode-select --install. Elsewhere install the Postgres server, a C compiler and redis-server, or set PGONCE_PGBIN to a folder with initdb and postgres."
fi
sudo=""
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || stop "Neither root nor sudo; run as root: scripts/setup.sh $*"
	sudo="sudo"
fi

install() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >&2; }

echo "setup: installing with apt:$missing (PGONCE_NO_INSTALL=1 forbids this)" >&2
$sudo apt-get update -q >&2
case $missing in
*postgresql*)
	# Debian's package would create a cluster and start it on port 5432. For as long as this
	# installation takes, it is told not to.
	install postgresql-common
	drop_in=/etc/postgresql-common/createcluster.d/pgonce-setup.conf
	trap '$sudo rm -f "$drop_in"' EXIT
	$sudo mkdir -p "$(dirname "$drop_in")"
	echo "create_main_cluster = false" | $sudo tee "$drop_in" >/dev/null
	;;
esac
# shellcheck disable=SC2086 # a list of packages
install $missing
