//go:build unix

package main

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pgonce/pgonce/internal/localpg"
)

// TestMain lets the test binary play the processes of S3 and S9.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && commands()[os.Args[1]] != nil {
		main()
		return
	}
	os.Exit(m.Run())
}

// Every row that needs no Redis can be measured, nobody is in a lock together with another, and each target has its line.
func TestSmoke(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	page := t.TempDir() + "/benchmarks.md"
	err := run(t.Context(), []string{"--smoke", "--markdown", page}, &out)
	if errors.Is(err, localpg.ErrNoBinaries) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, line := range []string{
		"S1 c=1 vs=bare ratio", "S1 c=1 vs=pglock ratio", "S1 c=32 vs=pglock ratio", "S1 c=256 vs=pglock ratio",
		"S2 c=32 least/most", "S3 hold=0us vs=queue ratio", "S3 hold=0us vs=queue p99", "S3 hold=0us most/least-process",
		"S3 hold=200us vs=queue ratio", "S3 hold=200us vs=queue p99", "S3 hold=200us most/least-process",
		"S4 c=1 vs=bare ratio", "S4 c=32 vs=bare ratio", "S4 trip=1ms vs=bare p50",
		"S5 id=hidden wal", "S5 id=clear wal", "S5 id=clear commits", "S5 id=clear dead",
		"S6 c=1 Lookup vs=select ratio", "S6 c=1 Do vs=select ratio", "S6 c=32 Lookup vs=select ratio", "S6 c=32 Do vs=select ratio",
		"S7 c=256 vs=plain ratio",
		"S8 c=1 vs=hand ratio", "S8 c=1 vs=four-trips ratio", "S8 c=1 repeat vs=applied ratio", "S8 c=32 vs=hand ratio", "S8 trip=1ms vs=four-trips ratio", "S8 FireMany rows=1000 vs=plain time",
		"S9 processes=2 p99-ms",
		"S10 locks=2000 connections", "S10 keys=2000 vs=empty p50", "S10 purge=2000 vs=none p99",
	} {
		whole := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(line) + `=[0-9.+Inf]+ (target|limit)=[0-9.]+ unjudged$`)
		if !whole.Match(out.Bytes()) {
			t.Errorf("no line %q in\n%s", line, out.String())
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	chart, err := os.ReadFile(strings.TrimSuffix(page, ".md") + "-s7.svg")
	if err != nil || !bytes.Contains(chart, []byte("by hand")) || !strings.Contains(string(text), "(benchmarks-s7.svg)") {
		t.Errorf("no chart of S7 on the page (%v):\n%s", err, chart)
	}
	for _, part := range []string{
		"# Benchmarks", "fsync", "### S10", "S3 hold=0us vs=queue ratio=",
		"The statements of Do by hand: ", "UPDATE and history in one statement, without answers: ", "Lock, UPDATE and history by hand, without answers: ",
	} {
		if !strings.Contains(string(text), part) {
			t.Errorf("no %q on the page:\n%s", part, text)
		}
	}
}

// The witness can see what it is there to see.
func TestWitnessSeesABrokenLock(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/witness"
	open := func() *witness {
		w, err := openWitness(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.close(); err != nil {
				t.Error(err)
			}
		})
		return w
	}
	one, other := open(), open()
	one.enter(1, 10)
	one.leave(1)
	other.enter(2, 11)
	other.leave(2)
	if err := one.verdict(); err != nil {
		t.Fatalf("a lock that excludes: %v", err)
	}
	other.enter(2, 12)
	one.enter(1, 12)
	if err := other.verdict(); err == nil || !strings.Contains(err.Error(), "1 overlaps, 1 tokens") {
		t.Fatalf("two inside with one token: %v", err)
	}
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	for want, v := range map[string]verdict{
		"S1 c=32 vs=redislock ratio=2.61 target=1.60 ok":    {target: "S1", labels: "c=32 vs=redislock", what: "ratio", value: 2.61, bound: 1.6},
		"S1 c=32 vs=redislock ratio=1.59 target=1.60 short": {target: "S1", labels: "c=32 vs=redislock", what: "ratio", value: 1.59, bound: 1.6},
		"S3 hold=0us p99=0.50 limit=0.50 ok":                {target: "S3", labels: "hold=0us", what: "p99", value: 0.5, bound: 0.5, most: true},
		"S3 hold=0us p99=0.51 limit=0.50 short":             {target: "S3", labels: "hold=0us", what: "p99", value: 0.51, bound: 0.5, most: true},
	} {
		if got := v.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A quantile of a histogram is within two per cent of that of the values.
func TestHistogram(t *testing.T) {
	t.Parallel()
	var one, other, all histogram
	for i := range 100_000 {
		h := &one
		if i%2 == 0 {
			h = &other
		}
		h.record(time.Duration(i) * 10 * time.Microsecond)
	}
	for _, h := range []*histogram{&one, &other} {
		h.pack()
		all.add(h)
	}
	for _, part := range []float64{0.00001, 0.5, 0.99, 1} {
		want := time.Duration(part*100_000-1) * 10 * time.Microsecond
		if got := all.quantile(part); got < want*98/100 || got > want*102/100+time.Microsecond {
			t.Errorf("quantile %v is %v, want %v", part, got, want)
		}
	}
}

// The same figures make the same picture, byte by byte, and a small one.
func TestCharts(t *testing.T) {
	t.Parallel()
	shares := []share{{"S1", "c=1, redislock", 1.04, 0.9, 1.2}, {"S1", "c=256, pglock", 24.99, 20, 31}}
	one, err1 := drawShares("S1", shares)
	other, err2 := drawShares("S1", shares)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, other) || len(one) > 32<<10 || !bytes.Contains(one, []byte("c=256, pglock")) {
		t.Errorf("%d bytes, the same again: %v\n%s", len(one), bytes.Equal(one, other), one)
	}
	if out := os.Getenv("CHART"); out != "" {
		_ = os.WriteFile(out, one, 0o644)
	}
}

func TestMediansArePairedByRound(t *testing.T) {
	t.Parallel()
	rounds := func(counts ...int64) (s series) {
		for _, n := range counts {
			s = append(s, sample{took: time.Second, served: []int64{n}})
		}
		return s
	}
	// The machine became ten times slower after the first round; who is how much faster did not change.
	if got := rounds(2000, 200, 220).over(rounds(1000, 100, 100), (*sample).rate); got != 2 {
		t.Errorf("the ratio is %v, want 2", got)
	}
	if got := rounds(1, 2, 30, 40).of((*sample).rate); got != 16 {
		t.Errorf("the median is %v, want 16", got)
	}
}
