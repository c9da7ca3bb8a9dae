# Runs a Postgres server for as long as file descriptor 3 stays open at its other end. A line on it is the name
# of a signal for the server, which is started again when it has ended by that; after DOWN, a KILL, not before UP.
# usage: guard BIN DIR [postgres options...]
bin=$1 dir=$2
shift 2
umask 077
trap '' PIPE # whoever reads our stderr may be gone
mkdir "$dir" || exit 1
create() {
	if [ -n "$PGONCE_FOLLOW" ]; then
		"$PGONCE_BACKUP/pg_basebackup" --no-sync --checkpoint=fast --write-recovery-conf --username=postgres --host="$PGONCE_FOLLOW" -D "$dir/data"
	else
		"$bin/initdb" --no-sync --auth=trust --username=postgres --encoding=UTF8 --no-locale -D "$dir/data"
	fi
}
create >"$dir/log" 2>&1 || {
	cat "$dir/log" >&2
	rm -rf "$dir"
	exit 1
}
if [ -n "$PGONCE_STANDBY" ]; then : >"$dir/data/standby.signal"; fi
serve() {
	"$bin/postgres" -D "$dir/data" -c listen_addresses= -c unix_socket_directories="$dir" "$@" >>"$dir/log" 2>&1 3<&- &
	server=$!
	echo "$server" >"$dir/server"
}
attempts=50 # processes of a server that was killed keep the next one out until they have noticed
if [ -n "$PGONCE_KEEP" ]; then echo $((attempts = 1000000)) >"$dir/again"; fi
serve "$@"
{
	while read -r signal <&3; do
		if [ "$signal" = UP ]; then
			rm -f "$dir/down"
			continue
		fi
		if [ "$signal" = DOWN ]; then : >"$dir/down" && signal=KILL; fi
		echo "$attempts" >"$dir/again"
		kill "-$signal" "$(cat "$dir/server")"
	done
	rm -f "$dir/again" "$dir/down"
	# A background job of a shell begins with SIGQUIT ignored, until the server has set its own
	# handler. So one signal may be lost, and is sent until the server is gone.
	while kill -QUIT "$(cat "$dir/server")"; do sleep 0.1; done
} 2>/dev/null &
watcher=$!
while
	wait "$server"
	while [ -e "$dir/down" ]; do sleep 0.1; done
	[ -s "$dir/again" ]
do
	again=$(cat "$dir/again")
	if [ "$again" -gt 0 ]; then echo $((again - 1)) >"$dir/again"; else rm "$dir/again"; fi
	if [ "$again" -ne 50 ]; then sleep 0.1; fi
	serve "$@"
done
kill "$watcher" 2>/dev/null
tail -n 20 "$dir/log" >&2 2>/dev/null
rm -rf "$dir"
