package demo

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Verdict is what a storm came to.
type Verdict struct {
	Name      string
	Effects   int      // distinct keys committed, counted in the database
	Replays   int      // successful calls beyond those
	Conflicts int      // calls that were refused, and had to be
	Failed    int      // calls without a final answer
	Wrongs    []string // what does not agree; none is a verdict of ok
}

// Wrong says what does not agree.
func (v *Verdict) Wrong(format string, args ...any) {
	v.Wrongs = append(v.Wrongs, fmt.Sprintf(format, args...))
}

// Word is "ok" or "BROKEN".
func (v *Verdict) Word() string {
	if len(v.Wrongs) == 0 {
		return "ok"
	}
	return "BROKEN"
}

// Err is nil if the verdict is ok.
func (v *Verdict) Err() error {
	if len(v.Wrongs) == 0 {
		return nil
	}
	return errors.New("the books do not agree with what was asked for")
}

// Print shows what is wrong, and last the line that scripts read.
func (v *Verdict) Print(w io.Writer) {
	for i, what := range v.Wrongs {
		if i == 10 {
			fmt.Fprintf(w, "  ... and %d more\n", len(v.Wrongs)-i)
			break
		}
		fmt.Fprintln(w, "  WRONG:", what)
	}
	fmt.Fprintf(w, "%s requests=%d effects=%d replays=%d conflicts=%d failed=%d verdict=%s\n",
		v.Name, v.Effects+v.Replays+v.Conflicts+v.Failed, v.Effects, v.Replays, v.Conflicts, v.Failed, v.Word())
}

// Table draws rows of two columns in a frame; an empty row is a line.
func Table(w io.Writer, rows [][2]string) {
	const left, right = 37, 38
	line := func(a, mid, z string) {
		fmt.Fprintln(w, a+strings.Repeat("─", left+2)+mid+strings.Repeat("─", right+2)+z)
	}
	line("┌", "┬", "┐")
	for _, row := range rows {
		if row[0] == "" {
			line("├", "┼", "┤")
			continue
		}
		fmt.Fprintf(w, "│ %-*s │ %-*s │\n", left, row[0], right, row[1])
	}
	line("└", "┴", "┘")
}

// Euros are cents for people.
func Euros(cents int64) string { return fmt.Sprintf("%d.%02d EUR", cents/100, cents%100) }

// Teller tells what happens, with the time since it was made.
type Teller struct {
	out   io.Writer
	start time.Time
}

// NewTeller begins now.
func NewTeller(out io.Writer) *Teller { return &Teller{out, time.Now()} }

// Say tells it.
func (t *Teller) Say(format string, args ...any) {
	fmt.Fprintf(t.out, "%5.1f s  %s\n", t.Took().Seconds(), fmt.Sprintf(format, args...))
}

// Took is the time since the beginning.
func (t *Teller) Took() time.Duration { return time.Since(t.start) }
