package statemachine

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// parts are the parts of a statement that a call has use for. In a text they stand between the marks /*name*/ and
// /*end name*/; /*no name X*/ is what stands there instead.
type parts struct {
	history  bool // the move is written to the history
	dedup    bool // there is a dedup id
	unlocked bool // who is there already may be told so without a lock
	last     bool // the state does not tell which event led there: the last move is looked up
	held     bool // the row has been locked since before the statement, so the last move tells
	untold   bool // the row has not, so it does not
	ignores  bool // there are states where the event is ignored
	move     bool // it can do no more than move the row, or answer without a lock
	wait     bool // the wait for the lock has a limit, in a transaction of our own
	restore  bool // it has one in the caller's transaction, which gets back what it had
	alone    bool // of many rows: nothing but the move can be the answer for a row that is moved
}

// of leaves out of a text what the call has no use for.
func (p parts) of(text string) string {
	for _, part := range []struct {
		name string
		in   bool
	}{
		{"history", p.history},
		{"dedup", p.dedup},
		{"unlocked", p.unlocked},
		{"last", p.last},
		{"held", p.held},
		{"untold", p.untold},
		{"ignores", p.ignores},
		{"wait", p.wait},
		{"restore", p.restore},
		{"alone", p.alone},
	} {
		text = between(text, "/*"+part.name+"*/", "/*end "+part.name+"*/", part.in)
		text = between(text, "/*no "+part.name, "*/", !part.in)
	}
	return text
}

// between takes marks out of a text, with what stands between them unless it is to be kept.
func between(text, begin, end string, keep bool) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, begin)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		inside, after, _ := strings.Cut(rest, end)
		if keep {
			b.WriteString(inside)
		}
		text = after
	}
}

var argument = regexp.MustCompile(`\$[0-9]+`)

// numbered closes the gaps between the numbers of a text's arguments, since the server has to be told a type for each. It returns the
// numbers that were there.
func numbered(text string) (string, []int) {
	var used []int
	for _, arg := range argument.FindAllString(text, -1) {
		n, _ := strconv.Atoi(arg[1:])
		used = append(used, n)
	}
	slices.Sort(used)
	used = slices.Compact(used)
	return argument.ReplaceAllStringFunc(text, func(arg string) string {
		n, _ := strconv.Atoi(arg[1:])
		place, _ := slices.BinarySearch(used, n)
		return "$" + strconv.Itoa(place+1)
	}), used
}
