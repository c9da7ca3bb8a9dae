package statemachine_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	sm "github.com/pgonce/pgonce/statemachine"
)

// The states and events of these tests.
type light string

var (
	on   = sm.NewEvent[light]("on")
	off  = sm.NewEvent[light]("off")
	dim  = sm.NewEvent[light]("dim")
	fail = sm.NewEvent[light]("fail")
)

func from(states ...light) sm.Source[light] { return sm.From(states...) }

// New reports everything that is wrong, at once.
func TestNewReportsEveryFinding(t *testing.T) {
	t.Parallel()
	long := light(strings.Repeat("x", 101))
	for name, tc := range map[string]struct {
		rules []sm.Rule[light]
		says  []string
	}{
		"nothing at all": {nil, []string{"Initial is missing"}},
		"empty rules": {
			[]sm.Rule[light]{{}, sm.Initial[light](), sm.Final[light](), from().On(on).To("b"), from("a").Ignore()},
			[]string{"rule 1 is empty", "Initial names no state", "Final names no state", "From names no state", "Ignore names no event", "Initial is missing"},
		},
		"names": {
			[]sm.Rule[light]{sm.Initial[light](""), sm.Final(long, "\xff"), from("").On(sm.Event[light]{}).To("a\n"), from("").On(sm.NewEvent[light]("\x00")).To(long)},
			[]string{`state "" is empty`, "has 101 bytes, the limit is 100", "is not valid UTF-8", `event "" is empty`, "control character U+000A", `event "\x00" has the control character`},
		},
		"two targets": {
			[]sm.Rule[light]{sm.Initial[light]("a"), sm.Final[light]("b", "c"), from("a").On(on).To("b"), from("a").On(on).To("c"), from("a").On(on).To("b")},
			[]string{`event "on" in state "a" leads to "b" and to "c"`, `event "on" in state "a" is declared twice`, `state "c" cannot be reached`},
		},
		"unreachable, dead end, final with a way out": {
			[]sm.Rule[light]{sm.Initial[light]("a"), sm.Final[light]("b", "lonely"), from("a").On(on).To("b"), from("b").On(off).To("a"), from("b").On(dim).To("end"), from("island").On(on).To("b")},
			[]string{`state "b" is final and has a way out`, `state "lonely" cannot be reached`, `state "end" has no way out and is not final`, `state "island" cannot be reached`},
		},
		"former": {
			[]sm.Rule[light]{sm.Initial[light]("a", "c"), sm.Final[light]("z"), sm.Former[light]("b", "c"), sm.Former[light](), from("a", "b", "c").On(on).To("z"), from("a").On(off).To("b")},
			[]string{`Former names no state`, `state "c" is a former one, and something leads there`, `state "b" is a former one, and something leads there`},
		},
		"ignored": {
			[]sm.Rule[light]{
				sm.Initial[light]("a"), sm.Final[light]("b", "c"), from("a").On(on).To("b"), from("a").On(off).To("c"), from("c").Ignore(on, on),
				from("a").Ignore(on), from("b").Ignore(on), from("b").Ignore(fail),
			},
			[]string{
				`event "on" in state "c" is ignored twice`, `event "on" in state "a" is both allowed and ignored`,
				`event "on" in state "b" is ignored in its own target`, `event "fail" is ignored but never moves anything`,
			},
		},
	} {
		_, err := sm.New("lights", tc.rules...)
		if !errors.Is(err, sm.ErrInvalid) || !strings.HasPrefix(err.Error(), `statemachine: new "lights": `) {
			t.Errorf("%s: got %v", name, err)
			continue
		}
		for _, says := range tc.says {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("%s: got %v\nwant it to say %q", name, err, says)
			}
		}
		if got := strings.Count(err.Error(), "\n") + 1; got < len(tc.says) {
			t.Errorf("%s: %d findings, want %d at least", name, got, len(tc.says))
		}
	}
	for _, name := range []string{"", "\x00", strings.Repeat("x", 101)} {
		if _, err := sm.New(name, sm.Initial[light]("a"), sm.Final[light]("a")); !errors.Is(err, sm.ErrInvalid) {
			t.Errorf("name %q: got %v", name, err)
		}
	}
}

func TestMustNewPanicsWithTheFindings(t *testing.T) {
	t.Parallel()
	defer func() {
		if err, ok := recover().(error); !ok || !errors.Is(err, sm.ErrInvalid) {
			t.Errorf("recovered %v", err)
		}
	}()
	sm.MustNew[light]("lights")
}

func TestMachineAnswersQuestions(t *testing.T) {
	t.Parallel()
	m := sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("z"), from("a", "b").On(on).To("c"), from("a").On(off).To("b"),
		from("b").On(off).To("z"), from("c").On(fail).To("z"), from("z").Ignore(on), from("a").On(dim).To("a"))
	if got := m.States(); !slices.Equal(got, []light{"a", "z", "b", "c"}) {
		t.Errorf("states %v", got)
	}
	if to, ok := m.Next("a", off); to != "b" || !ok {
		t.Errorf("off leads from a to %q, %t", to, ok)
	}
	if to, ok := m.Next("b", off); to != "z" || !ok { // one event, two targets
		t.Errorf("off leads from b to %q, %t", to, ok)
	}
	for _, s := range []light{"z", "unknown"} {
		if to, ok := m.Next(s, on); ok {
			t.Errorf("on leads from %q to %q", s, to)
		}
	}
	if _, ok := m.Next("a", sm.NewEvent[light]("unknown")); ok {
		t.Error("an unknown event leads somewhere")
	}
	if got := m.Allowed("a"); !slices.Equal(got, []sm.Event[light]{on, off, dim}) {
		t.Errorf("allowed in a: %v", got)
	}
	if !m.IsFinal("z") || m.IsFinal("a") || m.Name() != "lights" || on.Name() != "on" {
		t.Error("final states or names are wrong")
	}
	for ev, want := range map[sm.Event[light]]bool{on: false, off: true, dim: true, fail: false, sm.NewEvent[light]("unknown"): false} {
		if m.NeedsDedup(ev) != want {
			t.Errorf("NeedsDedup(%v) is %t", ev, !want)
		}
	}
	m.States()[0] = "overwritten"
	if m.States()[0] != "a" {
		t.Error("the machine can be written to")
	}
}

// What New says of reversals, time-outs and required columns.
func TestNewChecksTimeReversalsAndColumns(t *testing.T) {
	t.Parallel()
	for says, rules := range map[string][]sm.Rule[light]{
		`state "b" is final and has a way out by "off": if that is meant, say Reversal`: {from("a").On(on).To("b"), from("b").On(off).To("c"), from("b").On(fail).To("c").Reversal("r")},
		`Reversal has a reason that is empty`:                                           {from("a").On(on).To("b"), from("b").On(off).To("c").Reversal("")},
		`Final leads nowhere, so it has no Reversal`:                                    {from("a").On(on).To("b"), from("a").On(off).To("c"), sm.Final[light]("b").Reversal("r")},
		`state "b" requires "at", which event "off" in state "a" does not set`:          {from("a").On(on).To("b").Setting("at"), from("a").On(off).To("b"), from("a").On(dim).To("c"), sm.Require[light]("b", "at")},
		`Setting names no column`:                                                       {from("a").On(on).To("b").Setting(), from("a").On(off).To("c")},
		`Setting("a\x00") has the control character`:                                    {from("a").On(on).To("b").Setting("a\x00"), from("a").On(off).To("c")},
		`Require names no column`:                                                       {from("a").On(on).To("b"), from("a").On(off).To("c"), sm.Require[light]("b")},
		`state "a" has two time-outs, "on" and "off"`:                                   {from("a").After(1e9).On(on).To("b"), from("a").After(2e9).On(off).To("c")},
		`After is 0s: it has to be whole microseconds`:                                  {from("a").After(0).On(on).To("b"), from("a").On(off).To("c")},
		`After is 1.5µs`:                             {from("a").After(1500).On(on).To("b"), from("a").On(off).To("c")},
		`After is said of what is ignored`:           {from("a").On(on).To("b"), from("a").On(off).To("c"), from("c").After(1e9).Ignore(on)},
		`event "(create)" begins with a parenthesis`: {from("a").On(sm.NewEvent[light]("(create)")).To("b"), from("a").On(off).To("c")},
	} {
		_, err := sm.New("lights", append(rules, sm.Initial[light]("a"), sm.Final[light]("b", "c"))...)
		if !errors.Is(err, sm.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v\nwant it to say %s", err, says)
		}
	}
	m := sm.MustNew("lights", sm.Initial[light]("a"), sm.Final[light]("c"), sm.Require[light]("b", "at"), sm.Require[light]("c", "at"),
		from("a").After(1e9).On(on).To("b").Setting("at"), from("b").On(off).To("c"), from("c").On(fail).To("b").Reversal("it blinks"))
	if !m.IsReversal("c", fail) || m.IsReversal("a", on) || m.IsReversal("z", dim) || !m.IsFinal("c") {
		t.Error("reversals are wrong")
	}
	if d, ok := m.After("a", on); d != 1e9 || !ok {
		t.Errorf("after %v, %t", d, ok)
	}
	if d, ok := m.After("b", off); d != 0 || ok || !slices.Equal(m.Required("b"), []string{"at"}) || len(m.Required("a")) != 0 {
		t.Errorf("after %v, %t, required %v", d, ok, m.Required("b"))
	}
}
