package demo

import (
	"bytes"
	"testing"
)

func TestVerdict(t *testing.T) {
	t.Parallel()
	v := Verdict{Name: "example", Effects: 1, Replays: 2, Conflicts: 3, Failed: 4}
	for _, want := range []string{
		"example requests=10 effects=1 replays=2 conflicts=3 failed=4 verdict=ok\n",
		"  WRONG: paid 2 times\nexample requests=10 effects=1 replays=2 conflicts=3 failed=4 verdict=BROKEN\n",
	} {
		var out bytes.Buffer
		v.Print(&out)
		if out.String() != want {
			t.Errorf("got %s, want %s", &out, want)
		}
		if ok := v.Word() == "ok"; ok != (v.Err() == nil) {
			t.Errorf("%s: %v", v.Word(), v.Err())
		}
		v.Wrong("paid %d times", 2)
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for want, args := range map[bool][][]string{
		true:  {nil, {"--workers", "2", "--duplicates=1", "--faults=false", "--seed", "7"}},
		false: {{"--workers=0"}, {"--duplicates", "-1"}, {"extra"}, {"--nope"}},
	} {
		for _, line := range args {
			o := Options{Duplicates: 3, Workers: 8}
			if err := o.Parse(Flags("example", "usage", &o, &bytes.Buffer{}), line); (err == nil) != want {
				t.Errorf("%v: %v", line, err)
			}
		}
	}
}
