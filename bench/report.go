package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// report collects what is found, in Markdown.
type report struct {
	smoke   bool
	rounds  int
	each    time.Duration
	machine string
	target  string // whose section is being written
	part    strings.Builder
	all     strings.Builder
	judged  []verdict
	shares  []share
}

// verdict says whether a target is reached.
type verdict struct {
	target, labels string
	what           string // "ratio", "p99"
	value, bound   float64
	most           bool // the bound is not to be exceeded
	smoke          bool
}

func (v verdict) short() bool {
	if v.most {
		return v.value > v.bound
	}
	return v.value < v.bound
}

// String is the line that scripts read.
func (v verdict) String() string {
	kind, word := "target", "ok"
	if v.most {
		kind = "limit"
	}
	if v.short() {
		word = "short"
	}
	if v.smoke {
		word = "unjudged"
	}
	return fmt.Sprintf("%s %s %s=%.2f %s=%.2f %s", v.target, v.labels, v.what, v.value, kind, v.bound, word)
}

func newReport(g *ground) *report {
	return &report{smoke: g.opt.smoke, rounds: g.opt.rounds, each: g.opt.time, machine: machine(g)}
}

// section begins the part of a target.
func (r *report) section(t target) {
	r.target = t.name
	r.printf("### %s: %s\n\n", t.name, t.about)
}

func (r *report) printf(format string, args ...any) { fmt.Fprintf(&r.part, format, args...) }

// compare writes a table of contenders, with our share of each.
func (r *report) compare(row, unit string, contenders []contender, found map[string]series) {
	ours := found[us]
	waits := ours.of((*sample).p99) > 0
	if waits {
		r.printf("| %s | %s | lowest to highest | pgonce makes | p99 wait | least / most served |\n|---|---:|---:|---:|---:|---:|\n", row, unit)
	} else {
		r.printf("| %s | %s | lowest to highest | pgonce makes |\n|---|---:|---:|---:|\n", row, unit)
	}
	for _, c := range contenders {
		s := found[c.name]
		rates := sorted(s, func(v sample) float64 { return v.rate() })
		times := ""
		if c.name != us {
			times = fmt.Sprintf("%.2fx", ours.over(s, (*sample).rate))
			r.share(row, c.name, ours, s)
		}
		r.printf("| %s | %s | %s to %s | %s |", c.name, grouped(s.of((*sample).rate)), grouped(rates[0]), grouped(rates[len(rates)-1]), times)
		if waits {
			r.printf(" %v | %.2f |", time.Duration(s.of((*sample).p99)).Round(time.Microsecond), s.of((*sample).evenness))
		}
		r.printf("\n")
	}
	r.printf("\n")
}

// floor says what the least that a call could send makes of what it is measured beside: a target beyond that cannot be reached.
func (r *report) floor(name string, least series, beside string, other series) {
	r.printf("%s%s: %.2fx of %s.\n\n", strings.ToUpper(name[:1]), name[1:], least.over(other, (*sample).rate), beside)
}

// atLeast and atMost judge a figure.
func (r *report) atLeast(labels, what string, value, bound float64) {
	r.judge(verdict{labels: labels, what: what, value: value, bound: bound})
}

func (r *report) atMost(labels, what string, value, bound float64) {
	r.judge(verdict{labels: labels, what: what, value: value, bound: bound, most: true})
}

func (r *report) judge(v verdict) {
	v.target, v.smoke = r.target, r.smoke
	r.judged = append(r.judged, v)
}

// flush prints the section.
func (r *report) flush(w io.Writer) {
	fmt.Fprint(w, r.part.String())
	r.all.WriteString(r.part.String())
	r.part.Reset()
}

// verdicts prints a line for each target, and one for all.
func (r *report) verdicts(w io.Writer) {
	short := 0
	for _, v := range r.judged {
		fmt.Fprintln(w, v)
		if v.short() {
			short++
		}
	}
	if r.smoke {
		fmt.Fprintf(w, "bench lines=%d unjudged\n", len(r.judged))
		return
	}
	fmt.Fprintf(w, "bench targets=%d ok=%d short=%d\n", len(r.judged), len(r.judged)-short, short)
}

//go:embed page.md
var page string

// writePage writes all that was found to a file, and its charts beside it.
func (r *report) writePage(name string) error {
	charts, err := r.charts(name)
	if err != nil {
		return err
	}
	var b, lines strings.Builder
	r.verdicts(&lines)
	fmt.Fprintf(&b, page, r.machine, r.rounds, r.each, lines.String(), charts, r.all.String())
	return os.WriteFile(name, []byte(strings.TrimRight(b.String(), "\n")+"\n"), 0o644)
}

// machine describes what the figures come from.
func machine(g *ground) string {
	parts := []string{
		fmt.Sprintf("%s, %d CPUs%s, %s/%s", time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), cpuModel(), runtime.GOOS, runtime.GOARCH),
		"load average " + load(), runtime.Version(), "Postgres " + g.postgres.version,
	}
	if g.redis != nil {
		parts = append(parts, "Redis "+g.redis.version)
	}
	return strings.Join(append(parts, peers()...), ", ")
}

// peers are the modules that are measured, with their versions.
func peers() (all []string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	for _, dep := range info.Deps {
		switch dep.Path {
		case "github.com/jackc/pgx/v5", "github.com/bsm/redislock", "github.com/redis/go-redis/v9", "github.com/go-redsync/redsync/v4", "cirello.io/pglock", "github.com/lib/pq":
			all = append(all, dep.Path+" "+dep.Version)
		}
	}
	return all
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return " (" + strings.TrimSpace(value) + ")"
		}
	}
	return ""
}

// load is how busy the machine was before the run, where it says so.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	before, _, _ := strings.Cut(string(text), " ")
	return before
}

// grouped is a number as people read it: 57,000.
func grouped(v float64) string {
	digits := fmt.Sprintf("%.0f", v)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
