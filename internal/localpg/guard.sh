# Runs a Postgres server for as long as file descriptor 3 stays open at its other end.
# usage: guard BIN DIR [postgres options...]
bin=$1 dir=$2
shift 2
umask 077
trap '' PIPE # whoever reads our stderr may be gone
mkdir "$dir" || exit 1
"$bin/initdb" --no-sync --auth=trust --username=postgres --encoding=UTF8 --no-locale -D "$dir/data" >"$dir/log" 2>&1 || {
	cat "$dir/log" >&2
	rm -rf "$dir"
	exit 1
}
if [ -n "$PGONCE_STANDBY" ]; then : >"$dir/data/standby.signal"; fi
"$bin/postgres" -D "$dir/data" -c listen_addresses= -c unix_socket_directories="$dir" "$@" >>"$dir/log" 2>&1 3<&- &
server=$!
{
	read -r _ <&3
	# A background job of a shell begins with SIGQUIT ignored, until the server has set its own
	# handler. So one signal may be lost, and is sent until the server is gone.
	while kill -QUIT "$server"; do sleep 0.1; done
} 2>/dev/null &
watcher=$!
wait "$server"
kill "$watcher" 2>/dev/null
tail -n 20 "$dir/log" >&2 2>/dev/null
rm -rf "$dir"
