# Runs a Redis server for as long as file descriptor 3 stays open at its other end.
# usage: guard PROGRAM DIR
program=$1 dir=$2
"$program" "$dir/redis.conf" >"$dir/log" 2>&1 3<&- &
server=$!
read -r _ <&3
kill -KILL "$server" 2>/dev/null # it keeps nothing
wait "$server" 2>/dev/null
rm -rf "$dir"
