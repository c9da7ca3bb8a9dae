# Runs PgBouncer for as long as file descriptor 3 stays open at its other end, however that ends.
# usage: guard BINARY CONFIGURATION
"$1" -q "$2" 3<&- &
server=$!
{
	read -r _ <&3
	kill -KILL "$server"
} 2>/dev/null &
wait "$server"
